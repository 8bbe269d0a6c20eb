"""Population-based training: the worst trials continue from checkpoints of the best."""

import random
from collections.abc import Callable, Collection, Mapping
from types import SimpleNamespace
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler

from tune.domain import Choice, Domain, Drawn, Integer, LogUniform, Uniform
from tune.keys import METRIC_KEY, OVERRIDES_KEY, STEP_KEY
from tune.space import Overrides, build_overrides, draw_value

_RESAMPLE_PROBABILITY = 0.25  # both as in Ray and in the paper
_FACTORS = (0.8, 1.2)


class Population(PopulationBasedTraining):
    """Population-based training (Jaderberg et al. 2017, arXiv:1711.09846) over a space.

    Every `interval_steps` a trial of the worst quarter takes the checkpoint and the values of one
    of the best quarter, and `explore` changes the values within the space. If that changes one of
    `pinned_paths`, with which a checkpoint cannot continue, the trial starts again from step 0.
    """

    def __init__(
        self,
        space: Mapping[str, Domain],
        *,
        interval_steps: int,
        trial_steps: int,
        grace: Callable[[Trial], int],
        pinned_paths: Collection[str],
        seed: int,
    ) -> None:
        super().__init__(
            time_attr=STEP_KEY,
            metric=METRIC_KEY,
            mode="min",
            perturbation_interval=interval_steps,
            custom_explore_fn=self._explore,
            log_config=False,
        )
        self._space = space
        self._trial_steps = trial_steps
        self._grace = grace
        self._pinned_paths = pinned_paths
        self._generator = random.Random(seed)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Add a trial to the population.

        Ray refuses every search algorithm here, also one that only lists draws.
        """
        super().on_trial_add(SimpleNamespace(search_alg=None), trial)  # type: ignore[arg-type]

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Exploit another trial at each interval, after the trial's own grace."""
        if self._grace(trial) <= result[STEP_KEY] < self._trial_steps:
            return super().on_trial_result(tune_controller, trial, result)
        return TrialScheduler.CONTINUE

    def _explore(self, trial_config: dict[str, Any]) -> dict[str, Any]:
        overrides = explore(trial_config[OVERRIDES_KEY], self._space, self._generator)
        return {**trial_config, OVERRIDES_KEY: overrides}

    def _exploit(self, tune_controller: Any, trial: Trial, trial_to_clone: Trial) -> None:
        super()._exploit(tune_controller, trial, trial_to_clone)
        cloned, explored = (each.config[OVERRIDES_KEY] for each in (trial_to_clone, trial))
        if all(cloned.get(path) == explored.get(path) for path in self._pinned_paths):
            return

        # Without a checkpoint, Tune starts the paused trial anew.
        checkpoints = trial.run_metadata.checkpoint_manager
        assert checkpoints is not None
        checkpoints._latest_checkpoint_result = None
        state = self._trial_state[trial]
        state.last_perturbation_time = state.last_train_time = 0
        state.last_score = None


def explore(
    overrides: Overrides, space: Mapping[str, Domain], generator: random.Random
) -> Overrides:
    """Return changed overrides: each value is drawn anew, or moved a little within its domain.

    A number is multiplied by 0.8 or 1.2, a choice becomes one of its neighbours in the list. Tied
    values and conditions follow.
    """

    def change(path: str, domain: Drawn) -> Any:
        if path not in overrides or generator.random() < _RESAMPLE_PROBABILITY:
            return draw_value(domain, generator)
        return _move(domain, overrides[path], generator)

    return build_overrides(space, change)


def _move(domain: Drawn, value: Any, generator: random.Random) -> Any:
    match domain:
        case Choice(choice=choices):
            index = choices.index(value) + generator.choice((-1, 1))
            return choices[min(max(index, 0), len(choices) - 1)]
        case Integer(integer=(low, high)):
            direction = generator.choice((-1, 1))
            moved = value + direction * max(1, round(0.2 * value))
            return min(max(moved, low), high)
        case LogUniform(loguniform=(low, high)) | Uniform(uniform=(low, high)):
            return min(max(value * generator.choice(_FACTORS), low), high)
