"""Raw sources → a prepared dataset: clean, without duplicates, split by concept and drawing, shuffled, written.

Knows no tokens. Drawings pass through the disk ($TMPDIR): rows are spooled into buckets by their place in the
shuffled order, and one bucket at a time is sorted. In memory stay 27 bytes a row, whatever the size of the corpus.
"""

import dataclasses
import pickle
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path

from tqdm import tqdm

from data_pipeline.config import PrepareConfig
from data_pipeline.errors import DataError
from data_pipeline.prepare.clean import CleanRow, clean
from data_pipeline.prepare.leakage import Leakage, measure_leakage
from data_pipeline.prepare.mixture import mix
from data_pipeline.prepare.splits import Decision, Fingerprints, decide
from data_pipeline.shards import ShardRow, ShardWriter
from data_pipeline.sources.record import Row

_NUM_BUCKETS = 64  # 2 million drawings of 2 KB: 64 MB a bucket


@dataclass(frozen=True)
class PrepareReport:
    """Counts of examples (a drawing with one caption; see `captions.examples`):

    read == written + duplicates + sum(quarantined), written == train + validation == sum(sources).
    """

    read: int
    written: int
    train: int
    validation: int
    duplicates: int
    quarantined: dict[str, int]
    left_out: int  # for the weights of the sources; not read
    sources: dict[str, int]  # written rows of each
    moved_to_train: int  # because a drawing of theirs, or of their concept, is in training too
    tell_their_caption: int  # written rows whose SVG text contains the caption
    leakage: Leakage
    digest: str
    seconds: float

    def __str__(self) -> str:
        quarantined = ", ".join(
            f"{reason} {number:,}" for reason, number in self.quarantined.items()
        )
        seen = self.leakage
        return (
            f"{self.read:,} examples read = {self.written:,} written + {self.duplicates:,} duplicates + "
            f"{sum(self.quarantined.values()):,} in quarantine ({quarantined or 'none'}); "
            f"{self.left_out:,} left out by weight\n"
            f"{self.train:,} to train on, {self.validation:,} for validation ({self.moved_to_train:,} moved to "
            f"training for a drawing that is there too)\n"
            f"in both, by what was written: {seen.drawings_in_both} of {seen.train_drawings:,} and "
            f"{seen.validation_drawings:,} drawings, {seen.examples_in_both} examples, {seen.captions_in_both} "
            f"captions; {self.tell_their_caption:,} rows contain their own caption"
        )


def prepare(
    sources: Sequence[str], config: PrepareConfig, *, progress: bool = True
) -> PrepareReport:
    """Read the sources (see `mix` and `read_source`) and put a dataset (see `shards`) into `config.out`.

    Rows are in an order that depends on seed and ids, not on the order of the sources. Of equal examples (same
    canonical SVG, same caption) the first is kept; a refused SVG or an empty caption goes to quarantine; no
    concept and no drawing is in two splits. Raises DataError; the folder is then as it was.
    """
    started = time.monotonic()
    mixture = mix(sources, config, progress=progress)
    writer = ShardWriter(config.out, shard_rows=config.shard_rows)
    try:
        with tempfile.TemporaryDirectory(prefix="svgscribe-") as folder:
            counts, rows = _Counts(left_out=mixture.left_out), Fingerprints()
            bar = partial(tqdm, unit=" rows", mininterval=1.0, disable=not progress)
            _spool(
                bar(chain.from_iterable(mixture.rows), desc="clean"),
                Path(folder),
                config,
                writer,
                counts,
                rows,
            )
            decision = decide(rows)
            counts.decided(rows, decision)
            _check(counts, sources, config)
            for split, row in bar(
                _shuffled(Path(folder), decision), desc="write", total=counts.written
            ):
                writer.add(split, row)
                counts.sources[row.source] += 1
        digest = writer.close()
        leakage = measure_leakage(writer.written("train"), writer.written("validation"))
        assert not leakage.drawings_in_both, leakage
        assert not leakage.examples_in_both, leakage
        report = counts.report(leakage, digest, time.monotonic() - started)
    except BaseException:
        writer.abandon()
        raise
    writer.commit(_manifest(report, config), dataclasses.asdict(report))
    return report


