"""A checkpoint with a damaged, cut or missing file, in every command that reads it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from app.errors import UserError
from app.jobs.checkpoint_files import RESUMED_FILES, require_whole_checkpoint
from app.jobs.job_dir import (
    SNAPSHOT,
    SavedCheckpoint,
    find_lowest_checkpoint,
    read_newest_checkpoint,
)
from tests.checkpoints import EMPTY_TENSORS, write_checkpoint_files
from tests.command_line import refuse_command, run_command

SAVED = "config.yaml"
LORA = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """Return the folder of a job with one checkpoint."""
    folder = tmp_path / "jobs" / "job"
    write_checkpoint_files(folder / "checkpoint_8", {"state": {"step": 8}})
    shown = run_command("config", "show", "demo").stdout
    (folder / "checkpoint_8" / SAVED).write_text(shown)
    newest = {"checkpoint_dir_name": "checkpoint_8", "metrics": {"step": 8}}
    (folder / SNAPSHOT).write_text(json.dumps({"latest_checkpoint_result": newest}))
    return folder


def test_a_whole_file_of_the_library_is_accepted_and_each_cut_of_it_is_refused(
    tmp_path: Path,
) -> None:
    write_checkpoint_files(tmp_path, {"state": {"step": 8}})
    file = tmp_path / "adapter_model.safetensors"
    save_file({"a": torch.ones(3, 5), "b": torch.ones(7)}, file, metadata={"format": "pt"})
    require_whole_checkpoint(str(tmp_path), RESUMED_FILES)
    content = file.read_bytes()
    for size in (*range(20), len(content) // 2, len(content) - 1):
        file.write_bytes(content[:size])
        with pytest.raises(UserError, match=r"adapter_model\.safetensors is damaged or missing: "):
            require_whole_checkpoint(str(tmp_path))
    file.write_bytes(content + b"\0")
    with pytest.raises(UserError, match=rf"{len(content) + 1} bytes instead of {len(content)}"):
        require_whole_checkpoint(str(tmp_path))


@pytest.mark.parametrize("header", [b"[]", b"{", b'{"a": 1}', b'{"a": {}}', b"\xff\xff", b"null"])
def test_a_header_that_lists_no_tensors_is_refused(tmp_path: Path, header: bytes) -> None:
    write_checkpoint_files(tmp_path)
    content = len(header).to_bytes(8, "little") + header
    (tmp_path / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="its header does not list tensors"):
        require_whole_checkpoint(str(tmp_path))


def test_an_adapter_of_another_program_needs_no_state(tmp_path: Path) -> None:
    write_checkpoint_files(tmp_path)
    (tmp_path / "optimizer.safetensors").unlink()
    require_whole_checkpoint(str(tmp_path))
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save({LORA: torch.ones(4, 9)}, tmp_path / "adapter_model.bin")
    require_whole_checkpoint(str(tmp_path))
    (tmp_path / SAVED).write_text("")  # added by hand, or by `promote`
    require_whole_checkpoint(str(tmp_path))
    (tmp_path / "optimizer.safetensors").write_bytes(EMPTY_TENSORS)  # a job's checkpoint has one
    with pytest.raises(UserError, match=r"state\.json is damaged or missing"):
        require_whole_checkpoint(str(tmp_path))


STATES = {
    "[]": "it holds a list, not an object",
    '"x"': "it holds a str, not an object",
    "null": "it holds a NoneType, not an object",
    '{"run_id": "a"}': "it has no state",
    '{"run_id": "a", "state": {"step": 4}}': "it has no eval_loss",
    '{"run_id": "a", "state": {}, "eval_loss": 1}': "its step is None",
    '{"run_id": "a", "state": null, "eval_loss": 1}': "its state is None",
    '{"run_id": "a", "state": [], "eval_loss": 1}': "its state is [], not an object",
    '{"run_id": "a", "state": {"step": 4.5}, "eval_loss": 1}': "its step is 4.5",
    '{"run_id": "a", "state": {"step": "4"}, "eval_loss": 1}': "its step is '4'",
    '{"run_id": "a", "state": {"step": true}, "eval_loss": 1}': "its step is True",
    '{"run_id": "a", "state": {"step": -1}, "eval_loss": 1}': "its step is -1",
    '{"run_id": "a", "state": {"step": NaN}, "eval_loss": 1}': "its step is nan",
    '{"run_id": "a", "state": {"step": 4}, "eval_loss": NaN}': "its eval_loss is nan",
    '{"run_id": "a", "state": {"step": 4}, "eval_loss": -Infinity}': "its eval_loss is -inf",
    '{"run_id": "a", "state": {"step": 4}, "eval_loss": null}': "its eval_loss is None",
    '{"run_id": "a", "state": {"step": 4}, "eval_loss": "1"}': "its eval_loss is '1'",
    '{"run_id": "a", "state": {"step": 4}, "eval_loss": [1]}': "its eval_loss is [1]",
    '{"run_id": "a", "state": {"step": 4}, "eval_loss": 1, "base": 3}': "its base is 3",
    '{"run_id": "a", "state": {"step": 4}, "eval_loss": 1, "base": {"name": "b"}}': "quantization",
}


@pytest.mark.parametrize("text", STATES)
def test_a_damaged_state_below_the_folder_of_a_search_is_named(tmp_path: Path, text: str) -> None:
    good = {"run_id": "a", "state": {"step": 8}, "eval_loss": 0.5}
    write_checkpoint_files(tmp_path / "good", good)
    write_checkpoint_files(tmp_path / "bad", {})
    assert find_lowest_checkpoint(str(tmp_path), "a") == SavedCheckpoint(
        str(tmp_path / "good"), {"step": 8, "eval_loss": 0.5}
    )
    (tmp_path / "bad" / "state.json").write_text(text)
    with pytest.raises(UserError) as error:
        find_lowest_checkpoint(str(tmp_path), "a")
    assert f"{tmp_path}/bad/state.json is damaged or missing: " in str(error.value)
    assert STATES[text] in str(error.value)
    assert "\n" not in str(error.value)


def test_a_pickle_that_holds_code_is_refused_before_a_model_is_loaded(
    job: Path, tmp_path: Path
) -> None:
    (job / "checkpoint_8" / "adapter_model.safetensors").unlink()
    file = job / "checkpoint_8" / "adapter_model.bin"
    (tmp_path / "icon.svg").write_text('<svg viewBox="0 0 9 9"><path d="M1 1h5v5z"/></svg>')
    torch.save({LORA: torch.ones(4, 9), "bomb": Bomb()}, file)
    torch.load(file, weights_only=False)
    assert Bomb.num_runs == 1  # the injected code works
    for command in (
        ["evaluate", str(job)],
        [
            "caption",
            str(tmp_path / "icon.svg"),
            "--model",
            str(job),
            "--out",
            f"{tmp_path}/a.jsonl",
        ],
        ["export", str(job), "--adapter", "--out", str(tmp_path / "exported")],
        ["promote", str(job)],
        ["serve", "--model", str(job)],
    ):
        sentence = refuse_command(*command)
        assert "adapter_model.bin is a pickle that holds Python code, which is not run" in sentence
        assert str(file.parent) in sentence
    assert Bomb.num_runs == 1


class Bomb:
    """An object whose unpickling runs code."""

    num_runs = 0

    def __reduce__(self) -> Any:
        return _explode, ()


def _explode() -> None:
    Bomb.num_runs += 1


DAMAGES = [
    ("state.json", None),
    ("state.json", b'{"state": {"st'),
    ("state.json", b"[]"),
    ("state.json", b"\xff"),
    ("state.json", b'{"state": 3}'),
    ("state.json", b'{"state": {"step": "a"}}'),
    ("state.json", b'{"state": {"step": 8}, "eval_loss": NaN}'),
    ("state.json", b'{"state": {"step": 8}, "base": {}}'),
    ("adapter_model.safetensors", None),
    ("adapter_model.safetensors", b""),
    ("adapter_model.safetensors", EMPTY_TENSORS[:-1]),
    ("adapter_config.json", b"{"),
]


@pytest.mark.parametrize(("name", "content"), DAMAGES)
def test_every_command_names_the_damaged_file_of_a_checkpoint(
    job: Path, tmp_path: Path, name: str, content: bytes | None
) -> None:
    file = job / "checkpoint_8" / name
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    (tmp_path / "icon.svg").write_text('<svg viewBox="0 0 9 9"><path d="M1 1h5v5z"/></svg>')
    out = str(tmp_path / "out.jsonl")
    here = [f"train.output_dir={job.parent}", "train.run_name=job", "tracking.uri=null"]
    for command in (
        ["evaluate", str(job)],
        ["evaluate", "demo", *here],
        ["evaluate", "demo", "--adapter", str(file.parent), *here],
        ["caption", str(tmp_path / "icon.svg"), "--model", str(job), "--out", out],
        ["export", str(job), "--adapter", "--out", str(tmp_path / "exported")],
        ["promote", str(job)],
        ["serve", "--model", str(file.parent)],
    ):
        assert str(file) in refuse_command(*command), command
    (tmp_path / "icon.svg").unlink()
    assert sorted(tmp_path.rglob("*")) == before


def test_the_checks_of_a_checkpoint_import_neither_torch_nor_ray(job: Path) -> None:
    code = (
        "import sys; from app.jobs.trained_model import find_model; find_model(sys.argv[1]); "
        "print({'torch', 'ray', 'mlflow'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(job)], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_a_list_of_checkpoints_that_is_being_written_is_read_again(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (job / SNAPSHOT).read_text()
    (job / SNAPSHOT).write_text(whole[:20])
    waits = []

    def finish_writing(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            (job / SNAPSHOT).write_text(whole)

    monkeypatch.setattr("app.jobs.job_dir.time.sleep", finish_writing)
    newest = read_newest_checkpoint(str(job))
    assert newest is not None
    assert newest.metrics["step"] == 8
    assert len(waits) == 2

    (job / SNAPSHOT).write_text("")
    waits[:] = [0.0] * 2  # it stays so
    with pytest.raises(UserError, match=rf"^cannot read .*{SNAPSHOT}"):
        read_newest_checkpoint(str(job))
    assert sum(waits) < 1
