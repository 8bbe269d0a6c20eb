"""Record of a campaign on its storage: the trials, their reports and how they ended.

A campaign whose driver was killed continues from it. Ray Tune's own state does not suffice: it is
written every few seconds, and the scheduler is not in it.
"""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow.fs

from tune.outcome import State

_BUDGET_FILE = "budget.json"


@dataclass
class TrialRecord:
    """One trial, as far as its driver has seen it."""

    trial_id: str
    overrides: dict[str, Any]
    reports: list[tuple[int, float]] = field(default_factory=list)
    """(step, eval_loss) of each evaluation, in order of the steps."""
    checkpoint: str | None = None
    """Newest checkpoint: a path below the folder of the campaign."""
    best_checkpoint: str | None = None
    """Checkpoint with the lowest loss."""
    state: State | None = None
    """None: the trial has not ended."""
    error: str | None = None


class CampaignRecord:
    """Records of all trials, one JSON file a trial in the folder `record` of the campaign."""

    def __init__(self, filesystem: pyarrow.fs.FileSystem, root: str) -> None:
        """Read the records of an earlier driver, if there are any."""
        self.filesystem, self.root = filesystem, root
        self._folder = folder = f"{root}/record"
        filesystem.create_dir(folder, recursive=True)
        files = filesystem.get_file_info(pyarrow.fs.FileSelector(folder))
        self.trials = {
            file.base_name.removesuffix(".json"): self._read(file.path)
            for file in sorted(files, key=lambda file: file.base_name)
            if file.base_name.endswith(".json") and file.base_name != _BUDGET_FILE
        }
        has_budget = any(file.base_name == _BUDGET_FILE for file in files)
        self.budget = self._read_json(f"{folder}/{_BUDGET_FILE}") if has_budget else {}
        """State of the budget, as it was last written."""

    def write(self, trial: TrialRecord) -> None:
        """Write the record of one trial, replacing its file atomically."""
        self.trials[trial.trial_id] = trial
        self._write_json(f"{trial.trial_id}.json", dataclasses.asdict(trial))

    def write_budget(self, state: dict[str, Any]) -> None:
        """Write the state of the budget."""
        self._write_json(_BUDGET_FILE, state)

    def delete_checkpoints(self, keep: str | None) -> None:
        """Delete the checkpoints of all trials that have ended, except those of the trial `keep`.

        Only folders that the records name are deleted, so a folder is never deleted twice.
        """
        for trial in self.trials.values():
            folders = {
                path.partition("/")[0] for path in (trial.checkpoint, trial.best_checkpoint) if path
            }
            if trial.state is None or trial.trial_id == keep or not folders:
                continue
            trial.checkpoint = trial.best_checkpoint = None
            self.write(trial)
            self.delete_folders(folders)

    def delete_folders(self, folders: Iterable[str]) -> None:
        """Delete folders of checkpoints, given by their paths below the folder of the campaign."""
        for folder in folders:
            path = f"{self.root}/{folder}"
            if self.filesystem.get_file_info(path).type == pyarrow.fs.FileType.Directory:
                self.filesystem.delete_dir(path)

    def _write_json(self, name: str, value: dict[str, Any]) -> None:
        path = f"{self._folder}/{name}"
        with self.filesystem.open_output_stream(f"{path}.tmp") as stream:
            stream.write(json.dumps(value, indent=2).encode())
        self.filesystem.move(f"{path}.tmp", path)

    def _read_json(self, path: str) -> dict[str, Any]:
        with self.filesystem.open_input_stream(path) as stream:
            value: dict[str, Any] = json.loads(stream.read())
        return value

    def _read(self, path: str) -> TrialRecord:
        values = self._read_json(path)
        reports = [(step, loss) for step, loss in values.pop("reports")]
        return TrialRecord(**values, reports=reports)