@dataclass
class _Counts:
    left_out: int
    read: int = 0
    written: int = 0
    validation: int = 0
    duplicates: int = 0
    moved: int = 0
    tells: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)

    def decided(self, rows: Fingerprints, decision: Decision) -> None:
        self.written = int(decision.kept.sum())
        self.duplicates = len(rows) - self.written
        self.validation = int(decision.validation.sum())
        self.moved = decision.num_moved
        self.tells = sum(told for told, kept in zip(rows.tells, decision.kept, strict=True) if kept)

    def report(self, leakage: Leakage, digest: str, seconds: float) -> PrepareReport:
        return PrepareReport(
            read=self.read,
            written=self.written,
            train=self.written - self.validation,
            validation=self.validation,
            duplicates=self.duplicates,
            quarantined=dict(sorted(self.quarantined.items())),
            left_out=self.left_out,
            sources=dict(sorted(self.sources.items())),
            moved_to_train=self.moved,
            tell_their_caption=self.tells,
            leakage=leakage,
            digest=digest,
            seconds=round(seconds, 3),
        )


def _check(counts: _Counts, sources: Sequence[str], config: PrepareConfig) -> None:
    """Raises DataError for a corpus that is no use, before it is written."""
    if counts.written == counts.validation:
        refused = ", ".join(
            f"{reason} {number}" for reason, number in sorted(counts.quarantined.items())
        )
        raise DataError(
            f"no row to train on in {', '.join(sources)}: {counts.read} read, "
            f"{counts.validation} for validation, refused: {refused or 'none'}"
        )
    if counts.tells > config.max_told_share * counts.written:
        raise DataError(
            f"{counts.tells:,} of {counts.written:,} drawings contain their own caption in their text "
            f"({counts.tells / counts.written:.1%}, at most {config.max_told_share:.1%}): caption them otherwise, "
            "take their text out, or allow it with --max-told-share"
        )


def _spool(
    source: Iterable[Row],
    folder: Path,
    config: PrepareConfig,
    writer: ShardWriter,
    counts: _Counts,
    rows: Fingerprints,
) -> None:
    """Clean every row and put it into the bucket of its place in the shuffled order, with its number."""
    with ExitStack() as stack:
        buckets = [stack.enter_context((folder / str(n)).open("wb")) for n in range(_NUM_BUCKETS)]
        for cleaned in chain.from_iterable(clean(source, config)):
            counts.read += 1
            if not isinstance(cleaned, CleanRow):
                counts.quarantined[cleaned.reason] += 1
                writer.refuse(cleaned)
                continue
            record = cleaned.place, tuple(cleaned.row), cleaned.content, len(rows)
            pickle.dump(
                record, buckets[cleaned.place % _NUM_BUCKETS], protocol=pickle.HIGHEST_PROTOCOL
            )
            rows.content.append(cleaned.content)
            rows.drawing.append(cleaned.drawing)
            rows.concept.append(cleaned.concept)
            rows.validation.append(cleaned.validation)
            rows.tells.append(cleaned.tells)


def _shuffled(folder: Path, decision: Decision) -> Iterator[tuple[str, ShardRow]]:
    """Kept rows by their place. Of rows with one id all but the first get another: ids name rows in ledgers."""
    for number in range(_NUM_BUCKETS):
        records = []
        with (folder / str(number)).open("rb") as bucket:
            while bucket.peek(1):
                record = pickle.load(bucket)
                if decision.kept[record[-1]]:
                    records.append(record)
        previous = None
        for _, values, content, row_number in sorted(records):
            row = ShardRow(*values)
            named = row._replace(id=f"{row.id}#{content:016x}") if row.id == previous else row
            previous = row.id
            yield "validation" if decision.validation[row_number] else "train", named


def _manifest(report: PrepareReport, config: PrepareConfig) -> dict[str, object]:
    return {
        "digest": report.digest,
        "splits": {"train": report.train, "validation": report.validation},
        "sources": report.sources,
        "duplicates": report.duplicates,
        "quarantined": report.quarantined,
        "config": config.model_dump(exclude={"out", "processes"}),
    }
