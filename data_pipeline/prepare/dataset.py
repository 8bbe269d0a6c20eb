"""Prepare a dataset from raw sources: clean, deduplicate, split, shuffle and write the records.

The records pass through temporary files ($TMPDIR): each goes to a bucket by its shuffle key, and
one bucket at a time is loaded and sorted. Memory holds 26 bytes a record for the whole corpus.
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
    sources: Sequence[str], config: PrepareConfig, *, progress: bool = True
) -> PrepareReport:
    """Read the sources (see `read_source`) and write a dataset (see `shards`) to `config.out`.

    The order of the records depends on the seed and the ids, not on the order of the sources. Of
    equal records (same canonical SVG, same caption) the first is kept. A record with a refused SVG
    or an empty caption goes to quarantine. No concept and no drawing is in both splits. Raises
    DataError, and leaves the folder as it was.
    """
    # open
    started = time.monotonic()
    mixture = mix_sources(sources, config, progress=progress)
    writer = ShardWriter(config.out, shard_records=config.shard_records)
    counts, fingerprints = _Counts(num_unsampled=mixture.num_unsampled), Fingerprints()
    bar = partial(tqdm, unit=" records", mininterval=1.0, disable=not progress)

    try:
        with tempfile.TemporaryDirectory(prefix="svgscribe-") as name:
            folder = Path(name)

            # clean
            records = bar(chain.from_iterable(mixture.records), desc="clean")
            cleaned = _quarantine_refused(records, config, writer, counts)
            _write_buckets(cleaned, folder, fingerprints)

            # split
            decision = decide_splits(fingerprints)
            counts.add_decision(fingerprints, decision)
            _require_usable(counts, sources, config)

            # write
            shuffled = _read_shuffled(folder, decision)
            for split, record in bar(shuffled, desc="write", total=counts.num_written):
                writer.add(split, record)
                counts.sources[record.source] += 1

        # check
        digest = writer.close()
        leakage = measure_leakage(writer.read_written("train"), writer.read_written("validation"))
        assert not leakage.num_drawings_in_both, leakage
        assert not leakage.num_records_in_both, leakage
        report = counts.make_report(leakage, digest, time.monotonic() - started)
    except BaseException:
        writer.abandon()
        raise

    writer.commit(_make_manifest(report, config), dataclasses.asdict(report))
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

    def add_decision(self, fingerprints: Fingerprints, decision: SplitDecision) -> None:
        self.num_written = int(decision.kept.sum())
        self.num_duplicates = len(fingerprints) - self.num_written
        self.num_validation = int(decision.validation.sum())
        self.num_moved = decision.num_moved
        leaks = zip(fingerprints.leaks, decision.kept, strict=True)
        self.num_leaked = sum(leaked for leaked, kept in leaks if kept)

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
    records: Iterable[Record], config: PrepareConfig, writer: ShardWriter, counts: _Counts
) -> Iterator[CleanRecord]:
    """Yield the cleaned records, count all records, and write refused ones to the quarantine."""
    for cleaned in chain.from_iterable(clean_records(records, config)):
        counts.num_read += 1
        if isinstance(cleaned, CleanRecord):
            yield cleaned
        else:
            counts.quarantined[cleaned.reason] += 1
            writer.refuse(cleaned)


def _write_buckets(
    records: Iterable[CleanRecord], folder: Path, fingerprints: Fingerprints
) -> None:
    """Write each record with its reading index to a bucket, and remember its hashes."""
    with ExitStack() as stack:
        buckets = [stack.enter_context((folder / str(n)).open("wb")) for n in range(_NUM_BUCKETS)]
        for clean in records:
            entry = clean.shuffle_key, tuple(clean.record), clean.content_hash, len(fingerprints)
            bucket = buckets[clean.shuffle_key % _NUM_BUCKETS]
            pickle.dump(entry, bucket, protocol=pickle.HIGHEST_PROTOCOL)

            fingerprints.content_hashes.append(clean.content_hash)
            fingerprints.drawing_hashes.append(clean.drawing_hash)
            fingerprints.concept_hashes.append(clean.concept_hash)
            fingerprints.validation.append(clean.validation)
            fingerprints.leaks.append(clean.leaks)


def _read_shuffled(folder: Path, decision: SplitDecision) -> Iterator[tuple[str, ShardRecord]]:
    """Yield the kept records with their split, sorted by shuffle key inside each bucket.

    Ledgers name records by id. Of several records with one id, all but the first get a new id.
    """
    for number in range(_NUM_BUCKETS):
        # load bucket
        entries = []
        with (folder / str(number)).open("rb") as bucket:
            while bucket.peek(1):
                entry = pickle.load(bucket)
                if decision.kept[entry[-1]]:
                    entries.append(entry)

        # make ids unique
        previous = None
        for _, values, content, index in sorted(entries):
            record = ShardRecord(*values)
            is_repeated = record.id == previous
            previous = record.id
            if is_repeated:
                record = record._replace(id=f"{record.id}#{content:016x}")
            yield "validation" if decision.validation[index] else "train", record


def _make_manifest(report: PrepareReport, config: PrepareConfig) -> dict[str, object]:
    return {
        "digest": report.digest,
        "splits": {"train": report.num_train, "validation": report.num_validation},
        "sources": report.sources,
        "duplicates": report.num_duplicates,
        "quarantined": report.quarantined,
        "config": config.model_dump(exclude={"out", "processes"}),
    }
