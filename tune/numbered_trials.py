"""Trials with numbers for ids, so that a continued campaign finds its trials again."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from ray.tune.experiment import Trial
from ray.tune.experiment.config_parser import _create_trial_from_spec, _make_parser
from ray.tune.search import ConcurrencyLimiter, SearchAlgorithm
from ray.tune.search.searcher import Searcher

from tune.keys import METRIC_KEY, OVERRIDES_KEY
from tune.record import TrialRecord
from tune.space import Overrides


class NumberedTrials(SearchAlgorithm):
    """Tune's source of trials, with the ids 0000, 0001 and so on.

    Tune's own sources draw random ids. Ray's pbt refuses the one that takes a searcher.
    """

    def __init__(
        self, searcher: Searcher, records: Mapping[str, TrialRecord], max_concurrent: int | None
    ) -> None:
        # Tune reads the limit from this attribute
        self.searcher: Searcher = _RecordedSearcher(searcher, records)
        if max_concurrent is not None:
            self.searcher = ConcurrencyLimiter(self.searcher, max_concurrent=max_concurrent)
        self._spec: dict[str, Any] = {}
        self._num_made = 0

    @property
    def total_samples(self) -> int:
        """Return the number of trials."""
        return int(self._spec.get("num_samples", 0))

    def add_configurations(self, experiments: Any) -> None:
        """Take the one experiment of the search."""
        (experiment,) = experiments
        self._spec = experiment.spec

    def next_trial(self) -> Trial | None:
        """Return the next trial; None if the searcher waits or has ended."""
        if self.is_finished():
            return None
        trial_id = f"{self._num_made:04d}"
        config: Any = self.searcher.suggest(trial_id)
        if config == Searcher.FINISHED:
            self._finished = True
        if not isinstance(config, dict):
            return None
        self._num_made += 1
        spec = {**self._spec, "config": config}
        trial: Trial = _create_trial_from_spec(spec, _make_parser(), trial_id=trial_id)
        return trial

    def is_finished(self) -> bool:
        """Return True if there is no other trial."""
        return self._finished or self._num_made >= self.total_samples

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Tell the searcher a loss."""
        self.searcher.on_trial_result(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the searcher that a trial has ended."""
        self.searcher.on_trial_complete(trial_id, result=result, error=error)


class ListSearcher(Searcher):
    """Suggest the values of a list in their order."""

    def __init__(self, values: list[dict[str, Any]]) -> None:
        super().__init__(metric=METRIC_KEY, mode="min")
        self._values = iter(values)

    def suggest(self, trial_id: str) -> Any:
        values = next(self._values, None)
        return Searcher.FINISHED if values is None else {OVERRIDES_KEY: values}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Learn nothing."""


class _RecordedSearcher(Searcher):
    """Give recorded trials their recorded values, and the others those of another searcher.

    The other searcher is asked in any case, so that it continues at the same place.
    """

    def __init__(self, searcher: Searcher, records: Mapping[str, TrialRecord]) -> None:
        super().__init__(metric=METRIC_KEY, mode="min")
        self._inner = searcher
        self._records = records

    def suggest(self, trial_id: str) -> Any:
        suggested = self._inner.suggest(trial_id)
        record = self._records.get(trial_id)
        if record is None:
            return suggested
        if isinstance(self._inner, LearningSearcher):
            self._inner.replace(trial_id, record.overrides)
        return {OVERRIDES_KEY: record.overrides}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._inner.on_trial_result(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self._inner.on_trial_complete(trial_id, result=result, error=error)


@runtime_checkable
class LearningSearcher(Protocol):
    """A searcher whose suggestions depend on the values and losses of earlier trials."""

    def replace(self, trial_id: str, overrides: Overrides) -> None:
        """Take these values for those that the searcher has suggested for a trial."""
