"""TPE of Optuna as a searcher of Ray Tune, for spaces with conditions and tied values."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState
from ray.tune.search import Searcher

from tune.domain import Choice, Domain, Drawn, Equals, Integer, LogUniform, Uniform
from tune.keys import METRIC_KEY, OVERRIDES_KEY
from tune.space import Overrides, build_overrides, read_point

optuna.logging.set_verbosity(optuna.logging.WARNING)


class TpeSearcher(Searcher):
    """Suggest values with the multivariate TPE of Optuna, first those of `points`.

    Each suggestion comes from a study that is built from the lowest loss of every trial so far.
    Ray's own OptunaSearch adds a trial to its study when the trial ends, and a paused trial ends
    with the search; it also takes no earlier results for a space with conditions.

    `earlier` are the overrides and losses of trials of earlier searches, all inside the space.
    """

    def __init__(
        self,
        space: Mapping[str, Domain],
        *,
        points: Sequence[Mapping[str, Any]],
        earlier: Sequence[tuple[Overrides, float]],
        seed: int,
    ) -> None:
        super().__init__(metric=METRIC_KEY, mode="min")
        self._space = space
        self._points = points
        self._earlier = earlier
        self._seed = seed
        self._trials: dict[str, Overrides] = {}
        self._losses: dict[str, float] = {}  # inf: the trial ended without a finite loss

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """Return the Tune config of the next trial."""
        number = len(self._trials)
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=self._seed + number))
        for overrides, loss in self._earlier:
            study.add_trial(self._describe(overrides, loss))
        for known_id, overrides in self._trials.items():
            study.add_trial(self._describe(overrides, self._losses.get(known_id)))
        if number < len(self._points):
            study.enqueue_trial(read_point(self._space, self._points[number]))

        overrides = build_overrides(self._space, partial(_suggest_value, study.ask()))
        self._trials[trial_id] = overrides
        return {OVERRIDES_KEY: overrides}

    def replace(self, trial_id: str, overrides: Overrides) -> None:
        """Take these values for those that `suggest` has returned for a trial."""
        self._trials[trial_id] = overrides

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Keep the lowest finite loss of a trial."""
        if math.isfinite(result[METRIC_KEY]):
            lowest = self._losses.get(trial_id, math.inf)
            self._losses[trial_id] = min(lowest, result[METRIC_KEY])

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Keep the last loss; a trial without one, or with an error, is as bad as possible."""
        if result:
            self.on_trial_result(trial_id, result)
        if error:
            self._losses[trial_id] = math.inf
        self._losses.setdefault(trial_id, math.inf)

    def save(self, checkpoint_path: str) -> None:
        """Write the trials so far to a file."""
        state = {"trials": self._trials, "losses": self._losses}
        Path(checkpoint_path).write_text(json.dumps(state), encoding="utf-8")

    def restore(self, checkpoint_path: str) -> None:
        """Read the trials of `save`."""
        state = json.loads(Path(checkpoint_path).read_text(encoding="utf-8"))
        self._trials, self._losses = state["trials"], state["losses"]

    def _describe(self, overrides: Overrides, loss: float | None) -> optuna.trial.FrozenTrial:
        """Return a trial for the study; without a loss it is running, which TPE takes as bad."""
        drawn = {
            path: value
            for path, value in overrides.items()
            if not isinstance(self._space[path], Equals)
        }
        return optuna.trial.create_trial(
            state=TrialState.RUNNING if loss is None else TrialState.COMPLETE,
            value=loss,
            params=drawn,
            distributions={path: to_distribution(self._space[path]) for path in drawn},
        )


def _suggest_value(trial: optuna.Trial, path: str, domain: Drawn) -> Any:
    match domain:
        case LogUniform(loguniform=(low, high)):
            return trial.suggest_float(path, low, high, log=True)
        case Uniform(uniform=(low, high)):
            return trial.suggest_float(path, low, high)
        case Integer(integer=(low, high), log=log):
            return trial.suggest_int(path, low, high, log=log)
        case Choice(choice=values):
            return trial.suggest_categorical(path, values)


def to_distribution(domain: Domain) -> BaseDistribution:
    """Return the distribution of Optuna for a domain that is drawn."""
    match domain:
        case LogUniform(loguniform=(low, high)):
            return FloatDistribution(low, high, log=True)
        case Uniform(uniform=(low, high)):
            return FloatDistribution(low, high)
        case Integer(integer=(low, high), log=log):
            return IntDistribution(low, high, log=log)
        case Choice(choice=values):
            return CategoricalDistribution(values)
        case Equals():
            raise AssertionError("a tied value is not drawn")
