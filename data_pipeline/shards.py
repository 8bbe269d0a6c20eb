"""The prepared dataset on disk: written, replaced, opened, read. Knows no sources and no tokens.

train-00000.parquet …       id, svg, caption, source, split; row groups of ROW_GROUP_ROWS
validation-00000.parquet …
quarantine.parquet          id, source, reason, detail, first_bytes: what was refused, and why
report.json                 what `prepare` counted, and its proof that no drawing is in two splits
dataset.json                counts, digest, configuration; written last: without it there is no dataset
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from data_pipeline.errors import DataError
from data_pipeline.filesystem import open_filesystem

SPLITS = ("train", "validation")
ROW_GROUP_ROWS = 256  # what a read of one row costs
MANIFEST = "dataset.json"
QUARANTINE = "quarantine.parquet"
REPORT = "report.json"

_SHARD = pa.schema([(name, pa.string()) for name in ("id", "svg", "caption", "source", "split")])
_QUARANTINE = pa.schema(
    [(name, pa.string()) for name in ("id", "source", "reason", "detail")]
    + [("first_bytes", pa.binary())]
)


class ShardRecord(NamedTuple):
    """One row of a shard; `svg` is canonical."""

    id: str
    svg: str
    caption: str
    source: str


class QuarantinedRecord(NamedTuple):
    """One refused row: a short reason to count by, a sentence, and the beginning of what was refused."""

    id: str
    source: str
    reason: str
    detail: str
    first_bytes: bytes


def _is_ours(name: str) -> bool:
    return name in (MANIFEST, QUARANTINE, REPORT) or (
        name.endswith(".parquet") and name.startswith(tuple(f"{split}-" for split in SPLITS))
    )


class ShardWriter:
    """Writes a dataset beside `folder`, and `commit` puts it in the place of what is there.

    Until then the old dataset is whole; a crash while files are moved leaves a folder without dataset.json,
    which is refused, never a mixture.
    """

    def __init__(self, folder: str, *, shard_records: int) -> None:
        """Raises DataError when the folder cannot be written."""
        self._fs, self._path = open_filesystem(folder)
        self._partial = f"{self._path}.partial"
        self._shard_rows = shard_records
        self._rows: dict[str, list[ShardRecord]] = {split: [] for split in SPLITS}
        self._num_shards = dict.fromkeys(SPLITS, 0)
        self._digests = {split: hashlib.sha256() for split in SPLITS}
        self._refused: list[QuarantinedRecord] = []
        try:
            if self._fs.get_file_info(self._partial).type != pyarrow.fs.FileType.NotFound:
                self._fs.delete_dir(self._partial)
            self._fs.create_dir(self._partial, recursive=True)
            self._quarantine = pq.ParquetWriter(
                f"{self._partial}/{QUARANTINE}", _QUARANTINE, filesystem=self._fs
            )
        except OSError as error:
            raise DataError(f"cannot write {folder!r}: {error}") from None

    def add(self, split: str, row: ShardRecord) -> None:
        self._rows[split].append(row)
        if len(self._rows[split]) == self._shard_rows:
            self._flush(split)

    def refuse(self, row: QuarantinedRecord) -> None:
        self._refused.append(row)
        if len(self._refused) == ROW_GROUP_ROWS:
            self._flush_quarantine()

    def _flush(self, split: str) -> None:
        rows, self._rows[split] = self._rows[split], []
        if not rows:
            return
        columns = [*zip(*rows, strict=True), [split] * len(rows)]
        for row in rows:
            self._digests[split].update(json.dumps(row).encode())
        pq.write_table(
            pa.table(columns, schema=_SHARD),
            f"{self._partial}/{split}-{self._num_shards[split]:05d}.parquet",
            filesystem=self._fs,
            row_group_size=ROW_GROUP_ROWS,
            compression="zstd",
        )
        self._num_shards[split] += 1

    def _flush_quarantine(self) -> None:
        if self._refused:
            columns = [*zip(*self._refused, strict=True)]
            self._quarantine.write_table(pa.table(columns, schema=_QUARANTINE))
            self._refused = []

    def close(self) -> str:
        """Write what is buffered; returns the digest of the rows of each split in their order."""
        for split in SPLITS:
            self._flush(split)
        self._flush_quarantine()
        self._quarantine.close()
        return hashlib.sha256(
            b"".join(digest.digest() for digest in self._digests.values())
        ).hexdigest()

    def written(self, split: str) -> Iterator[ShardRecord]:
        """The rows of a split as they lie on disk; after `close`."""
        for number in range(self._num_shards[split]):
            path = f"{self._partial}/{split}-{number:05d}.parquet"
            with pq.ParquetFile(path, filesystem=self._fs) as file:
                for batch in file.iter_batches(ROW_GROUP_ROWS, columns=list(ShardRecord._fields)):
                    yield from map(
                        ShardRecord,
                        *(column.to_pylist() for column in batch.select(ShardRecord._fields)),
                    )

    def commit(self, manifest: Mapping[str, Any], report: Mapping[str, Any]) -> None:
        """Replace the dataset in the folder by the one just written; other files there are left alone."""
        fs, path = self._fs, self._path
        for name, value in ((REPORT, report), (MANIFEST, manifest)):
            with fs.open_output_stream(f"{self._partial}/{name}") as stream:
                stream.write(json.dumps(value, indent=1).encode())
        fs.create_dir(path, recursive=True)
        old = sorted(
            (name for name in _names(fs, path) if _is_ours(name)), key=lambda name: name != MANIFEST
        )
        for name in old:
            fs.delete_file(f"{path}/{name}")
        for name in sorted(_names(fs, self._partial), key=lambda name: name == MANIFEST):
            fs.move(f"{self._partial}/{name}", f"{path}/{name}")
        fs.delete_dir(self._partial)

    def abandon(self) -> None:
        """Leave the folder as it was."""
        self._quarantine.close()
        self._fs.delete_dir(self._partial)


def _names(fs: pyarrow.fs.FileSystem, path: str) -> list[str]:
    selector = pyarrow.fs.FileSelector(path, allow_not_found=True)
    return [info.base_name for info in fs.get_file_info(selector) if info.is_file]


class _File(NamedTuple):
    name: str
    first_row: int  # of the split
    num_rows: int


@dataclass(frozen=True)
class Shards:
    """An opened dataset: names and counts only, so it is cheap to send to another process."""

    folder: str
    digest: str
    files: dict[str, tuple[_File, ...]]
    num_duplicates: int
    quarantined: dict[str, int]  # by reason

    def num_records(self, split: str) -> int:
        return sum(file.num_rows for file in self.files[split])

    def read(self, split: str, start: int, stop: int) -> list[ShardRecord]:
        """Rows start … stop-1 of the split, in the order of files and rows; reads only their row groups."""
        assert 0 <= start <= stop <= self.num_records(split), (split, start, stop)
        fs, path = open_filesystem(self.folder)
        rows: list[ShardRecord] = []
        for file in self.files[split]:
            first, last = max(start - file.first_row, 0), min(stop - file.first_row, file.num_rows)
            if first < last:
                rows += _read_file(fs, f"{path}/{file.name}", first, last)
        return rows

    def captions(self, split: str) -> Iterator[str]:
        """All captions of the split, in order; reads nothing else."""
        fs, path = open_filesystem(self.folder)
        for file in self.files[split]:
            with pq.ParquetFile(f"{path}/{file.name}", filesystem=fs) as parquet:
                yield from parquet.read(columns=["caption"])["caption"].to_pylist()


def _read_file(fs: pyarrow.fs.FileSystem, path: str, start: int, stop: int) -> list[ShardRecord]:
    with pq.ParquetFile(path, filesystem=fs) as file:
        groups, skipped, first = [], 0, 0
        for group in range(file.num_row_groups):
            num_rows = file.metadata.row_group(group).num_rows
            if first + num_rows <= start:
                skipped += num_rows
            elif first < stop:
                groups.append(group)
            first += num_rows
        table = file.read_row_groups(groups, columns=list(ShardRecord._fields))
    table = table.slice(start - skipped, stop - start).select(ShardRecord._fields)
    return [
        ShardRecord(*values)
        for values in zip(*(column.to_pylist() for column in table), strict=True)
    ]


def open_shards(folder: str) -> Shards:
    """Raises DataError when the folder is missing, holds no finished dataset, or a shard lacks a column."""
    fs, path = open_filesystem(folder)
    try:
        names = sorted(_names(fs, path))
    except OSError as error:
        raise DataError(f"cannot read {folder!r}: {error}") from None
    if MANIFEST not in names:
        raise DataError(
            f"{folder!r} holds no prepared dataset (no {MANIFEST}): run `python -m app prepare SOURCE --out {folder}`"
        )
    with fs.open_input_stream(f"{path}/{MANIFEST}") as stream:
        manifest = json.loads(stream.read())
    files: dict[str, tuple[_File, ...]] = {}
    for split in SPLITS:
        first, found = 0, []
        for name in names:
            if name.startswith(f"{split}-") and name.endswith(".parquet"):
                num_rows = _check_shard(fs, f"{path}/{name}")
                found.append(_File(name, first, num_rows))
                first += num_rows
        files[split] = tuple(found)
    if not files["train"] and not files["validation"]:
        raise DataError(
            f"{folder!r} holds no shard: run `python -m app prepare SOURCE --out {folder}`"
        )
    return Shards(
        folder, manifest["digest"], files, manifest["duplicates"], manifest["quarantined"]
    )


def _check_shard(fs: pyarrow.fs.FileSystem, path: str) -> int:
    try:
        metadata = pq.read_metadata(path, filesystem=fs)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a readable shard: {error}") from None
    missing = [name for name in ShardRecord._fields if name not in metadata.schema.names]
    if missing:
        raise DataError(
            f"shard {path} has no column {missing[0]!r} but {', '.join(metadata.schema.names)}: "
            "run `python -m app prepare` on it"
        )
    return int(metadata.num_rows)
