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
from data_pipeline.prepare.clean import CleanRecord, clean_records
from data_pipeline.prepare.leakage import Leakage, measure_leakage
from data_pipeline.prepare.mixture import mix_sources
from data_pipeline.prepare.splits import Fingerprints, SplitDecision, decide_splits
from data_pipeline.shards import ShardRecord, ShardWriter
from data_pipeline.sources.record import Record

_NUM_BUCKETS = 64  # 2 million drawings of 2 KB: 64 MB a bucket


@dataclass(frozen=True)
class PrepareReport:
    """Counts of examples (a drawing with one caption; see `captions.examples`):

    read == written + duplicates + sum(quarantined), written == train + validation == sum(sources).
    """

    num_read: int
    num_written: int
    num_train: int
    num_validation: int
    num_duplicates: int
    quarantined: dict[str, int]
    num_unsampled: int  # for the weights of the sources; not read
    sources: dict[str, int]  # written rows of each
    num_moved_to_train: int  # because a drawing of theirs, or of their concept, is in training too
    num_leaked: int  # written rows whose SVG text contains the caption
    leakage: Leakage
    digest: str
    seconds: float

    def __str__(self) -> str:
        quarantined = ", ".join(
            f"{reason} {number:,}" for reason, number in self.quarantined.items()
        )
        seen = self.leakage
        return (
            f"{self.num_read:,} examples read = {self.num_written:,} written + {self.num_duplicates:,} duplicates + "
            f"{sum(self.quarantined.values()):,} in quarantine ({quarantined or 'none'}); "
            f"{self.num_unsampled:,} left out by weight\n"
            f"{self.num_train:,} to train on, {self.num_validation:,} for validation ({self.num_moved_to_train:,} moved to "
            f"training for a drawing that is there too)\n"
            f"in both, by what was written: {seen.drawings_in_both} of {seen.train_drawings:,} and "
            f"{seen.validation_drawings:,} drawings, {seen.examples_in_both} examples, {seen.captions_in_both} "
            f"captions; {self.num_leaked:,} rows contain their own caption"
        )


def prepare_dataset(
    sources: Sequence[str], config: PrepareConfig, *, progress: bool = True
) -> PrepareReport:
    """Read the sources (see `mix` and `read_source`) and put a dataset (see `shards`) into `config.out`.

    Rows are in an order that depends on seed and ids, not on the order of the sources. Of equal examples (same
    canonical SVG, same caption) the first is kept; a refused SVG or an empty caption goes to quarantine; no
    concept and no drawing is in two splits. Raises DataError; the folder is then as it was.
    """
    started = time.monotonic()
    mixture = mix_sources(sources, config, progress=progress)
    writer = ShardWriter(config.out, shard_records=config.shard_records)
    try:
        with tempfile.TemporaryDirectory(prefix="svgscribe-") as folder:
            counts, rows = _Counts(num_unsampled=mixture.num_unsampled), Fingerprints()
            bar = partial(tqdm, unit=" rows", mininterval=1.0, disable=not progress)
            _spool(
                bar(chain.from_iterable(mixture.rows), desc="clean"),
                Path(folder),
                config,
                writer,
                counts,
                rows,
            )
            decision = decide_splits(rows)
            counts.decided(rows, decision)
            _check(counts, sources, config)
            for split, row in bar(
                _shuffled(Path(folder), decision), desc="write", total=counts.num_written
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
    num_unsampled: int
    num_read: int = 0
    num_written: int = 0
    num_validation: int = 0
    num_duplicates: int = 0
    num_moved: int = 0
    num_leaked: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)

    def decided(self, rows: Fingerprints, decision: SplitDecision) -> None:
        self.num_written = int(decision.kept.sum())
        self.num_duplicates = len(rows) - self.num_written
        self.num_validation = int(decision.validation.sum())
        self.num_moved = decision.num_moved
        self.num_leaked = sum(
            told for told, kept in zip(rows.tells, decision.kept, strict=True) if kept
        )

    def report(self, leakage: Leakage, digest: str, seconds: float) -> PrepareReport:
        return PrepareReport(
            num_read=self.num_read,
            num_written=self.num_written,
            num_train=self.num_written - self.num_validation,
            num_validation=self.num_validation,
            num_duplicates=self.num_duplicates,
            quarantined=dict(sorted(self.quarantined.items())),
            num_unsampled=self.num_unsampled,
            sources=dict(sorted(self.sources.items())),
            num_moved_to_train=self.num_moved,
            num_leaked=self.num_leaked,
            leakage=leakage,
            digest=digest,
            seconds=round(seconds, 3),
        )


def _check(counts: _Counts, sources: Sequence[str], config: PrepareConfig) -> None:
    """Raises DataError for a corpus that is no use, before it is written."""
    if counts.num_written == counts.num_validation:
        refused = ", ".join(
            f"{reason} {number}" for reason, number in sorted(counts.quarantined.items())
        )
        raise DataError(
            f"no row to train on in {', '.join(sources)}: {counts.num_read} read, "
            f"{counts.num_validation} for validation, refused: {refused or 'none'}"
        )
    if counts.num_leaked > config.max_leaked_share * counts.num_written:
        raise DataError(
            f"{counts.num_leaked:,} of {counts.num_written:,} drawings contain their own caption in their text "
            f"({counts.num_leaked / counts.num_written:.1%}, at most {config.max_leaked_share:.1%}): caption them otherwise, "
            "take their text out, or allow it with --max-leaked-share"
        )


def _spool(
    source: Iterable[Record],
    folder: Path,
    config: PrepareConfig,
    writer: ShardWriter,
    counts: _Counts,
    rows: Fingerprints,
) -> None:
    """Clean every row and put it into the bucket of its place in the shuffled order, with its number."""
    with ExitStack() as stack:
        buckets = [stack.enter_context((folder / str(n)).open("wb")) for n in range(_NUM_BUCKETS)]
        for cleaned in chain.from_iterable(clean_records(source, config)):
            counts.num_read += 1
            if not isinstance(cleaned, CleanRecord):
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


def _shuffled(folder: Path, decision: SplitDecision) -> Iterator[tuple[str, ShardRecord]]:
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
            row = ShardRecord(*values)
            named = row._replace(id=f"{row.id}#{content:016x}") if row.id == previous else row
            previous = row.id
            yield "validation" if decision.validation[row_number] else "train", named


def _manifest(report: PrepareReport, config: PrepareConfig) -> dict[str, object]:
    return {
        "digest": report.digest,
        "splits": {"train": report.num_train, "validation": report.num_validation},
        "sources": report.sources,
        "duplicates": report.num_duplicates,
        "quarantined": report.quarantined,
        "config": config.model_dump(exclude={"out", "processes"}),
    }
