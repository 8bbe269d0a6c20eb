"""Trials with numbers for ids, so that a continued campaign finds its trials again."""

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.experiment.config_parser import _create_trial_from_spec
from ray.tune.search import ConcurrencyLimiter, SearchGenerator
from ray.tune.search.searcher import Searcher

from tune.keys import METRIC_KEY, OVERRIDES_KEY
from tune.record import TrialRecord


class NumberedTrials(SearchGenerator):  # type: ignore[misc]
    """Tune's source of trials, with the ids 0000, 0001 and so on. Tune itself draws random ids."""

    def __init__(
        self, searcher: Searcher, records: Mapping[str, TrialRecord], max_concurrent: int
    ) -> None:
        recorded = _RecordedSearcher(searcher, records)
        super().__init__(ConcurrencyLimiter(recorded, max_concurrent=max_concurrent))

    def create_trial_if_possible(self, experiment_spec: dict[str, Any]) -> Trial | None:
        """Return the next trial; None if the algorithm waits or has ended."""
        trial_id = f"{self._counter:04d}"
        config = self.searcher.suggest(trial_id)
        if config == Searcher.FINISHED:
            self._finished = True
        if not isinstance(config, dict):
            return None
        self._counter += 1
        spec = {**experiment_spec, "config": config}
        return _create_trial_from_spec(spec, self._parser, trial_id=trial_id)

    def save_to_dir(self, dirpath: str, session_str: str) -> None:
        """Save nothing: a campaign continues from its own record."""


class ListSearcher(Searcher):  # type: ignore[misc]
    """Suggest the values of a list in their order."""

    def __init__(self, values: list[dict[str, Any]]) -> None:
        super().__init__(metric=METRIC_KEY, mode="min")
        self._values = iter(values)

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        values = next(self._values, None)
        return Searcher.FINISHED if values is None else {OVERRIDES_KEY: values}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Learn nothing."""


class _RecordedSearcher(Searcher):  # type: ignore[misc]
    """Give recorded trials their recorded values, and the others those of another searcher.

    The other searcher is asked in any case, so that it continues at the same place. It also gets
    the results of recorded trials, even if it would have chosen other values now.
    """

    def __init__(self, searcher: Searcher, records: Mapping[str, TrialRecord]) -> None:
        super().__init__(metric=METRIC_KEY, mode="min")
        self._inner = searcher
        # a copy: the campaign changes the records
        self._recorded = {name: dict(record.overrides) for name, record in records.items()}
        self._replaced: dict[str, bool] = {}  # True: the other searcher waits for a result

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        suggested: dict[str, Any] | str | None = self._inner.suggest(trial_id)
        recorded = self._recorded.get(trial_id)
        if recorded is None:
            return suggested
        if not isinstance(suggested, dict) or suggested[OVERRIDES_KEY] != recorded:
            self._replaced[trial_id] = isinstance(suggested, dict)
        return {OVERRIDES_KEY: recorded}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if trial_id not in self._replaced:
            self._inner.on_trial_result(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        loss = math.nan if result is None else result.get(METRIC_KEY, math.nan)
        is_measured = math.isfinite(loss) and not error
        if trial_id not in self._replaced:
            result = result if is_measured else None
            self._inner.on_trial_complete(trial_id, result=result, error=not is_measured)
            return
        if self._replaced[trial_id]:
            self._inner.on_trial_complete(trial_id, error=True)
        if is_measured:
            values = {f"{OVERRIDES_KEY}/{k}": v for k, v in self._recorded[trial_id].items()}
            with suppress(NotImplementedError):  # a searcher that learns nothing
                self._inner.add_evaluated_point(values, loss)
