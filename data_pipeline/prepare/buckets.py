"""Sort the cleaned records into their shuffled order on disk.

Each record goes to a bucket by its shuffle key. A bucket that is too large for the memory is
divided again, until its parts fit. The order does not depend on the division. Records are moved as
columns of many, since a loop over them takes most of the time of a large corpus.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipeline.prepare.clean import CLEAN
from data_pipeline.prepare.partitions import Partitions
from data_pipeline.prepare.splits import EXCLUDED, SplitDecision
from data_pipeline.shards import SPLITS, ShardRecord

_NUM_BUCKETS = 64
# A larger bucket is divided: memory holds the records of one bucket twice.
_BUCKET_BYTES = 1 << 22
# Records in memory before they are written to the buckets.
_BUFFER_BYTES = 1 << 21
_POSITION_BITS = 128
_DIVIDING_BITS = 6  # into 64 parts

_SORT_KEYS = ["shuffle_key", "content"]  # with 64 bits each
_FACTS = ["index", "concept", "split", "given"]
_NUMBERED = CLEAN.append(pa.field("index", pa.uint64()))  # in reading order
_ROWS = pa.schema([_NUMBERED.field(n) for n in (*ShardRecord._fields, *_SORT_KEYS, *_FACTS)])


def write_buckets(batches: Iterable[pa.RecordBatch], folder: Path, facts: Partitions) -> None:
    """Write each record to a bucket in the folder, and its hashes to `facts`.

    The columns of a batch are the fields of CleanRecord.
    """

    def number_records() -> Iterator[pa.RecordBatch]:
        for batch in batches:
            index = np.arange(len(facts), len(facts) + batch.num_rows, dtype=np.uint64)
            numbered = batch.append_column("index", pa.array(index))
            facts.add(numbered)
            yield numbered.select(_ROWS.names)

    _divide(number_records(), folder, partial(_get_bits, 64))


def read_shuffled(folder: Path, decision: SplitDecision) -> Iterator[tuple[str | None, pa.Table]]:
    """Yield tables of records with their split, sorted inside each bucket. Delete the buckets.

    The columns are the fields of ShardRecord. Duplicates are left out. The split of excluded
    records is None. Ledgers name records by id. Of several records with one id, all but the first
    get a new id.
    """
    previous = None
    for number in range(_NUM_BUCKETS):
        for rows in _read_sorted(folder / str(number), decision, _POSITION_BITS):
            # name
            ids = rows["id"].to_pylist()
            new_ids = _rename_repeated(previous, ids, rows["content"].to_pylist())
            previous = ids[-1] if ids else previous
            records = rows.select(ShardRecord._fields)
            records = records.set_column(0, "id", pa.array(new_ids, pa.string()))

            # divide
            splits = decision.choose(rows)
            for split in np.unique(splits):
                name = None if split == EXCLUDED else SPLITS[split]
                yield name, records.filter(pa.array(splits == split))


def _rename_repeated(previous: str | None, ids: list[str], contents: list[int]) -> list[str]:
    """Return the ids. One that is equal to the id before it gets the hash of its content."""
    return [
        f"{id_}#{content:016x}" if id_ == before else id_
        for before, id_, content in zip([previous, *ids], ids, contents, strict=False)
    ]


def _read_sorted(path: Path, decision: SplitDecision, bits: int) -> Iterator[pa.Table]:
    """Yield the rows of a bucket, without duplicates, by their position.

    The position is the shuffle key, then the hash of the content. The last `bits` bits differ.
    """
    is_small = path.stat().st_size <= _BUCKET_BYTES or not bits
    shift = max(bits - _DIVIDING_BITS, 0)
    parts = path.with_name(f"{path.name}-parts")
    with pa.OSFile(str(path)) as bucket:
        batches = (_drop_duplicates(batch, decision) for batch in pa.ipc.open_stream(bucket))
        if is_small:
            rows = _sort(pa.Table.from_batches(batches, _ROWS))
        else:
            parts.mkdir()
            _divide(batches, parts, partial(_get_bits, shift))
    path.unlink()

    if is_small:
        yield rows
        return
    for number in range(_NUM_BUCKETS):
        yield from _read_sorted(parts / str(number), decision, shift)


def _sort(rows: pa.Table) -> pa.Table:
    keys = [rows[name].to_numpy() for name in reversed(_SORT_KEYS)]
    return rows.combine_chunks().take(np.lexsort(keys))


def _drop_duplicates(batch: pa.RecordBatch, decision: SplitDecision) -> pa.RecordBatch:
    is_duplicate = decision.is_duplicate(np.asarray(batch["index"]))
    return batch.filter(pa.array(~is_duplicate)) if is_duplicate.any() else batch


def _get_bits(shift: int, key: Any, content: Any) -> Any:
    """Return the bits of each position from `shift` on, for a choice of a part."""
    if shift >= 64:
        bits = key >> np.uint64(shift - 64)
    else:
        bits = key << np.uint64(64 - shift) | content >> np.uint64(shift)
    return (bits % _NUM_BUCKETS).astype(np.uint8)


def _divide(
    batches: Iterable[pa.RecordBatch], folder: Path, choose_bucket: Callable[[Any, Any], Any]
) -> None:
    """Write each row to the bucket that the function chooses by its two sort keys."""
    with ExitStack() as stack:
        paths = [str(folder / str(number)) for number in range(_NUM_BUCKETS)]
        files = [stack.enter_context(pa.OSFile(path, "wb")) for path in paths]
        buckets = [stack.enter_context(pa.ipc.new_stream(file, _ROWS)) for file in files]

        buffered: list[pa.RecordBatch] = []
        num_bytes = 0
        for batch in batches:
            buffered.append(batch)
            num_bytes += batch.nbytes
            if num_bytes >= _BUFFER_BYTES:
                _write_rows(buffered, buckets, choose_bucket)
                buffered, num_bytes = [], 0
        _write_rows(buffered, buckets, choose_bucket)


def _write_rows(batches: list[pa.RecordBatch], buckets: list[Any], choose_bucket: Any) -> None:
    rows = pa.Table.from_batches(batches, _ROWS).combine_chunks()
    numbers = choose_bucket(*(rows[name].to_numpy() for name in _SORT_KEYS))
    rows = rows.take(np.argsort(numbers, kind="stable"))
    start = 0
    for bucket, size in zip(buckets, np.bincount(numbers, minlength=_NUM_BUCKETS), strict=True):
        if size:
            bucket.write_table(rows.slice(start, size))
        start += size
