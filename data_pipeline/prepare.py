"""Raw sources → a prepared dataset: clean, split by concept, shuffle, write. Knows no tokens.

Drawings pass through the disk: rows are spooled into buckets by their place in the shuffled order, and one
bucket at a time is sorted. In memory stay a hash and an id per row, whatever the size of the corpus.
"""

import hashlib
import pickle
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from tqdm import tqdm

from data_pipeline.config import PrepareConfig
from data_pipeline.errors import DataError
from data_pipeline.rows import Row, split_of, stable_hash
from data_pipeline.shards import QuarantineRow, ShardRow, ShardWriter
from data_pipeline.sources import read_source
from data_pipeline.svg import SVGRefused, canonicalise

_NUM_BUCKETS = 64  # 2 million drawings of 2 KB: 64 MB a bucket
_FIRST_BYTES = 256  # of a refused drawing are kept


@dataclass(frozen=True)
class PrepareReport:
    """Counts of rows: read == written + duplicates + sum(quarantined), written == train + validation."""

    read: int
    written: int
    train: int
    validation: int
    duplicates: int
    quarantined: dict[str, int]
    sources: dict[str, int]  # written rows of each
    digest: str
    seconds: float


def prepare(sources: Sequence[str], config: PrepareConfig, *, progress: bool = True) -> PrepareReport:
    """Read the sources (see `read_source`) and put a dataset (see `shards`) into `config.out`.

    Rows are in an order that depends on seed and ids, not on the order of the sources. An exact duplicate
    (same canonical SVG, same caption) is dropped; a refused SVG or an empty caption goes to quarantine.
    Raises DataError; the folder is then as it was.
    """
    started = time.monotonic()
    opened = [islice(read_source(spec, config), config.max_rows) for spec in sources]
    writer = ShardWriter(config.out, shard_rows=config.shard_rows)
    try:
        with tempfile.TemporaryDirectory(prefix="svgscribe-") as folder:
            counts = _Counts()
            rows = tqdm(
                chain.from_iterable(opened),
                desc="prepare",
                unit=" rows",
                mininterval=1.0,
                disable=not progress,
            )
            _spool(rows, Path(folder), config, writer, counts)
            for split, row in _shuffled(Path(folder)):
                writer.add(split, row)
        report = counts.report(writer.close(), time.monotonic() - started)
        if not report.train:
            refused = ", ".join(f"{reason} {number}" for reason, number in report.quarantined.items())
            raise DataError(
                f"no row to train on in {', '.join(sources)}: {report.read} read, "
                f"{report.validation} for validation, refused: {refused or 'none'}"
            )
    except BaseException:
        writer.abandon()
        raise
    writer.commit(_manifest(report, config))
    return report


@dataclass
class _Counts:
    read: int = 0
    duplicates: int = 0
    splits: Counter[str] = field(default_factory=Counter)
    quarantined: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)

    def report(self, digest: str, seconds: float) -> PrepareReport:
        return PrepareReport(
            read=self.read,
            written=self.splits.total(),
            train=self.splits["train"],
            validation=self.splits["validation"],
            duplicates=self.duplicates,
            quarantined=dict(sorted(self.quarantined.items())),
            sources=dict(sorted(self.sources.items())),
            digest=digest,
            seconds=round(seconds, 3),
        )


def _spool(rows: "tqdm[Row]", folder: Path, config: PrepareConfig, writer: ShardWriter, counts: _Counts) -> None:
    """Clean every row and put it into the bucket of its place in the shuffled order."""
    seen: set[bytes] = set()
    ids: Counter[str] = Counter()
    with ExitStack() as stack:
        buckets = [stack.enter_context((folder / str(n)).open("wb")) for n in range(_NUM_BUCKETS)]
        for row in rows:
            counts.read += 1
            id_, caption = _text(row.id), _text(row.caption).strip()
            try:
                if not caption:
                    raise SVGRefused("no_caption", "the caption is empty")
                svg = canonicalise(row.svg, max_bytes=config.max_svg_bytes)
            except SVGRefused as refusal:
                counts.quarantined[refusal.reason] += 1
                writer.refuse(_refused(id_, row, refusal))
                continue
            content = hashlib.blake2b(f"{svg}\0{caption}".encode(), digest_size=16).digest()
            if content in seen:
                counts.duplicates += 1
                continue
            seen.add(content)
            ids[id_] += 1
            if ids[id_] > 1:  # ids name rows in ledgers and galleries: two sources may both count from 0
                id_ = f"{id_}#{ids[id_]}"
            split = split_of(row.concept, seed=config.seed, validation_share=config.validation_share)
            counts.splits[split] += 1
            counts.sources[row.source] += 1
            place = stable_hash(config.seed, id_)
            record = place, split, ShardRow(id_, svg, caption, row.source)
            pickle.dump(record, buckets[place % _NUM_BUCKETS])


def _refused(id_: str, row: Row, refusal: SVGRefused) -> QuarantineRow:
    first = row.svg[:_FIRST_BYTES]
    first_bytes = first.encode("utf-8", "replace") if isinstance(first, str) else first
    return QuarantineRow(id_, row.source, refusal.reason, _text(refusal.detail), first_bytes)


def _shuffled(folder: Path) -> Iterator[tuple[str, ShardRow]]:
    for number in range(_NUM_BUCKETS):
        records = []
        with (folder / str(number)).open("rb") as bucket:
            while bucket.peek(1):
                records.append(pickle.load(bucket))
        for _, split, row in sorted(records):
            yield split, row


def _text(text: str) -> str:
    """Without lone surrogates, which JSON can spell and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


def _manifest(report: PrepareReport, config: PrepareConfig) -> dict[str, object]:
    return {
        "digest": report.digest,
        "splits": {"train": report.train, "validation": report.validation},
        "sources": report.sources,
        "duplicates": report.duplicates,
        "quarantined": report.quarantined,
        "config": config.model_dump(exclude={"out"}),
    }
