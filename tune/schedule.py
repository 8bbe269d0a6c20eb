"""Schedulers: they end bad trials early, or let trials continue from checkpoints."""

from collections.abc import Callable, Collection
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule, TrialScheduler

from tune.config import SearchConfig
from tune.keys import METRIC_KEY, OVERRIDES_KEY, STEP_KEY
from tune.pause import PausingAsha, list_rungs
from tune.population import Population
from tune.space import Overrides

Grace = Callable[[Trial], int]
"""Return the optimizer steps of a trial before which it is not judged."""


def build_scheduler(
    config: SearchConfig,
    trial_steps: int,
    *,
    count_warmup_steps: Callable[[Overrides], int] = lambda _overrides: 0,
    pinned_paths: Collection[str] = (),
) -> TrialScheduler | None:
    """Return the scheduler of a search of trials of `trial_steps` optimizer steps, None for none.

    No scheduler judges a trial before the end of its warm-up, or at its last step, at which it has
    finished. `count_warmup_steps(overrides)` returns the warm-up of a trial. A trial cannot
    continue from a checkpoint with other values of `pinned_paths`.
    """
    if config.scheduler == "none" or config.grace_steps >= trial_steps:
        return None

    def grace(trial: Trial) -> int:
        return max(config.grace_steps, count_warmup_steps(trial.config[OVERRIDES_KEY]))

    rungs = list_rungs(config.grace_steps, config.reduction_factor, trial_steps - 1)
    match config.scheduler:
        case "asha":
            return _Asha(grace, config, rungs, trial_steps)
        case "asha_pause":
            return PausingAsha(rungs, config.reduction_factor, grace)
        case "median":
            return _Median(grace, config, trial_steps)
        case "pbt":
            return Population(
                config.space,
                interval_steps=config.grace_steps,
                trial_steps=trial_steps,
                grace=grace,
                pinned_paths=pinned_paths,
                seed=config.seed,
            )


class _Asha(ASHAScheduler):
    """ASHA whose first rung for a trial is the first one after the trial's own warm-up."""

    def __init__(
        self, grace: Grace, config: SearchConfig, rungs: list[float], trial_steps: int
    ) -> None:
        super().__init__(
            time_attr=STEP_KEY,
            metric=METRIC_KEY,
            mode="min",
            max_t=trial_steps,
            grace_period=config.grace_steps,
            reduction_factor=config.reduction_factor,
            stop_last_trials=False,
        )
        self._grace = grace
        self._rungs = rungs
        self._trial_steps = trial_steps

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Judge a trial at its rungs."""
        grace = self._grace(trial)
        first_rung = next((rung for rung in self._rungs if rung >= grace), self._trial_steps)
        if first_rung <= result[STEP_KEY] < self._trial_steps:
            return super().on_trial_result(tune_controller, trial, result)
        return TrialScheduler.CONTINUE


class _Median(MedianStoppingRule):
    """The median stopping rule with each trial's own grace."""

    def __init__(self, grace: Grace, config: SearchConfig, trial_steps: int) -> None:
        super().__init__(
            time_attr=STEP_KEY,
            metric=METRIC_KEY,
            mode="min",
            grace_period=config.grace_steps,
            # otherwise it pauses trials while others wait
            min_time_slice=float("inf"),  # type: ignore[arg-type]
        )
        self._grace = grace
        self._trial_steps = trial_steps

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Stop a trial that is worse than the median of the others, after its grace."""
        if self._grace(trial) <= result[STEP_KEY] < self._trial_steps:
            return super().on_trial_result(tune_controller, trial, result)
        self._results[trial].append(result)
        return TrialScheduler.CONTINUE
