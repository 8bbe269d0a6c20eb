"""Follow the trials of a search: record them, and print how each one ends."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.tune
from ray.tune.experiment import Trial

from tune.budget import Budget
from tune.config import SearchConfig
from tune.keys import (
    FAILURE_KEY,
    FINISHED_KEY,
    METRIC_KEY,
    OVERRIDES_KEY,
    PROGRESS_KEY,
    STEP_KEY,
)
from tune.outcome import State, TrialOutcome, format_outcome
from tune.record import CampaignRecord, TrialRecord
from tune.search_algorithm import count_trials
from tune.trial_table import TrialTable


class Progress(ray.tune.Callback):
    """Record the reports of all trials, and print the outcome of each trial in one line."""

    def __init__(
        self,
        config: SearchConfig,
        record: CampaignRecord,
        budget: Budget,
        table: TrialTable,
        on_trial_end: Callable[[TrialOutcome], None] | None,
    ) -> None:
        """Continue the record of an earlier driver, if there is one."""
        self.outcomes: list[TrialOutcome] = []
        self._num_trials = count_trials(config)
        self._keep_checkpoints = config.scheduler == "pbt"  # other trials may need them
        self._record = record
        self._budget = budget
        self._table = table
        self._on_trial_end = on_trial_end
        self._running: set[str] = set()

        budget.set_state(record.budget)
        if record.trials:
            num_ended = sum(trial.state is not None for trial in record.trials.values())
            print(
                f"the search continues: {num_ended} of {self._num_trials} trials have ended",
                flush=True,
            )

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks to restore a search later. A search continues from its record
        # instead, and on_trial_end may hold a tracking client, which cannot be pickled.
        return {**self.__dict__, "_on_trial_end": None}

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        name = trial.trial_id
        self._running.add(name)
        self._table.start(name, trial.config[OVERRIDES_KEY])
        if name not in self._record.trials:
            self._record.write(TrialRecord(name, trial.config[OVERRIDES_KEY]))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        record = self._record.trials[trial.trial_id]
        step = result[STEP_KEY]
        self._table.report(trial.trial_id, step, result[METRIC_KEY], result.get(PROGRESS_KEY))
        # a continued or restarted trial repeats reports
        if FAILURE_KEY not in result and (not record.reports or step > record.reports[-1][0]):
            record.reports.append((step, result[METRIC_KEY]))
            record.overrides = trial.config[OVERRIDES_KEY]
            self._record.write(record)
            self._record.write_budget(self._budget.get_state())

    def on_checkpoint(
        self, iteration: int, trials: list[Trial], trial: Trial, checkpoint: Any, **info: Any
    ) -> None:
        record = self._record.trials[trial.trial_id]
        step, loss = trial.last_result[STEP_KEY], trial.last_result[METRIC_KEY]
        if not record.reports or record.reports[-1] != (step, loss) or record.state is not None:
            return  # of a repeated report
        before = {path for path in (record.checkpoint, record.best_checkpoint) if path}
        record.checkpoint = checkpoint.path.removeprefix(f"{self._record.root}/")
        if loss <= min((loss for step, loss in record.reports if step > 0), default=math.inf):
            record.best_checkpoint = record.checkpoint
        self._record.write(record)

        # Tune would delete the old checkpoint before the record names the new one: a search that is
        # killed in between could not continue the trial.
        if not self._keep_checkpoints:
            self._record.delete_folders(before - {record.checkpoint, record.best_checkpoint})

    def on_trial_recover(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        reason = _read_last_line(trial.error_file)
        print(f"trial {trial.trial_id} starts again from its checkpoint: {reason}", flush=True)

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        failure = trial.last_result.get(FAILURE_KEY)
        if failure is not None:
            self._end(trial.trial_id, "failed", failure)
        else:
            is_finished = trial.last_result.get(FINISHED_KEY)
            self._end(trial.trial_id, "finished" if is_finished else "pruned")

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._end(trial.trial_id, "failed", _read_last_line(trial.error_file))

    def interrupt_running(self, reason: str | None = None) -> None:
        """End the running trials as interrupted. Their records stay open: they can continue."""
        for name in sorted(self._running):
            self._end(name, "interrupted", reason)

    def _end(self, name: str, state: State, error: str | None = None) -> None:
        self._running.discard(name)
        record = self._record.trials[name]
        has_ended = record.state is not None  # before this search continued
        outcome = make_outcome(record, record.state or state, record.error if has_ended else error)
        self.outcomes.append(outcome)
        self._table.end(name, outcome.state)
        if has_ended:
            return

        num_left = self._num_trials - len(self.outcomes)
        print(f"{format_outcome(outcome)}; {num_left} left", flush=True)
        if self._on_trial_end is not None:
            self._on_trial_end(outcome)
        if state != "interrupted":
            record.state, record.error = state, error
            self._record.write(record)
            if not self._keep_checkpoints:
                self._delete_checkpoints()

    def _delete_checkpoints(self) -> None:
        """Keep the checkpoints of the best trial that has ended, and of those that have not."""
        measured = [
            outcome
            for outcome in self.outcomes
            if outcome.state != "failed" and outcome.eval_loss is not None
        ]
        best = min(measured, key=lambda outcome: outcome.eval_loss or 0.0, default=None)
        self._record.delete_checkpoints(None if best is None else best.trial_id)


def make_outcome(record: TrialRecord, state: State, error: str | None) -> TrialOutcome:
    """Return the outcome of a trial from the reports in its record."""
    losses = [loss for _, loss in record.reports if math.isfinite(loss)]
    return TrialOutcome(
        trial_id=record.trial_id,
        overrides=record.overrides,
        state=state,
        step=record.reports[-1][0] if record.reports else 0,
        eval_loss=min(losses, default=None),
        error=error,
    )


def _read_last_line(error_file: str) -> str:
    """Return the last line of a traceback, which names the error."""
    return Path(error_file).read_text(encoding="utf-8").strip().splitlines()[-1].strip()
