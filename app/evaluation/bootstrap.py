"""Scores as sums over drawings, with bootstrap intervals (Efron 1979).

The statistics of a score are one row of numbers a drawing, and the score is a function of their
sums. A resample of the drawings is then a product of counts and statistics, also for scores of the
whole corpus such as BLEU (Koehn 2004).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

NUM_RESAMPLES = 1000
SEED = 12345  # sacrebleu's default
LOW, HIGH = 2.5, 97.5
"""Percentiles of an interval that holds 95 % of the resamples."""


def divide_sums(sums: Array) -> Array:
    """Return the first of the sums [.., 2] divided by the second; NaN where the second is 0."""
    value, count = sums[..., 0], sums[..., 1]
    result: Array = np.divide(value, count, out=np.full_like(value, np.nan), where=count > 0)
    return result


@dataclass(frozen=True)
class Score:
    """A score of N drawings: their statistics [N, K], and the function of the sums [.., K]."""

    statistics: Array
    combine: Callable[[Array], Array] = divide_sums

    def select(self, drawings: npt.NDArray[np.bool_]) -> "Score":
        """Return the score of the drawings [N] that are True."""
        return Score(self.statistics[drawings], self.combine)

    def measure_each(self) -> Array:
        """Return the score of each drawing alone [N]; NaN where it has none."""
        return self.combine(self.statistics)


class Interval(NamedTuple):
    """A score with the interval that holds it in 95 % of the resamples."""

    value: float | None
    """None if no drawing has a statistic."""
    low: float | None
    high: float | None
    n: int
    """Number of drawings with a statistic."""


class Bootstrap:
    """Resamples of N drawings. All scores of one Bootstrap are resampled alike, as pairs need."""

    def __init__(self, num_drawings: int, seed: int = SEED) -> None:
        random = np.random.default_rng(seed)
        self._counts = np.zeros((NUM_RESAMPLES if num_drawings else 0, num_drawings), np.uint16)
        for counts in self._counts:
            drawn = random.integers(num_drawings, size=num_drawings)
            counts[:] = np.bincount(drawn, minlength=num_drawings)

    def measure(self, score: Score) -> Interval:
        """Return the score of all drawings with its interval."""
        num_drawings = int(score.statistics.any(axis=1).sum())
        if not num_drawings:
            return Interval(None, None, None, 0)
        value = float(score.combine(score.statistics.sum(axis=0)))
        return Interval(value, *_find_interval(self._resample(score)), num_drawings)

    def compare(self, score: Score, other: Score) -> tuple[float, float] | None:
        """Return the interval of `score - other` over paired resamples; None if either is empty."""
        if not (score.statistics.any() and other.statistics.any()):
            return None
        return _find_interval(self._resample(score) - self._resample(other))

    def _resample(self, score: Score) -> Array:
        """Return the score of each resample; 250 at a time, to bound the memory."""
        sums = [
            part.astype(np.float64) @ score.statistics
            for part in np.array_split(self._counts, NUM_RESAMPLES // 250)
        ]
        return score.combine(np.concatenate(sums))


def _find_interval(values: Array) -> tuple[float, float]:
    low, high = np.nanpercentile(values, [LOW, HIGH])
    return float(low), float(high)
