"""Budgets that end a search before all of its trials have run."""

import math
import time
from collections.abc import Callable
from typing import Any

from ray.tune import Callback, Stopper
from ray.tune.experiment import Trial

from tune.config import SearchConfig
from tune.keys import FAILURE_KEY, METRIC_KEY, STEP_KEY


class Budget(Callback, Stopper):
    """Count what a search uses, and end it when a budget is spent.

    Give the same object to Tune as a callback, which counts, and as the stopper, which ends all
    trials. The counts survive a restart of the search, as the state of a callback.
    """

    def __init__(
        self,
        config: SearchConfig,
        *,
        gpus_per_trial: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spent: str | None = None
        """The budget that ended the search, in words; None while there is none."""
        self._config = config
        self._gpus_per_trial = gpus_per_trial
        self._clock = clock
        self._last_time = clock()
        self._hours = 0.0
        self._gpu_hours = 0.0
        self._num_steps = 0
        self._last_steps: dict[str, int] = {}  # by trial id
        self._best_loss = math.inf
        self._num_since_gain = 0
        self._has_gain = False  # the best loss fell since the last trial ended

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return False: no single trial is stopped."""
        return False

    def stop_all(self) -> bool:
        """Return True when a budget is spent."""
        return self.spent is not None

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Count the time since the last call, then compare the counts with the budgets."""
        now = self._clock()
        hours = (now - self._last_time) / 3600
        self._last_time = now
        self._hours += hours
        num_running = sum(trial.status == Trial.RUNNING for trial in trials)
        self._gpu_hours += hours * num_running * self._gpus_per_trial
        self.spent = self.spent or self._find_spent()

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Count the steps since the trial's last report."""
        step, last_step = result[STEP_KEY], self._last_steps.get(trial.trial_id, 0)
        self._num_steps += max(0, step - last_step)
        self._last_steps[trial.trial_id] = step
        if result[METRIC_KEY] < self._best_loss:
            self._best_loss, self._has_gain = result[METRIC_KEY], True

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Count an ended trial; a failed one tells nothing about the space."""
        if FAILURE_KEY in trial.last_result:
            return
        self._num_since_gain = 0 if self._has_gain else self._num_since_gain + 1
        self._has_gain = False

    def get_state(self) -> dict[str, Any]:
        """Return the hours; a search that continues repeats its reports, which count the rest."""
        return {key: value for key, value in vars(self).items() if key in _COUNTS}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from the counts of `get_state`."""
        vars(self).update(state)

    def _find_spent(self) -> str | None:
        config = self._config
        budgets: tuple[tuple[str, float, float | None], ...] = (
            ("max_total_steps", self._num_steps, config.max_total_steps),
            ("max_hours", self._hours, config.max_hours),
            ("max_gpu_hours", self._gpu_hours, config.max_gpu_hours),
            ("patience", self._num_since_gain, config.patience),
        )
        for name, used, limit in budgets:
            if limit is not None and used >= limit:
                return f"search.{name}={limit:g} is spent"
        return None


_COUNTS = ("_hours", "_gpu_hours")
