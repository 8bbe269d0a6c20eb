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

from tqdm import tqdm

from data_pipeline.config import PrepareConfig
from data_pipeline.errors import DataError
from data_pipeline.prepare.buckets import read_shuffled, write_buckets
from data_pipeline.prepare.clean import Batch, CleanRecord, MapBatches, clean_records
from data_pipeline.prepare.leakage import Leakage, measure_leakage
from data_pipeline.prepare.mixture import mix_sources
from data_pipeline.prepare.partitions import Partitions
from data_pipeline.prepare.splits import FACTS, SplitDecision, decide_splits
from data_pipeline.shards import ShardWriter


@dataclass(frozen=True)
class PrepareReport:
    """Counts of records; a record is a drawing with one caption.

    num_read == num_written + num_duplicates + sum(quarantined), and
    num_written == num_train + num_validation == sum(sources).
    """

    num_read: int
    num_written: int
    num_train: int
    num_validation: int
    num_duplicates: int
    quarantined: dict[str, int]
    """Number of refused records by reason."""
    num_unsampled: int
    """Number of records excluded by the weights of the sources; not in num_read."""
    sources: dict[str, int]
    """Number of written records by source."""
    num_moved_to_train: int
    """Number of records moved, because a drawing ties their concept to training."""
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
        return (
            f"{self.num_read:,} records read = {self.num_written:,} written + "
            f"{self.num_duplicates:,} duplicates + {num_quarantined:,} in quarantine "
            f"({reasons or 'none'}); {self.num_unsampled:,} not sampled because of weights\n"
            f"{self.num_train:,} records for training, {self.num_validation:,} for validation; "
            f"{self.num_moved_to_train:,} moved to training because of a shared drawing\n"
            f"in both splits: {leakage.num_drawings_in_both} drawings "
            f"(of {leakage.num_train_drawings:,} and {leakage.num_validation_drawings:,}), "
            f"{leakage.num_records_in_both} records, {leakage.num_captions_in_both} captions; "
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
    or an empty caption goes to quarantine. No concept and no drawing is in both splits.

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

            decision = decide_splits(facts, folder)
            counts.add_decision(len(facts), decision)
            _require_usable(counts, sources, config)

            # write
            shuffled = read_shuffled(folder, decision)
            for split, record in bar(shuffled, desc="write", total=counts.num_written):
                writer.add(split, record)
                counts.sources[record.source] += 1

        # check
        digest = writer.close()
        leakage = measure_leakage(writer.read_written("train"), writer.read_written("validation"))
        assert not leakage.num_drawings_in_both, leakage
        assert not leakage.num_records_in_both, leakage
        report = counts.make_report(leakage, digest, time.monotonic() - started)
    except BaseException as error:
        writer.abandon()
        if isinstance(error, OSError):
            raise DataError(
                f"cannot write to {config.out} or to the temporary folder {tempfile.gettempdir()} "
                f"({error}): free some space, or set TMPDIR to another disk"
            ) from error
        raise

    writer.commit(_make_manifest(report, config), report.list_counts())
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

    def add_decision(self, num_cleaned: int, decision: SplitDecision) -> None:
        self.num_written = decision.num_kept
        self.num_duplicates = num_cleaned - decision.num_kept
        self.num_validation = decision.num_validation
        self.num_moved = decision.num_moved
        self.num_leaked = decision.num_leaked

    def make_report(self, leakage: Leakage, digest: str, seconds: float) -> PrepareReport:
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


def _require_usable(counts: _Counts, sources: Sequence[str], config: PrepareConfig) -> None:
    """Raise DataError if there is no training record, or if too many records leak."""
    if counts.num_written == counts.num_validation:
        reasons = sorted(counts.quarantined.items())
        refused = ", ".join(f"{reason} {number}" for reason, number in reasons)
        raise DataError(
            f"no record to train on in {', '.join(sources)}: {counts.num_read} read, "
            f"{counts.num_validation} for validation, refused: {refused or 'none'}"
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
) -> Iterator[CleanRecord]:
    """Yield the cleaned records, count all records, and write refused ones to the quarantine."""
    for cleaned in chain.from_iterable(batches):
        counts.num_read += 1
        if isinstance(cleaned, CleanRecord):
            yield cleaned
        else:
            counts.quarantined[cleaned.reason] += 1
            writer.refuse(cleaned)


def _make_manifest(report: PrepareReport, config: PrepareConfig) -> dict[str, object]:
    return {
        "digest": report.digest,
        "splits": {"train": report.num_train, "validation": report.num_validation},
        "sources": report.sources,
        "duplicates": report.num_duplicates,
        "quarantined": report.quarantined,
        "config": config.model_dump(exclude={"out", "processes"}),
    }
