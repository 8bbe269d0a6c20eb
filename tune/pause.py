"""ASHA that pauses trials, and continues the best of them from their checkpoints."""

import math
from collections.abc import Callable
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from tune.keys import FAILURE_KEY, FINISHED_KEY, METRIC_KEY, STEP_KEY


def list_rungs(first: float, factor: float, last: float) -> list[float]:
    """Return first, first · factor, first · factor² … up to `last`.

    >>> list_rungs(10, 3, 100)
    [10, 30, 90]
    """
    rungs = [first]
    while rungs[-1] * factor <= last:
        rungs.append(rungs[-1] * factor)
    return rungs


class PausingAsha(FIFOScheduler):
    """Asynchronous successive halving with promotions (Li et al. 2020, arXiv:1810.05934).

    A trial pauses at each rung, unless it is already among the best 1/factor of that rung. Of the
    paused trials, the best one of the highest rung that has earned a promotion continues from its
    checkpoint; if there is none, a new trial starts. Ray's ASHA stops a trial for good at a rung
    that only few trials have reached, and a good trial with them.

    When no trial can start or is running, the best trial of the highest rung continues to the last
    step, unless a trial has finished. The other trials then end.
    """

    _supports_buffered_results = False

    def __init__(self, rungs: list[float], factor: float, grace: Callable[[Trial], int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._factor = factor
        self._grace = grace
        self._losses: dict[float, dict[str, float]] = {rung: {} for rung in rungs}  # by trial id
        self._has_finished = False

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Record the loss of a trial at its rung, and pause it there."""
        grace, step = self._grace(trial), result[STEP_KEY]
        reached = [rung for rung in self._losses if grace <= rung <= step]
        if not reached or trial.trial_id in self._losses[reached[-1]]:
            return TrialScheduler.CONTINUE

        loss = result[METRIC_KEY]
        self._losses[reached[-1]][trial.trial_id] = loss if math.isfinite(loss) else math.inf
        is_promoted = trial.trial_id in self._list_best(reached[-1])
        return TrialScheduler.CONTINUE if is_promoted else TrialScheduler.PAUSE

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Forget a failed trial, so that it takes no other trial's place."""
        for losses in self._losses.values():
            losses.pop(trial.trial_id, None)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Note that a trial has reached its last step, or forget a failed one."""
        self._has_finished |= bool(result.get(FINISHED_KEY))
        if FAILURE_KEY in result:
            self.on_trial_error(tune_controller, trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Return the trial to start or to continue; end the paused trials at the end."""
        trials: dict[str, Trial] = {trial.trial_id: trial for trial in tune_controller.get_trials()}
        paused = {key: trial for key, trial in trials.items() if trial.status == Trial.PAUSED}
        for rung in reversed(self._losses):
            for trial_id in self._list_best(rung):
                if trial_id in paused and self._get_rung(trial_id) == rung:
                    return paused[trial_id]

        pending = [trial for trial in trials.values() if trial.status == Trial.PENDING]
        if pending:
            return pending[0]
        is_active = any(trial.status == Trial.RUNNING for trial in trials.values())
        if is_active or not tune_controller.search_alg.is_finished():
            return None

        # the end: no trial can start, and none has earned a promotion
        best = self._find_best_paused(paused)
        if best is not None and not self._has_finished:
            return best
        for trial in paused.values():
            tune_controller.stop_trial(trial)
        return None

    def _find_best_paused(self, paused: dict[str, Trial]) -> Trial | None:
        """Return the trial with the lowest loss of the highest rung with paused trials."""
        for losses in reversed(self._losses.values()):
            finite = [key for key in paused if math.isfinite(losses.get(key, math.inf))]
            if finite:
                return paused[min(finite, key=lambda key: losses[key])]
        return None

    def _list_best(self, rung: float) -> list[str]:
        """Return the ids of the best 1/factor trials of a rung, the best first."""
        losses = self._losses[rung]
        ranked = sorted(losses, key=lambda trial_id: losses[trial_id])
        best = ranked[: int(len(ranked) / self._factor)]
        return [trial_id for trial_id in best if math.isfinite(losses[trial_id])]

    def _get_rung(self, trial_id: str) -> float:
        """Return the highest rung that a trial has reached."""
        return max(rung for rung, losses in self._losses.items() if trial_id in losses)
