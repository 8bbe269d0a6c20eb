"""Prepare a dataset from raw sources: clean, deduplicate, split, shuffle and write the records.

The records and their hashes pass through temporary files ($TMPDIR), which need about as much room
as the canonical records (see `buckets`, `splits`). Memory does not follow the size of the corpus,
except for about one byte a record, and for the names and captions of a folder of single files.
"""

import dataclasses
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from data_pipeline.config import PrepareConfig
from data_pipeline.errors import DataError
from data_pipeline.prepare.buckets import read_shuffled, write_buckets
from data_pipeline.prepare.clean import (
    NUM_FIRST_BYTES,
    Batch,
    MapBatches,
    clean_records,
)
from data_pipeline.prepare.leakage import Leakage, measure_leakage
from data_pipeline.prepare.mixture import mix_sources
from data_pipeline.prepare.partitions import Partitions
from data_pipeline.prepare.splits import FACTS, SplitDecision, decide_splits
from data_pipeline.shards import QuarantinedRecord, ShardRecord, ShardWriter

_EXCLUDED = "also_held_out"


@dataclass(frozen=True)
class PrepareReport:
    """Counts of records; a record is a drawing with one caption.

    num_read == num_written + num_duplicates + sum(quarantined), and
    num_written == num_train + num_validation + num_test == sum(sources).
    """

    num_read: int
    num_written: int
    num_train: int
    num_validation: int
    num_test: int
    num_given: dict[str, int]
    """Number of written records whose source or file gives them a held-out split, by split."""
    num_duplicates: int
    quarantined: dict[str, int]
    """Number of refused and excluded records by reason."""
    num_unsampled: int
    """Number of records excluded by the weights of the sources; not in num_read."""
    sources: dict[str, int]
    """Number of written records by source."""
    num_moved_to_train: int
    """Number of records moved, because a drawing ties their concept to another split."""
    num_leaked: int
    """Number of written records whose SVG text contains their own caption."""
    leakage: Leakage
    digest: str
    seconds: float

    def list_counts(self) -> dict[str, Any]:
        """Return everything but the seconds: the same for the same sources and config."""
        counts = dataclasses.asdict(self)
        del counts["seconds"]
        return counts

    def __str__(self) -> str:
        reasons = ", ".join(f"{reason} {number:,}" for reason, number in self.quarantined.items())
        num_quarantined = sum(self.quarantined.values())
        leakage = self.leakage
        drawings = ", ".join(f"{number:,}" for number in leakage.num_drawings.values())
        return (
            f"{self.num_read:,} records read = {self.num_written:,} written + "
            f"{self.num_duplicates:,} duplicates + {num_quarantined:,} in quarantine "
            f"({reasons or 'none'}); {self.num_unsampled:,} not sampled because of weights\n"
            f"{self.num_train:,} records for training, "
            f"{self.num_validation:,} for validation ({self.num_given['validation']:,} given), "
            f"{self.num_test:,} for the test ({self.num_given['test']:,} given); "
            f"{self.num_moved_to_train:,} moved to training because of a shared drawing\n"
            f"in several splits: {leakage.num_shared_drawings} drawings (of {drawings}), "
            f"{leakage.num_shared_records} records, {leakage.num_shared_captions} captions; "
            f"{self.num_leaked:,} records contain their own caption"
        )


def prepare_dataset(
    sources: Sequence[str],
    config: PrepareConfig,
    *,
    progress: bool = True,
    map_batches: MapBatches | None = None,
) -> PrepareReport:
    """Read the sources (see `read_source`) and write a dataset (see `shards`) to `config.out`.

    The order of the records depends on the seed and the ids, not on the order of the sources. Of
    equal records (same canonical SVG, same caption) the first is kept. A record with a refused SVG
    or an empty caption goes to quarantine. No concept and no drawing is in two splits (see
    `splits`): a record that a given held-out record excludes goes to quarantine too.

    `map_batches` cleans the records on other machines (None: in processes of this one); the dataset
    is the same byte for byte. Raises DataError, and leaves the folder as it was.
    """
    # open
    started = time.monotonic()
    mixture = mix_sources(sources, config, progress=progress)
    writer = ShardWriter(config.out, shard_records=config.shard_records)
    counts = _Counts(num_unsampled=mixture.num_unsampled)
    bar = partial(tqdm, unit=" records", mininterval=1.0, disable=not progress)

    try:
        with tempfile.TemporaryDirectory(prefix="svgscribe-") as name:
            folder = Path(name)
            facts = Partitions(folder / "facts", FACTS)

            # clean
            records = bar(chain.from_iterable(mixture.records), desc="clean")
            batches = clean_records(records, config, map_batches)
            write_buckets(_quarantine_refused(batches, writer, counts), folder, facts)

            decision = decide_splits(facts, folder, with_share=_list_with_share(config))
            counts.add_decision(decision)
            _require_usable(counts, sources, config)

            # write
            num_records = counts.num_written + decision.num_excluded
            with bar(desc="write", total=num_records) as progress_bar:
                _write_records(read_shuffled(folder, decision), writer, counts, progress_bar)

        # check
        digest = writer.close()
        leakage = measure_leakage(writer.read_written())
        assert not leakage.num_shared_drawings, leakage
        assert not leakage.num_shared_records, leakage
        report = counts.make_report(leakage, digest, time.monotonic() - started)
    except BaseException as error:
        writer.abandon()
        if isinstance(error, OSError):
            raise DataError(
                f"cannot write to {config.out} or to the temporary folder {tempfile.gettempdir()} "
                f"({error}): free some space, or give another disk with --out or TMPDIR"
            ) from error
        raise

    writer.commit(_make_manifest(report, config), report.list_counts())
    return report


