"""Record of a campaign on its storage: the trials, their reports and how they ended.

A campaign whose driver was killed continues from it. Ray Tune's own state does not suffice: it is
written every few seconds, and the scheduler is not in it.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

import pyarrow.fs

from tune.outcome import Status


@dataclass
class TrialRecord:
    """One trial, as far as its driver has seen it."""

    trial_id: str
    overrides: dict[str, Any]
    reports: list[tuple[int, float]] = field(default_factory=list)
    """(step, eval_loss) of each evaluation, in order of the steps."""
    checkpoint: str | None = None
    """Newest checkpoint: a path of the storage."""
    best_checkpoint: str | None = None
    """Checkpoint with the lowest loss."""
    status: Status | None = None
    """None: the trial has not ended."""
    error: str | None = None


class CampaignRecord:
    """Records of all trials, one JSON file a trial in one folder."""

    def __init__(self, filesystem: pyarrow.fs.FileSystem, folder: str) -> None:
        """Read the records of an earlier driver, if there are any."""
        self._filesystem, self._folder = filesystem, folder
        filesystem.create_dir(folder, recursive=True)
        files = filesystem.get_file_info(pyarrow.fs.FileSelector(folder))
        self.trials = {
            file.base_name.removesuffix(".json"): self._read(file.path)
            for file in sorted(files, key=lambda file: file.base_name)
            if file.base_name.endswith(".json")
        }

    def write(self, trial: TrialRecord) -> None:
        """Write the record of one trial, replacing its file atomically."""
        self.trials[trial.trial_id] = trial
        path = f"{self._folder}/{trial.trial_id}.json"
        with self._filesystem.open_output_stream(f"{path}.tmp") as stream:
            stream.write(json.dumps(dataclasses.asdict(trial), indent=2).encode())
        self._filesystem.move(f"{path}.tmp", path)

    def _read(self, path: str) -> TrialRecord:
        with self._filesystem.open_input_stream(path) as stream:
            values = json.loads(stream.read())
        reports = [(step, loss) for step, loss in values.pop("reports")]
        return TrialRecord(**values, reports=reports)
