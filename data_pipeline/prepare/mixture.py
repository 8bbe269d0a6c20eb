"""Several sources in proportion: `SOURCE@WEIGHT`. Knows no format."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, islice

import numpy as np
from tqdm import tqdm

from data_pipeline.config import PrepareConfig
from data_pipeline.errors import DataError
from data_pipeline.shards import QUARANTINE
from data_pipeline.sources.read import read_source
from data_pipeline.sources.record import Record, stable_hash

_WEIGHTED = re.compile(r"(.+)@(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Mixture:
    """The rows to prepare, and how many were left out for the weights' sake."""

    rows: list[Iterator[Record]]  # of each source
    num_unsampled: int


def parse_weight(spec: str) -> tuple[str, float | None]:
    """`a.parquet@2.5` → `a.parquet`, 2.5. Raises DataError."""
    parts = _WEIGHTED.fullmatch(spec)
    if parts is None:
        return spec, None
    if float(parts[2]) == 0:
        raise DataError(
            f"source {spec!r} has weight 0: give a positive weight, or leave the source out"
        )
    return parts[1], float(parts[2])


def _read(spec: str, config: PrepareConfig) -> Iterator[Record]:
    """Read one source; a prepared dataset is a source too, without its refused records."""
    records = read_source(spec, config, ignored_files=(QUARANTINE,))
    return islice(records, config.max_records)


def mix_sources(
    sources: Sequence[str], config: PrepareConfig, *, progress: bool = False
) -> Mixture:
    """Without a weight, all rows of all sources. With one (a source without has 1), rows in proportion to the weights:

    as many as there can be without repeating one, so one source enters whole; of the others a sample that
    depends on seed and source alone. Weighted sources are read twice, to count them. Raises DataError.
    """
    specs = [parse_weight(spec) for spec in sources]
    rows = [_read(spec, config) for spec, _ in specs]
    if all(weight is None for _, weight in specs):
        return Mixture([*rows], 0)
    counted = [
        tqdm(source, desc="count", unit=" rows", mininterval=1.0, disable=not progress)
        for source in rows
    ]
    sizes = [sum(1 for _ in source) for source in counted]
    weights = [1.0 if weight is None else weight for _, weight in specs]
    share = min(size / weight for size, weight in zip(sizes, weights, strict=True))
    chosen = [min(round(share * weight), size) for weight, size in zip(weights, sizes, strict=True)]
    mixed = [
        compress(
            _read(spec, config),
            _sample(num, size, config.seed, spec),
        )
        for (spec, _), num, size in zip(specs, chosen, sizes, strict=True)
    ]
    return Mixture([*mixed], sum(sizes) - sum(chosen))


def _sample(
    num: int, size: int, seed: int, spec: str
) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    """bool [size], `num` of them True."""
    mask = np.zeros(size, np.bool_)
    mask[np.random.default_rng(stable_hash(seed, spec)).permutation(size)[:num]] = True
    return mask
