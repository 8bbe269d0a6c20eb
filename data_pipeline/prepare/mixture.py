"""Mix several sources in proportion to their weights, written as `SOURCE@WEIGHT`."""

import os
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, islice

from tqdm import tqdm

from data_pipeline.config import PrepareConfig
from data_pipeline.errors import DataError
from data_pipeline.shards import QUARANTINE
from data_pipeline.sources.read import read_source
from data_pipeline.sources.record import Record, stable_hash

_WEIGHTED = re.compile(r"(.+)@(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Mixture:
    """The records to prepare, and the number of records that the weights exclude."""

    records: list[Iterator[Record]]
    """One iterator for each source, and for each of the user's held-out sources."""
    num_unsampled: int


def parse_weight(spec: str) -> tuple[str, float | None]:
    """Split `a.parquet@2.5` into `a.parquet` and 2.5; the weight is None if there is none.

    A file or folder with such a name has no weight. Raises DataError for a weight of 0.
    """
    parts = _WEIGHTED.fullmatch(spec)
    if parts is None or os.path.exists(spec):
        return spec, None
    if float(parts[2]) == 0:
        raise DataError(
            f"source {spec!r} has weight 0: give a positive weight, or leave the source out"
        )
    return parts[1], float(parts[2])


def mix_sources(
    sources: Sequence[str], config: PrepareConfig, *, progress: bool = False
) -> Mixture:
    """Read all sources, in proportion to their weights if any source has a weight.

    Without weights, the mixture has all records of all sources. With weights (the default is 1), it
    has as many records as possible without a repetition: one source enters whole, and each of the
    others as a sample that depends only on the seed and the source. Weighted sources are read
    twice, once to count them. The sources of `config.validation` and `config.test` follow whole.
    Raises DataError.
    """
    specs = [parse_weight(spec) for spec in sources]
    readers = [_read(spec, config) for spec, _ in specs]
    held_out = [_read(spec, config, split="validation") for spec in config.validation]
    held_out += [_read(spec, config, split="test") for spec in config.test]
    if all(weight is None for _, weight in specs):
        return Mixture([*readers, *held_out], num_unsampled=0)

    sizes = [_count_records(reader, progress) for reader in readers]
    num_sampled = _choose_sizes(sizes, [weight for _, weight in specs])
    sampled = [
        compress(_read(spec, config), _choose_sample(num, size, config.seed, spec))
        for (spec, _), num, size in zip(specs, num_sampled, sizes, strict=True)
    ]
    return Mixture([*sampled, *held_out], num_unsampled=sum(sizes) - sum(num_sampled))


def _read(spec: str, config: PrepareConfig, split: str = "") -> Iterator[Record]:
    """Read one source. A prepared dataset is a source too, without its refused records.

    `split` is the split of all its records, if it is not empty.
    """
    records = read_source(spec, config, ignored_files=(QUARANTINE,))
    if split:
        records = (record._replace(split=split) for record in records)
    return islice(records, config.max_records)


def _count_records(records: Iterator[Record], progress: bool) -> int:
    bar = tqdm(records, desc="count", unit=" records", mininterval=1.0, disable=not progress)
    return sum(1 for _ in bar)


def _choose_sizes(sizes: Sequence[int], weights: Sequence[float | None]) -> list[int]:
    """Return the number of records to sample from each source."""
    shares = [1.0 if weight is None else weight for weight in weights]
    scale = min(size / share for size, share in zip(sizes, shares, strict=True))
    return [min(round(scale * share), size) for share, size in zip(shares, sizes, strict=True)]


def _choose_sample(num: int, size: int, seed: int, spec: str) -> Iterator[bool]:
    """Yield `size` random truth values, of which `num` are true, without holding them.

    Each record is chosen with the probability of the number left to choose among the records left.
    """
    draw = random.Random(stable_hash(seed, spec)).random
    for num_left in range(size, 0, -1):
        is_chosen = draw() * num_left < num
        num -= is_chosen
        yield is_chosen
