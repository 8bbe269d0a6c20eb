"""Errors of a user on the command line: one sentence, exit code 2, no files left."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest


def svgscribe(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parent.parent)
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1", **environment},
    )


def one_sentence(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("svgscribe: "), done.stderr
    return last


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
    assert message in one_sentence(svgscribe(*arguments, cwd=tmp_path))
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
    done = svgscribe(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done
    assert f"unrecognized arguments: {unknown}" in done.stderr
    assert not (tmp_path / "out").exists()


def test_more_workers_than_cpus_are_refused_with_the_fix(tmp_path):
    prepared = svgscribe(
        "prepare", "scenes:60", "--out", "shards", "--json", "counts.json", cwd=tmp_path
    )
    assert prepared.returncode == 0, prepared.stderr
    assert (tmp_path / "counts.json").exists()
    message = one_sentence(
        svgscribe(
            "train",
            "demo",
            NO_TRACKING,
            "data.shards=shards",
            "scaling.num_workers=900",
            cwd=tmp_path,
        )
    )
    assert "900" in message
    assert "scaling.num_workers=" in message
    # refused before Ray looks for a GPU
    message = one_sentence(
        svgscribe(
            "train",
            "demo",
            NO_TRACKING,
            "data.shards=shards",
            "scaling.use_gpu=true",
            "memory.max_gib_per_gpu=0.02",
            cwd=tmp_path,
        )
    )
    assert "limit 0.02 GiB" in message


def test_a_ui_on_a_taken_port_is_refused(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        message = one_sentence(svgscribe("ui", "demo", "--port", port, cwd=tmp_path))
    assert f"--port {port}" in message
    assert "give another --port" in message


def test_help_names_every_command(tmp_path):
    done = svgscribe("--help", cwd=tmp_path)
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
