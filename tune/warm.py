"""Warm trials: one process runs one trial after another, and keeps all that they share."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow.fs
import ray.tune
from ray.tune.result import DONE, SHOULD_CHECKPOINT

from tune.errors import TrialFailed
from tune.keys import (
    FAILURE_KEY,
    FINISHED_KEY,
    METRIC_KEY,
    OVERRIDES_KEY,
    PROGRESS_KEY,
    STEP_KEY,
)
from tune.record import CampaignRecord, TrialRecord

_REPLAY_FILE = "replay.json"


class Evaluation(NamedTuple):
    """One evaluation of a trial."""

    step: int
    loss: float
    is_last: bool
    """True if the trial has ended with it. The trial has also ended if there is no next one."""
    progress: float | None = None
    """Share of the trial that is done, in [0, 1]; None: it is not known."""


class TrialWorker(Protocol):
    """Process that trains trials, one after another."""

    def start(
        self, overrides: Mapping[str, Any], trial_id: str, folder: Path | None
    ) -> Iterator[Evaluation]:
        """End the trial before, and start this one, from the checkpoint in a folder if it is given.

        Each turn of the iterator trains to the next evaluation. Both raise TrialFailed if a restart
        would fail again.
        """

    def save(self, folder: Path) -> None:
        """Write a checkpoint of the last evaluation into a folder."""


@dataclass(frozen=True)
class WarmTrials:
    """How warm trials are run."""

    make_worker: Callable[[], TrialWorker]
    """It is called in each process, so it must be picklable."""
    resources: Mapping[str, float]
    """Resources of one process, such as {"CPU": 1, "GPU": 0.5}."""
    max_failures: int = 0
    """Number of restarts of a trial whose process dies, from its newest checkpoint."""


class WarmTrainable(ray.tune.Trainable):
    """One trial after another in the actor of Tune, each from its record."""

    warm: WarmTrials
    records: Mapping[str, TrialRecord]
    """Records of an earlier driver."""
    filesystem: pyarrow.fs.FileSystem
    """Storage of the recorded checkpoints."""
    root: str
    """Folder of the campaign."""

    _worker: TrialWorker | None = None

    def setup(self, config: dict[str, Any]) -> None:
        """Take a trial over; it starts at its first step."""
        self._overrides = config[OVERRIDES_KEY]
        self._record = self.records.get(self.trial_id) or TrialRecord(self.trial_id, {})
        self._num_replayed = 0
        self._last = Evaluation(0, math.nan, is_last=False)
        self._evaluations: Iterator[Evaluation] | None = None
        self._failure: str | None = None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial over."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train to the next evaluation, or repeat a recorded one."""
        if self._failure is None and self._num_replayed < len(self._record.reports):
            self._last = Evaluation(*self._record.reports[self._num_replayed], is_last=False)
            self._num_replayed += 1
            return self._report()
        if self._record.state is not None:
            is_finished = self._record.state == "finished"
            return self._report(ended=True) | {FINISHED_KEY: is_finished}

        try:
            if self._evaluations is None:
                self._start(None)
            if self._failure is not None:
                raise TrialFailed(self._failure)
            assert self._evaluations is not None
            self._last = next(self._evaluations)
        except StopIteration:
            return self._report(ended=True) | {FINISHED_KEY: True}
        except TrialFailed as error:
            self._last = self._last._replace(loss=math.nan)
            return self._report(ended=True) | {FAILURE_KEY: str(error)}
        is_last, save = self._last.is_last, self._can_save()
        return self._report(ended=is_last) | {FINISHED_KEY: is_last, SHOULD_CHECKPOINT: save}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save the trial, or the number of reports that it has repeated."""
        if self._evaluations is None:
            text = json.dumps(self._num_replayed)
            Path(checkpoint_dir, _REPLAY_FILE).write_text(text)
        elif self._can_save():
            assert self._worker is not None
            self._worker.save(Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Continue at what `save_checkpoint` wrote, also if another trial wrote it."""
        replay = Path(checkpoint, _REPLAY_FILE)
        if replay.is_file():
            self._num_replayed = json.loads(replay.read_text())
        else:
            self._num_replayed = len(self._record.reports)
            self._start(Path(checkpoint) if any(Path(checkpoint).iterdir()) else None)

    def cleanup(self) -> None:
        """Forget the worker."""
        self._evaluations = self._worker = None

    def _start(self, folder: Path | None) -> None:
        """Start training from a checkpoint of Tune, or else from the recorded one."""
        self._worker = self._worker or self.warm.make_worker()
        start, reports = self._worker.start, self._record.reports
        # pbt may have changed the values, and started the trial again
        recorded = self._record.checkpoint if self._record.overrides == self._overrides else None
        try:
            if folder is not None or recorded is None:
                evaluations = start(self._overrides, self.trial_id, folder)
            else:
                saved = ray.tune.Checkpoint(f"{self.root}/{recorded}", self.filesystem)
                with saved.as_directory() as name:
                    evaluations = start(self._overrides, self.trial_id, Path(name))
        except TrialFailed as error:
            self._failure = str(error)
            return
        # reports after the recorded checkpoint are made again, but reported once
        reported = reports[-1][0] if reports and folder is None else -1
        self._evaluations = (one for one in evaluations if one.step > reported)

    def _can_save(self) -> bool:
        return self._last.step > 0 and math.isfinite(self._last.loss)

    def _report(self, *, ended: bool = False) -> dict[str, Any]:
        step, loss, _, progress = self._last
        return {STEP_KEY: step, METRIC_KEY: loss, PROGRESS_KEY: progress, DONE: ended}


def build_warm_trainable(
    warm: WarmTrials, records: Mapping[str, TrialRecord], record: CampaignRecord
) -> type[ray.tune.Trainable]:
    """Return the class that Tune runs. Its actor is the process of the trials.

    A recorded trial first repeats its reports, so that the scheduler sees all of them. An ended one
    does nothing else, and loads no model.
    """

    class WarmTrialsOfSearch(WarmTrainable):
        pass

    bound = WarmTrialsOfSearch
    bound.warm, bound.records = warm, records
    bound.filesystem, bound.root = record.filesystem, record.root
    return bound
