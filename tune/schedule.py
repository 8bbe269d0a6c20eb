"""Schedulers: they stop bad trials early."""

from ray.tune.schedulers import ASHAScheduler

from tune.config import SearchConfig
from tune.keys import METRIC_KEY, STEP_KEY


def build_scheduler(config: SearchConfig, trial_steps: int) -> ASHAScheduler | None:
    """Return ASHA, or None if its first rung would not be before the last step.

    The last rung is before the last step, so a trial that reaches the last step has completed.
    """
    if config.grace_steps >= trial_steps:
        return None
    return ASHAScheduler(
        time_attr=STEP_KEY,
        metric=METRIC_KEY,
        mode="min",
        max_t=trial_steps - 1,
        grace_period=config.grace_steps,
        reduction_factor=config.reduction_factor,
        stop_last_trials=False,
    )
