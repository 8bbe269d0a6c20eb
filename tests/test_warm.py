"""A warm trial of Tune without Tune: reports, recorded reports, checkpoints and failures."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow.fs import LocalFileSystem
from ray.tune.result import TRIAL_INFO

from tune.errors import TrialFailed
from tune.record import CampaignRecord, TrialRecord
from tune.warm import Evaluation, WarmTrials, build_warm_trainable

LAST_STEP = 4


class CountingWorker:
    """Trains a trial whose loss is x / (1 + step); it counts the trials that it has started."""

    num_made = 0

    def __init__(self) -> None:
        type(self).num_made += 1
        self.started: list[tuple[str, int]] = []  # (trial id, first step)

    def start(self, overrides: Any, trial_id: str, folder: Path | None) -> Iterator[Evaluation]:
        first = -1 if folder is None else json.loads((folder / "step").read_text())
        self.started.append((trial_id, first + 1))
        if overrides["x"] < 0:
            raise TrialFailed(f"x is {overrides['x']}")
        return self._train(overrides["x"], first + 1)

    def _train(self, x: float, first: int) -> Iterator[Evaluation]:
        for self.step in range(first, LAST_STEP + 1):
            if x == 0 and self.step == 2:
                raise TrialFailed("x is 0")
            yield Evaluation(self.step, x / (1 + self.step), self.step == LAST_STEP)

    def save(self, folder: Path) -> None:
        (folder / "step").write_text(json.dumps(self.step))


class TrialInfo:
    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


def make(records: dict[str, TrialRecord], x: float, trial_id: str) -> Any:
    campaign = CampaignRecord(LocalFileSystem(), str(Path.cwd()))
    trainable = build_warm_trainable(WarmTrials(CountingWorker, {"CPU": 1.0}), records, campaign)
    return trainable({"overrides": {"x": x}, TRIAL_INFO: TrialInfo(trial_id)})


def run(trainable: Any) -> list[dict[str, Any]]:
    """The reports of a trial to its end."""
    keys = ("step", "eval_loss", "done", "finished", "failure", "should_checkpoint")
    reports = []
    while not reports or not reports[-1]["done"]:
        report = trainable.step()
        reports.append({key: report[key] for key in keys if key in report})
    return reports


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tune makes folders for a trial without a storage."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ray.tune.trainable.trainable.DEFAULT_STORAGE_PATH", str(tmp_path))


def test_one_worker_runs_one_trial_after_another() -> None:
    CountingWorker.num_made = 0
    trainable = make({}, 1.0, "0000")
    first = run(trainable)
    assert [report["step"] for report in first] == [0, 1, 2, 3, 4]
    assert [report["should_checkpoint"] for report in first] == [False, True, True, True, True]
    assert first[-1]["finished"]

    assert trainable.reset({"overrides": {"x": 2.0}, TRIAL_INFO: TrialInfo("0001")})
    assert [report["eval_loss"] for report in run(trainable)] == [2.0, 1.0, 2 / 3, 0.5, 0.4]
    assert CountingWorker.num_made == 1
    assert trainable._worker.started == [("0000", 0), ("0001", 0)]


@pytest.mark.parametrize(("x", "steps"), [(-1.0, [0]), (0.0, [0, 1, 1])])
def test_a_failed_trial_reports_its_reason_and_no_loss(x: float, steps: list[int]) -> None:
    trainable = make({}, x, "0000")
    reports = run(trainable)
    assert [report["step"] for report in reports] == steps
    assert reports[-1]["failure"] == f"x is {x:g}" if x == 0 else f"x is {x}"
    assert math.isnan(reports[-1]["eval_loss"])

    trainable.reset({"overrides": {"x": 1.0}, TRIAL_INFO: TrialInfo("0001")})
    assert run(trainable)[-1]["finished"]


def test_a_recorded_trial_repeats_its_reports_and_goes_on_from_its_checkpoint(
    tmp_path: Path,
) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "step").write_text("1")
    record = TrialRecord("0000", {"x": 1.0}, [(0, 1.0), (1, 0.5), (2, 1 / 3)], "saved")
    trainable = make({"0000": record}, 1.0, "0000")
    assert [trainable.step()["step"] for _ in range(3)] == [0, 1, 2]
    assert trainable._worker is None  # nothing was loaded

    rest = run(trainable)
    assert [report["step"] for report in rest] == [3, 4]
    assert trainable._worker.started == [("0000", 2)]


@pytest.mark.parametrize("state", ["finished", "pruned", "failed"])
def test_a_trial_that_has_ended_repeats_its_reports_and_trains_nothing(state: Any) -> None:
    record = TrialRecord("0000", {"x": 1.0}, [(0, 1.0), (1, 0.5)], state=state)
    trainable = make({"0000": record}, 1.0, "0000")
    reports = run(trainable)
    assert [report["step"] for report in reports] == [0, 1, 1]
    assert reports[-1]["finished"] == (state == "finished")
    assert trainable._worker is None


def test_a_paused_trial_continues_while_it_repeats_and_after_it(tmp_path: Path) -> None:
    record = TrialRecord("0000", {"x": 1.0}, [(0, 1.0), (1, 0.5)])
    (tmp_path / "early").mkdir()
    (tmp_path / "late").mkdir()
    trainable = make({"0000": record}, 1.0, "0000")
    trainable.step()
    trainable.save_checkpoint(str(tmp_path / "early"))

    other = make({"0000": record}, 1.0, "0000")
    other.load_checkpoint(str(tmp_path / "early"))
    assert [other.step()["step"] for _ in range(3)] == [1, 2, 3]
    other.save_checkpoint(str(tmp_path / "late"))

    last = make({"0000": record}, 1.0, "0000")
    last.load_checkpoint(str(tmp_path / "late"))
    assert [report["step"] for report in run(last)] == [4]


def test_the_record_of_a_campaign_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = str(tmp_path / "campaign")
    campaign = CampaignRecord(LocalFileSystem(), folder)
    assert (campaign.trials, campaign.budget) == ({}, {})
    records = [
        TrialRecord("0000", {"a.b": 1e-3, "c": "d"}, [(0, 2.5), (4, math.inf)], "p", "q"),
        TrialRecord("0001", {}, state="failed", error="reason"),
    ]
    for record in records:
        campaign.write(record)
    campaign.write_budget({"_hours": 0.5})
    again = CampaignRecord(LocalFileSystem(), folder)
    assert list(again.trials.values()) == records
    assert again.budget == {"_hours": 0.5}


def test_only_the_best_ended_trial_and_those_that_run_keep_their_checkpoints(
    tmp_path: Path,
) -> None:
    campaign = CampaignRecord(LocalFileSystem(), str(tmp_path))
    for name, state in (("best", "finished"), ("worse", "pruned"), ("running", None)):
        for number in (1, 2):
            (tmp_path / name / f"checkpoint_{number}").mkdir(parents=True)
        checkpoints = f"{name}/checkpoint_2", f"{name}/checkpoint_1"
        campaign.write(TrialRecord(name, {}, [], *checkpoints, state=state))
    (tmp_path / "other").mkdir()
    campaign.delete_checkpoints("best")
    campaign.delete_checkpoints("best")
    assert {path.name for path in tmp_path.iterdir()} == {"best", "running", "other", "record"}
    again = CampaignRecord(LocalFileSystem(), str(tmp_path)).trials
    assert (again["worse"].checkpoint, again["best"].checkpoint) == (None, "best/checkpoint_2")
