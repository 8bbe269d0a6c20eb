"""Errors of a user on the command line: one sentence, exit code 2, no files left."""

import socket

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.command_line import refuse_command, run_command

NO_TRACKING = "tracking.uri=null"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "absent.yaml"], "config 'absent.yaml' not found"),
        (["train", "demo", NO_TRACKING, "data.shards=nowhere"], "nowhere"),
        (["train", "demo", NO_TRACKING, "data.shards=empty"], "holds no prepared dataset"),
        (
            ["train", "demo", "tracking.uri=http://127.0.0.1:9", "tracking.timeout_seconds=3"],
            "start the server or correct",
        ),
        (["prepare", "absent.parquet", "--out", "out"], "absent.parquet"),
        (["prepare", "empty", "--out", "out"], "empty"),
        (["prepare", "wrong.parquet", "--out", "out"], "--svg-column"),
        (["prepare", "scenes:10", "--out", "out", "--json", "empty"], "name a file in it"),
        (
            ["prepare", "scenes:10", "--out", "out", "--validation-share", "7"],
            "validation_share='7'",
        ),
        (["evaluate", "demo", NO_TRACKING], "holds no trained adapter"),
        (["evaluate", "empty", NO_TRACKING], "holds neither adapter_config.json nor a job"),
        (["evaluate", "demo", "--json", "empty"], "name a file in it"),
    ],
)
def test_a_mistake_is_named_in_one_sentence(tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    pq.write_table(pa.table({"picture": ["<svg/>"], "caption": ["a"]}), tmp_path / "wrong.parquet")
    assert message in refuse_command(*arguments, cwd=tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "unknown"),
    [
        (["plan", "demo", "--gpu", "8GiB", "lora.rank"], "lora.rank"),
        (["plan", "demo", "--gpus", "8GiB"], "--gpus"),
        (["quantize", "tiny", "--out", "out", "lora.rank=8"], "lora.rank=8"),
    ],
)
def test_an_unknown_argument_is_named(tmp_path, arguments, unknown):
    done = run_command(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done
    assert f"unrecognized arguments: {unknown}" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [
    ["plan", "demo", "--price-per-hour"],
    ["plan", "demo", "--tokens-per-second"],
    ["export", "job", "--adapter", "--out", "out", "--max-drift"],
    ["serve", "--model", "job", "--port"],
    ["ui", "demo", "--port"],
])  # fmt: skip
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999", "-1", "many", "99999999"])
def test_a_number_outside_of_its_range_is_refused(command, value):
    if value == "99999999" and command[-1] != "--port":
        return
    done = run_command(*command[:-1], f"{command[-1]}={value}")
    assert done.returncode == 2
    assert f"argument {command[-1]}: {value!r} is not a" in done.stderr


def test_more_workers_than_cpus_are_refused_with_the_fix(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)  # of other tests' Ray
    prepared = run_command(
        "prepare", "scenes:60", "--out", "shards", "--json", "counts.json", cwd=tmp_path
    )
    assert prepared.returncode == 0, prepared.stderr
    assert (tmp_path / "counts.json").exists()
    train = ["train", "demo", NO_TRACKING, "data.shards=shards"]
    message = refuse_command(*train, "scaling.num_workers=900", cwd=tmp_path)
    assert "900" in message
    assert "scaling.num_workers=" in message
    # refused before Ray looks for a GPU
    limit = ["scaling.use_gpu=true", "memory.max_gib_per_gpu=0.02", "data.sequence_tokens=256"]
    message = refuse_command(*train, *limit, cwd=tmp_path)
    assert "limit 0.02 GiB" in message


def test_a_ui_on_a_taken_port_is_refused(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        message = refuse_command("ui", "demo", "--port", port, cwd=tmp_path)
    assert f"--port {port}" in message
    assert "give another --port" in message


def test_help_names_every_command(tmp_path):
    done = run_command("--help", cwd=tmp_path)
    for command in (
        "prepare",
        "plan",
        "train",
        "tune",
        "evaluate",
        "caption",
        "quantize",
        "doctor",
        "ui",
        "demo",
        "config",
    ):
        assert command in done.stdout
