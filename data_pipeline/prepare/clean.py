"""Rows → cleaned rows or named refusals, on every CPU and in the order they came. Knows no files and no splits."""

import hashlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import chain, islice
from typing import NamedTuple

from data_pipeline.config import PrepareConfig
from data_pipeline.errors import DataError
from data_pipeline.prepare.leakage import contains_caption
from data_pipeline.prepare.splits import choose_split
from data_pipeline.shards import QuarantinedRecord, ShardRecord
from data_pipeline.sources.record import Record, stable_hash
from data_pipeline.svg import SVGRefused, canonicalise

_FIRST_BYTES = 256  # of a refused drawing are kept
_BATCH_ROWS = 128
_BATCH_BYTES = (
    1 << 22
)  # raw drawings of a batch, more or less: a batch is in memory at three places
_INLINE_BATCHES = 8  # a smaller corpus is cleaned before a pool would be warm
_BATCHES_AHEAD = 3  # of each process: bounds the memory, and keeps the order cheap


class CleanRecord(NamedTuple):
    """One canonical example, with all that is decided about it when all are known. Hashes have 64 bits."""

    row: ShardRecord
    place: int  # in the shuffled order
    drawing: int  # hash of the canonical text
    content: int  # hash of the canonical text and the caption
    concept: int
    validation: bool  # the concept's side
    tells: bool  # the caption stands in the drawing's text


def clean_records(
    rows: Iterable[Record], config: PrepareConfig
) -> Iterator[list[CleanRecord | QuarantinedRecord]]:
    """Batches in the order of the rows, whatever the number of processes; what comes out depends on nothing else.

    Raises DataError when a process is killed.
    """
    work = partial(clean_batch, config=config)
    batches = _batches(rows)
    head = list(islice(batches, _INLINE_BATCHES))
    processes = config.processes or _num_cpus()
    if len(head) < _INLINE_BATCHES or processes == 1:
        yield from map(work, chain(head, batches))
        return
    try:
        with ProcessPoolExecutor(processes, initializer=_follow_the_parent) as pool:
            ahead: deque[Future[list[CleanRecord | QuarantinedRecord]]] = deque()
            for batch in chain(head, batches):
                ahead.append(pool.submit(work, batch))
                if len(ahead) > _BATCHES_AHEAD * processes:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
    except BrokenProcessPool:
        raise DataError(
            f"one of {processes} processes that clean drawings was killed, for want of memory perhaps: "
            "use fewer with --processes"
        ) from None


def clean_batch(rows: list[Record], config: PrepareConfig) -> list[CleanRecord | QuarantinedRecord]:
    cleaned: list[CleanRecord | QuarantinedRecord] = []
    raw: str | bytes | None = None
    svg = ""
    for row in rows:
        caption = _text(row.caption).strip()
        try:
            if not caption:
                raise SVGRefused("no_caption", "the caption is empty")
            if (
                raw is None or row.svg is not raw
            ):  # neighbours may be one drawing with several captions
                raw = None
                svg = canonicalise(row.svg, max_bytes=config.max_svg_bytes)
                raw = row.svg
            cleaned.append(_cleaned(row, svg, caption, config))
        except SVGRefused as refusal:
            first = row.svg[:_FIRST_BYTES]
            first_bytes = first.encode("utf-8", "replace") if isinstance(first, str) else first
            detail = _text(refusal.detail)
            cleaned.append(
                QuarantinedRecord(_text(row.id), row.source, refusal.reason, detail, first_bytes)
            )
    return cleaned


def _cleaned(row: Record, svg: str, caption: str, config: PrepareConfig) -> CleanRecord:
    id_ = _text(row.id)
    return CleanRecord(
        row=ShardRecord(id_, svg, caption, row.source),
        place=stable_hash(config.seed, id_),
        drawing=hash_content(svg),
        content=hash_content(svg, caption),
        concept=hash_content(row.concept),
        validation=choose_split(
            row.concept, seed=config.seed, validation_share=config.validation_share
        )
        == "validation",
        tells=contains_caption(svg, caption),
    )


def hash_content(*parts: str) -> int:
    """64 bits: among 2 million rows two differing ones meet with a chance of 1 in 10 million."""
    data = "\0".join(parts).encode("utf-8", "replace")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())


def _text(text: str) -> str:
    """Without lone surrogates, which JSON can spell and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


def _batches(rows: Iterable[Record]) -> Iterator[list[Record]]:
    batch: list[Record] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += len(row.svg)
        if len(batch) == _BATCH_ROWS or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _num_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _follow_the_parent() -> None:
    """Leave interrupts to it, and end when it was killed: a pool's processes wait for work for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
