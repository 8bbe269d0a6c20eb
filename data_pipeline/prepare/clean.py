"""Canonicalise the drawings of all records in parallel, and refuse bad ones with a reason.

The order of the records is kept. Depends on no file format.
"""

import hashlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import chain, islice
from typing import NamedTuple, TypeAlias

import pyarrow as pa

from data_pipeline.config import PrepareConfig, get_share
from data_pipeline.errors import DataError
from data_pipeline.prepare.leakage import contains_caption
from data_pipeline.prepare.splits import choose_split
from data_pipeline.shards import SPLITS, QuarantinedRecord, ShardRecord
from data_pipeline.sources.record import Record, escape_surrogates, stable_hash
from data_pipeline.svg import SVGRefused, canonicalise

NUM_FIRST_BYTES = 256
"""The quarantine keeps this many bytes of a refused drawing."""
_BATCH_RECORDS = 512
# A batch ends at about this size of its raw drawings. Memory holds a batch three times.
_BATCH_BYTES = 1 << 20
# Cleaning fewer batches takes less time than starting a pool.
_INLINE_BATCHES = 2
# Each process has this many batches ahead. The limit bounds the memory, and keeps the order cheap.
_BATCHES_AHEAD = 3


class CleanRecord(NamedTuple):
    """One canonical record, with the facts that decide about it later. Hashes have 64 bits."""

    id: str
    svg: str
    caption: str
    source: str
    shuffle_key: int  # sorts the records into the shuffled order
    drawing: int  # hash of the canonical text
    content: int  # hash of the canonical text and the caption
    concept: int  # hash of the concept
    split: int  # number in SPLITS
    given: bool  # the record has this held-out split by its source or file, not by its concept
    leaks: bool  # the drawing's text contains the caption


_HASHES = ("shuffle_key", "drawing", "content", "concept")
CLEAN = pa.schema(
    [(name, pa.string()) for name in ShardRecord._fields]
    + [(name, pa.uint64()) for name in _HASHES]
    + [("split", pa.uint8()), ("given", pa.bool_()), ("leaks", pa.bool_())]
)
"""Columns are the fields of CleanRecord: a process then handles many records at once."""


class Batch(NamedTuple):
    """The cleaned records of a batch (with the schema CLEAN), and the refused ones, in order."""

    cleaned: pa.RecordBatch
    refused: list[QuarantinedRecord]


MapBatches: TypeAlias = Callable[
    [Callable[[list[Record]], Batch], Iterable[list[Record]]], Iterator[Batch]
]
"""Apply a function to each batch somewhere, and return the results in the order of the batches."""


def clean_records(
    records: Iterable[Record], config: PrepareConfig, map_batches: MapBatches | None = None
) -> Iterator[Batch]:
    """Yield batches of cleaned and refused records, in the order of `records`.

    The batches do not depend on `map_batches` or the number of processes. Raises DataError if a
    process is killed.
    """
    clean = partial(clean_batch, config=config)
    batches = _split_into_batches(records)
    num_processes = config.processes or _count_cpus()
    if num_processes == 1 and map_batches is None:
        return map(clean, batches)

    head = list(islice(batches, _INLINE_BATCHES))
    if len(head) < _INLINE_BATCHES:
        return map(clean, head)
    map_batches = map_batches or partial(_map_in_processes, num_processes)
    return map_batches(clean, chain(head, batches))


def _map_in_processes(
    num_processes: int,
    clean: Callable[[list[Record]], Batch],
    batches: Iterable[list[Record]],
) -> Iterator[Batch]:
    try:
        with ProcessPoolExecutor(num_processes, initializer=_exit_with_parent) as pool:
            futures: deque[Future[Batch]] = deque()
            for batch in batches:
                futures.append(pool.submit(clean, batch))
                if len(futures) > _BATCHES_AHEAD * num_processes:
                    yield futures.popleft().result()
            while futures:
                yield futures.popleft().result()
    except BrokenProcessPool:
        raise DataError(
            f"one of {num_processes} processes that clean drawings was killed, possibly for lack "
            "of memory: use fewer with --processes"
        ) from None


def clean_batch(records: list[Record], config: PrepareConfig) -> Batch:
    """Return one cleaned or refused record for each of `records`."""
    cleaned: list[CleanRecord] = []
    refused: list[QuarantinedRecord] = []
    raw: str | bytes | None = None
    svg = ""
    for record in records:
        caption = escape_surrogates(record.caption).strip()
        try:
            if record.unreadable:
                raise SVGRefused("unreadable_file", record.unreadable)
            if not caption:
                raise SVGRefused("no_caption", record.problem or "the caption is empty")

            # Neighbours may be one drawing with several captions: canonicalise it once.
            if raw is None or record.svg is not raw:
                raw = None
                svg = canonicalise(record.svg, max_bytes=config.max_svg_bytes)
                raw = record.svg

            cleaned.append(_make_clean_record(record, svg, caption, config))
        except SVGRefused as refusal:
            refused.append(_make_quarantined_record(record, refusal))
    return Batch(make_table(cleaned), refused)


def make_table(records: Sequence[CleanRecord]) -> pa.RecordBatch:
    """Return a table whose columns are the fields of CleanRecord."""
    columns = zip(*records, strict=True) if records else [()] * len(CLEAN)
    return pa.record_batch([*columns], schema=CLEAN)


def _make_clean_record(
    record: Record, svg: str, caption: str, config: PrepareConfig
) -> CleanRecord:
    id_ = escape_surrogates(record.id)

    # the split
    given = record.split in ("validation", "test")
    chosen = choose_split(
        record.concept,
        seed=config.seed,
        validation_share=get_share(config.validation_share),
        test_share=get_share(config.test_share),
    )

    return CleanRecord(
        id=id_,
        svg=svg,
        caption=caption,
        source=escape_surrogates(record.source),
        shuffle_key=stable_hash(config.seed, id_),
        drawing=hash_content(svg),
        content=hash_content(svg, caption),
        concept=hash_content(record.concept),
        split=SPLITS.index(record.split if given else chosen),
        given=given,
        leaks=contains_caption(svg, caption),
    )


def _make_quarantined_record(record: Record, refusal: SVGRefused) -> QuarantinedRecord:
    first = record.svg[:NUM_FIRST_BYTES]
    return QuarantinedRecord(
        id=escape_surrogates(record.id),
        source=escape_surrogates(record.source),
        reason=refusal.reason,
        detail=escape_surrogates(refusal.detail),
        first_bytes=first.encode("utf-8", "replace") if isinstance(first, str) else first,
    )


def hash_content(*parts: str) -> int:
    """Return a 64-bit hash of the texts.

    Among 2 million records, the chance that any two different contents collide is 1 in 10 million.
    """
    data = "\0".join(parts).encode("utf-8", "replace")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())


def _split_into_batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    batch: list[Record] = []
    size = 0
    for record in records:
        batch.append(record)
        size += len(record.svg)
        if len(batch) == _BATCH_RECORDS or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _count_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _exit_with_parent() -> None:
    """Ignore interrupts, which the parent handles, and exit when the parent is killed.

    Without this, the processes of a pool wait for work forever after the parent was killed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
