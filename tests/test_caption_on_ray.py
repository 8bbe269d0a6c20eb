"""Captions on Ray: those of one process, in order, once each, whatever is killed or continued."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import ray.util.state

from app.config import load_config
from app.errors import UserError
from app.jobs.caption import _describe_run
from app.jobs.caption_journal import CaptionedDrawing, Journal
from app.jobs.caption_on_ray import COLUMN, WindowCaptioner, _caption_windows, _read_windows
from app.jobs.caption_windows import caption_window, read_drawings
from app.jobs.cluster import ConnectedRay
from app.jobs.open_captioner import open_captioner
from app.jobs.trained_model import TrainedModel, find_model
from data_pipeline.config import DrawingsConfig
from data_pipeline.errors import DataError
from data_pipeline.sources.phosphor import read_phosphor
from tests.tiny import save_trained_model

ROOT = Path(__file__).parent.parent
NUM_DRAWINGS = 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the folder `icons`; every fifth drawing is broken."""
    made = tmp_path_factory.mktemp("on_ray")
    (made / "icons").mkdir()
    for number, record in zip(range(NUM_DRAWINGS), read_phosphor(), strict=False):
        svg = record.svg if number % 5 else "<svg"
        (made / "icons" / f"{number:02}.svg").write_bytes(svg if number % 5 else b"<svg")
    return made


@pytest.fixture(scope="module")
def model(folder: Path) -> TrainedModel:
    config = load_config(
        "demo",
        {
            "train.precision": "fp32",
            "evaluate.max_new_tokens": 3,
            "evaluate.generation_batch_size": 1,
            "scaling.num_workers": 1,
            "scaling.cpus_per_worker": 1,
            "tracking.uri": "null",
        },
    )
    return find_model(save_trained_model(folder / "checkpoint", config))


@pytest.fixture(scope="module")
def alone(folder: Path, model: TrainedModel) -> list[CaptionedDrawing]:
    """The captions of one process."""
    captioner = open_captioner(model.config, model.adapter)
    drawings = [*read_drawings([str(folder / "icons")], DrawingsConfig())]
    captioned: list[CaptionedDrawing] = []
    caption_window(captioner, drawings, model.config.data, captioned.extend)
    captioned.sort()
    assert [drawing.error is None for drawing in captioned] == [n % 5 > 0 for n in range(30)]
    return captioned


def test_actors_give_the_captions_of_one_process_also_if_one_is_killed(
    ray_local: ConnectedRay, folder: Path, model: TrainedModel, alone: list[CaptionedDrawing]
) -> None:
    windows = _caption_windows([str(folder / "icons")], DrawingsConfig(), model, 5, {1, 3})
    captioned = [*next(windows)]
    actors = ray.util.state.list_actors(filters=[("state", "=", "ALIVE")], detail=True)
    killed = [
        a.pid for a in actors if a.pid and "WindowCaptioner" in f"{a.class_name} {a.repr_name}"
    ]
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    assert killed
    for window in windows:
        captioned += window
    assert sorted(captioned) == [alone[1], alone[3], *alone[5:]]


def test_a_reader_that_stops_early_stops_the_actors(
    ray_local: ConnectedRay, folder: Path, model: TrainedModel
) -> None:
    windows = _caption_windows([str(folder / "icons")], DrawingsConfig(), model, 0, ())
    assert next(windows)
    assert any("StreamingExecutor" in thread.name for thread in threading.enumerate())
    windows.close()
    assert not any("StreamingExecutor" in thread.name for thread in threading.enumerate())


def test_the_command_continues_a_run_of_one_process_on_the_cluster(
    ray_local: ConnectedRay, folder: Path, model: TrainedModel, alone: list[CaptionedDrawing]
) -> None:
    out = folder / "captions.jsonl"
    relative = [drawing._replace(source="icons") for drawing in alone]
    with Journal(out, _describe_run(["icons"], model, Path(model.adapter))) as journal:
        journal.append([*relative[4:7], *relative[:3], relative[8]])
    arguments = ["caption", "icons", "--model", model.adapter, "--out", str(out)]
    arguments.append("scaling.num_workers=2")
    done = subprocess.run(  # the fixture set RAY_ADDRESS
        [sys.executable, "-m", "app", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "7 drawings are done already" in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["refused"] == {"not_xml": 6}
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [CaptionedDrawing(i, **line) for i, line in enumerate(lines)] == relative


def test_an_error_of_the_user_is_the_last_window(folder: Path, model: TrainedModel) -> None:
    (folder / "cut.jsonl").write_text('{"id": "1", "svg": "<svg/>"}\n{"id": ')
    rows = [*_read_windows(str(folder), ["cut.jsonl"], DrawingsConfig(), 0, (), 1)]
    error = pickle.loads(rows[-1][COLUMN][0].as_py())
    assert isinstance(error, DataError)
    assert "cut.jsonl" in str(error)
    row = {COLUMN: pickle.dumps(error)}
    assert WindowCaptioner(model)(row) == [row]


def test_a_node_without_the_adapter_is_named(model: TrainedModel, tmp_path: Path) -> None:
    moved = TrainedModel("moved", str(tmp_path / "moved"), 1, model.config)
    with pytest.raises(UserError, match=r"no folder .*moved: put the model into a folder"):
        WindowCaptioner(moved)._captioner  # noqa: B018