def _list_with_share(config: PrepareConfig) -> list[str]:
    """Return the held-out splits whose share the user gives."""
    shares = {"validation": config.validation_share, "test": config.test_share}
    return [split for split, share in shares.items() if share is not None]


@dataclass
class _Counts:
    num_unsampled: int
    num_read: int = 0
    num_kept: dict[str, int] = field(default_factory=dict)
    num_given: dict[str, int] = field(default_factory=dict)
    num_duplicates: int = 0
    num_moved: int = 0
    num_leaked: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)

    @property
    def num_written(self) -> int:
        return sum(self.num_kept.values())

    def add_decision(self, decision: SplitDecision) -> None:
        self.num_kept = decision.num_kept
        self.num_given = decision.num_given
        self.num_duplicates = decision.num_duplicates
        self.num_moved = decision.num_moved
        self.num_leaked = decision.num_leaked
        if decision.num_excluded:
            self.quarantined[_EXCLUDED] = decision.num_excluded

    def make_report(self, leakage: Leakage, digest: str, seconds: float) -> PrepareReport:
        return PrepareReport(
            num_read=self.num_read,
            num_written=self.num_written,
            num_train=self.num_kept["train"],
            num_validation=self.num_kept["validation"],
            num_test=self.num_kept["test"],
            num_given={split: self.num_given[split] for split in ("validation", "test")},
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


def _require_usable(counts: _Counts, sources: Sequence[str], config: PrepareConfig) -> None:
    """Raise DataError if a split that the user wants is empty, or if too many records leak."""
    for split, own in (("validation", config.validation), ("test", config.test)):
        if own and not counts.num_given[split]:
            raise DataError(
                f"no record of --{split} {', '.join(own)} is usable: all are refused, or also "
                "given for the test; correct the source, or leave it out"
            )

    if not counts.num_kept["train"]:
        reasons = sorted(counts.quarantined.items())
        refused = ", ".join(f"{reason} {number}" for reason, number in reasons)
        raise DataError(
            f"no record to train on in {', '.join(sources)}: {counts.num_read} read, "
            f"{counts.num_kept['validation']} for validation, {counts.num_kept['test']} for the "
            f"test, refused: {refused or 'none'}"
        )

    if counts.num_leaked > config.max_leaked_share * counts.num_written:
        raise DataError(
            f"{counts.num_leaked:,} of {counts.num_written:,} drawings contain their own caption "
            f"in their text ({counts.num_leaked / counts.num_written:.1%}, at most "
            f"{config.max_leaked_share:.1%}): use other captions, remove the text, or allow it "
            "with --max-leaked-share"
        )


def _quarantine_refused(
    batches: Iterable[Batch], writer: ShardWriter, counts: _Counts
) -> Iterator[pa.RecordBatch]:
    """Yield the cleaned records, count all records, and write refused ones to the quarantine."""
    for cleaned, refused in batches:
        counts.num_read += cleaned.num_rows + len(refused)
        for record in refused:
            counts.quarantined[record.reason] += 1
            writer.refuse(record)
        yield cleaned


def _write_records(
    tables: Iterable[tuple[str | None, pa.Table]],
    writer: ShardWriter,
    counts: _Counts,
    progress_bar: Any,
) -> None:
    """Write the records to their splits, and those without a split to the quarantine."""
    for split, records in tables:
        if split is None:
            for row in records.to_pylist():
                writer.refuse(_make_excluded_record(ShardRecord(**row)))
        else:
            writer.add(split, records)
            counts.sources.update(records["source"].to_pylist())
        progress_bar.update(len(records))


def _make_excluded_record(record: ShardRecord) -> QuarantinedRecord:
    detail = "a record that is given for validation or test has its drawing or concept"
    first = record.svg.encode()[:NUM_FIRST_BYTES]
    return QuarantinedRecord(record.id, record.source, _EXCLUDED, detail, first)


def _make_manifest(report: PrepareReport, config: PrepareConfig) -> dict[str, object]:
    return {
        "digest": report.digest,
        "splits": {
            "train": report.num_train,
            "validation": report.num_validation,
            "test": report.num_test,
        },
        "sources": report.sources,
        "duplicates": report.num_duplicates,
        "quarantined": report.quarantined,
        "config": config.model_dump(exclude={"out", "processes", "validation", "test"}),
    }
