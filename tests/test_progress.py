"""Record of a running search: a killed driver always leaves a checkpoint to continue from."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.fs
import pytest

from tune.budget import Budget
from tune.config import SearchConfig
from tune.keys import METRIC_KEY, OVERRIDES_KEY, STEP_KEY
from tune.progress import Progress
from tune.record import CampaignRecord
from tune.trial_table import TrialTable


class Search:
    """One trial whose driver makes a checkpoint after each evaluation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        config = SearchConfig(space={"lora.rank": {"choice": [4]}})
        record = CampaignRecord(pyarrow.fs.LocalFileSystem(), str(folder))
        self.progress = Progress(config, record, Budget(config), TrialTable(1, 9), None)
        self.trial: Any = SimpleNamespace(trial_id="0000", config={OVERRIDES_KEY: {}})
        self.progress.on_trial_start(0, [], self.trial)

    def report(self, step: int, loss: float) -> None:
        """Report an evaluation."""
        self.trial.last_result = {STEP_KEY: step, METRIC_KEY: loss}
        self.progress.on_trial_result(0, [], self.trial, self.trial.last_result)

    def save(self) -> None:
        """Write a checkpoint of the last evaluation, and report it as Tune does."""
        step = self.trial.last_result[STEP_KEY]
        checkpoint = self.folder / "trial_0000" / f"checkpoint_{step}"
        checkpoint.mkdir(parents=True)
        self.progress.on_checkpoint(0, [], self.trial, SimpleNamespace(path=str(checkpoint)))

    def list_checkpoints(self) -> list[str]:
        """Return the checkpoints that are left."""
        return sorted(path.name for path in (self.folder / "trial_0000").iterdir())


def test_the_newest_and_the_best_checkpoint_are_kept(tmp_path: Path) -> None:
    search = Search(tmp_path)
    kept = []
    for step, loss in ((2, 5.0), (4, 3.0), (6, 4.0), (8, 3.5), (9, 2.0)):
        search.report(step, loss)
        search.save()
        kept.append([int(name.partition("_")[2]) for name in search.list_checkpoints()])
    assert kept == [[2], [4], [4, 6], [4, 8], [9]]


def test_a_checkpoint_is_not_deleted_before_the_record_names_the_next_one(tmp_path: Path) -> None:
    search = Search(tmp_path)
    search.report(2, 5.0)
    search.save()
    search.report(4, 3.0)
    obstacle = tmp_path / "record" / "0000.json.tmp"
    obstacle.mkdir()  # the record cannot be written: the driver ends here
    with pytest.raises(OSError, match="directory"):
        search.save()
    obstacle.rmdir()
    assert "checkpoint_2" in search.list_checkpoints()
    record = CampaignRecord(pyarrow.fs.LocalFileSystem(), str(tmp_path)).trials["0000"]
    assert record.checkpoint == "trial_0000/checkpoint_2"
