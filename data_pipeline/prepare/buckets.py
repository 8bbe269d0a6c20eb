"""Sort the cleaned records into their shuffled order on disk.

Each record goes to a bucket by its shuffle key. A bucket that is too large for the memory is
divided again, until its parts fit. The order does not depend on the division.
"""

import pickle
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from data_pipeline.prepare.clean import CleanRecord
from data_pipeline.prepare.partitions import Partitions
from data_pipeline.prepare.splits import SplitDecision
from data_pipeline.shards import SPLITS, ShardRecord

_NUM_BUCKETS = 64
# A larger bucket is divided: memory holds the records of one bucket.
_BUCKET_BYTES = 1 << 23
_POSITION_BITS = 128
_DIVIDING_BITS = 6  # into 64 parts


class _Entry(NamedTuple):
    """A record in a bucket."""

    position: int  # in the shuffled order of the bucket: 64 bits of the key, 64 of the content
    record: tuple[str, ...]
    number: int  # in reading order
    split: str  # at first
    held_out: int | None  # hash of the concept, if it is held out for a share of the records


def write_buckets(records: Iterable[CleanRecord], folder: Path, facts: Partitions) -> None:
    """Write each record to a bucket in the folder, and its hashes to `facts`."""

    def list_entries() -> Iterator[tuple[int, _Entry]]:
        for clean in records:
            index = len(facts)
            facts.add(
                clean.drawing_hash,
                clean.content_hash,
                clean.concept_hash,
                index,
                SPLITS.index(clean.split),
                clean.given,
                clean.leaks,
            )
            position = clean.shuffle_key << 64 | clean.content_hash
            is_shared = clean.split != "train" and not clean.given
            held_out = clean.concept_hash if is_shared else None
            entry = _Entry(position, tuple(clean.record), index, clean.split, held_out)
            yield clean.shuffle_key % _NUM_BUCKETS, entry

    _divide(list_entries(), folder)


def read_shuffled(
    folder: Path, decision: SplitDecision
) -> Iterator[tuple[str | None, ShardRecord]]:
    """Yield the records with their split, sorted inside each bucket. Delete the buckets.

    Duplicates are left out. The split of an excluded record is None.
    Ledgers name records by id. Of several records with one id, all but the first get a new id.
    """
    previous = None
    for number in range(_NUM_BUCKETS):
        for entry in _read_sorted(folder / str(number), decision, _POSITION_BITS):
            record = ShardRecord(*entry.record)
            is_repeated = record.id == previous
            previous = record.id
            if is_repeated:
                record = record._replace(id=f"{record.id}#{entry.position % 2**64:016x}")
            if decision.is_excluded(entry.number):
                yield None, record
            else:
                yield decision.choose(entry.split, entry.held_out), record


def _read_sorted(path: Path, decision: SplitDecision, bits: int) -> Iterator[_Entry]:
    """Yield the entries of a bucket, without duplicates, by their position.

    The last `bits` bits of their positions differ.
    """
    entries = (entry for entry in _read_entries(path) if not decision.is_duplicate(entry.number))
    if path.stat().st_size <= _BUCKET_BYTES or not bits:
        yield from sorted(entries, key=lambda entry: entry.position)
        path.unlink()
        return

    shift = max(bits - _DIVIDING_BITS, 0)
    parts = path.with_name(f"{path.name}-parts")
    parts.mkdir()
    _divide((((entry.position >> shift) % _NUM_BUCKETS, entry) for entry in entries), parts)
    path.unlink()
    for number in range(_NUM_BUCKETS):
        yield from _read_sorted(parts / str(number), decision, shift)


def _divide(entries: Iterable[tuple[int, _Entry]], folder: Path) -> None:
    with ExitStack() as stack:
        buckets = [stack.enter_context((folder / str(n)).open("wb")) for n in range(_NUM_BUCKETS)]
        for number, entry in entries:
            pickle.dump(tuple(entry), buckets[number], protocol=pickle.HIGHEST_PROTOCOL)


def _read_entries(path: Path) -> Iterator[_Entry]:
    with path.open("rb") as bucket:
        while bucket.peek(1):
            yield _Entry(*pickle.load(bucket))
