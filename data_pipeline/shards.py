"""The prepared dataset on disk: write, replace, open and read it.

train-00000.parquet …       id, svg, caption, source, split; row groups of ROW_GROUP_ROWS
validation-00000.parquet …  test-00000.parquet …
quarantine.parquet          id, source, reason, detail, first_bytes of each refused record
report.json                 counts of `prepare`, and of the drawings and records in the splits
dataset.json                shards, counts, digest, configuration; a folder without it is no dataset

ShardWriter writes dataset.json last. The module depends on no source format and on no tokenizer.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from json.encoder import encode_basestring_ascii
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from data_pipeline.errors import DataError
from data_pipeline.filesystem import open_filesystem
from data_pipeline.remote_errors import explain_remote_error
from data_pipeline.shard_files import (
    clear_partial_folder,
    count_rows,
    list_files,
    read_rows,
    require_own_files,
)

SPLITS = ("train", "validation", "test")
ROW_GROUP_ROWS = 256  # reading one record reads a whole row group
MANIFEST = "dataset.json"
QUARANTINE = "quarantine.parquet"
REPORT = "report.json"

_QUARANTINE = pa.schema(
    [(name, pa.string()) for name in ("id", "source", "reason", "detail")]
    + [("first_bytes", pa.binary())]
)


class ShardRecord(NamedTuple):
    """One record of a shard; `svg` is canonical."""

    id: str
    svg: str
    caption: str
    source: str


_RECORDS = pa.schema([(name, pa.string()) for name in ShardRecord._fields])
_SHARD = _RECORDS.append(pa.field("split", pa.string()))


class QuarantinedRecord(NamedTuple):
    """One refused record: a short reason for counts, a sentence, and the drawing's first bytes."""

    id: str
    source: str
    reason: str
    detail: str
    first_bytes: bytes


class ShardWriter:
    """Write a dataset to `FOLDER.partial`; `commit` moves it to the folder.

    The old dataset stays complete until `commit`. A crash while `commit` moves files leaves a
    folder without dataset.json, which `open_shards` refuses, and never a mixture of two datasets.
    """

    def __init__(self, folder: str, *, shard_records: int) -> None:
        """Create the partial folder. Raises DataError if it, or the folder, cannot be written."""
        self._fs, self._path = open_filesystem(folder)
        self._partial = f"{self._path}.partial"
        self._shard_records = shard_records
        self._records = dict.fromkeys(SPLITS, _RECORDS.empty_table())
        self._shards: dict[str, dict[str, int]] = {split: {} for split in SPLITS}
        self._digests = {split: hashlib.sha256() for split in SPLITS}
        self._quarantined: list[QuarantinedRecord] = []

        try:
            clear_partial_folder(self._fs, self._path, self._partial, is_own=_is_dataset_file)
            old_files = _list_dataset_files(self._fs, self._path)
            require_own_files(self._fs, self._path, old_files, (_SHARD, _QUARANTINE))
            self._fs.create_dir(self._partial, recursive=True)
            self._quarantine = pq.ParquetWriter(
                f"{self._partial}/{QUARANTINE}", _QUARANTINE, filesystem=self._fs
            )
        except OSError as error:
            reason = explain_remote_error(error, folder)
            raise DataError(f"cannot write {folder!r}: {reason}") from None

    def add(self, split: str, records: pa.Table) -> None:
        """Append records to a split; the columns are the fields of ShardRecord."""
        records = pa.concat_tables([self._records[split], records])
        while len(records) >= self._shard_records:
            self._write_shard(split, records.slice(0, self._shard_records))
            records = records.slice(self._shard_records)
        self._records[split] = records

    def refuse(self, record: QuarantinedRecord) -> None:
        """Append a refused record to the quarantine."""
        self._quarantined.append(record)
        if len(self._quarantined) == ROW_GROUP_ROWS:
            self._flush_quarantine()

    def _write_shard(self, split: str, records: pa.Table) -> None:
        quoted = (map(encode_basestring_ascii, column.to_pylist()) for column in records.columns)
        for record in zip(*quoted, strict=True):
            self._digests[split].update(f"[{', '.join(record)}]".encode())

        # The pages of a file depend on the chunks of its columns.
        columns = [*records.combine_chunks().columns, pa.array([split] * len(records))]
        name = f"{split}-{len(self._shards[split]):05d}.parquet"
        pq.write_table(
            pa.table(columns, schema=_SHARD),
            f"{self._partial}/{name}",
            filesystem=self._fs,
            row_group_size=ROW_GROUP_ROWS,
            compression="zstd",
        )
        self._shards[split][name] = len(records)

    def _flush_quarantine(self) -> None:
        if self._quarantined:
            columns = [*zip(*self._quarantined, strict=True)]
            self._quarantine.write_table(pa.table(columns, schema=_QUARANTINE))
            self._quarantined = []

    def close(self) -> str:
        """Write the buffered records; return the digest of each split's records in their order."""
        for split, records in self._records.items():
            if len(records):
                self._write_shard(split, records)
        self._records.clear()
        self._flush_quarantine()
        self._quarantine.close()
        digested = SPLITS if self._shards["test"] else SPLITS[:-1]  # as before test splits
        digests = b"".join(self._digests[split].digest() for split in digested)
        return hashlib.sha256(digests).hexdigest()

    def read_written(self) -> Iterator[tuple[str, pa.Table]]:
        """Yield the drawings and captions of each split from the written files, after `close`."""
        for split, shards in self._shards.items():
            for name in shards:
                path = f"{self._partial}/{name}"
                # a ParquetFile is in a reference cycle: its memory would stay for long
                yield split, pq.read_table(path, filesystem=self._fs, columns=["svg", "caption"])

    def commit(self, manifest: Mapping[str, Any], report: Mapping[str, Any]) -> None:
        """Replace the dataset in the folder by the written one; leave other files there alone.

        The manifest gets the names of the shards with their numbers of records.
        """
        fs, path = self._fs, self._path
        for name, value in ((REPORT, report), (MANIFEST, {**manifest, "shards": self._shards})):
            with fs.open_output_stream(f"{self._partial}/{name}") as stream:
                stream.write(json.dumps(value, indent=1).encode())

        # delete the old dataset, the manifest first
        fs.create_dir(path, recursive=True)
        old_files = _list_dataset_files(fs, path)
        for name in sorted(old_files, key=lambda name: name != MANIFEST):
            fs.delete_file(f"{path}/{name}")

        # move the new dataset, the manifest last
        for name in sorted(list_files(fs, self._partial), key=lambda name: name == MANIFEST):
            fs.move(f"{self._partial}/{name}", f"{path}/{name}")
        fs.delete_dir(self._partial)

    def abandon(self) -> None:
        """Delete the written files; leave the folder as it was."""
        self._quarantine.close()
        self._fs.delete_dir(self._partial)


def _is_dataset_file(name: str) -> bool:
    return name in (MANIFEST, QUARANTINE, REPORT) or _is_shard(name, "|".join(SPLITS))


def _list_dataset_files(fs: pyarrow.fs.FileSystem, path: str) -> list[str]:
    return [name for name in list_files(fs, path) if _is_dataset_file(name)]


def _is_shard(name: str, split: str) -> bool:
    return re.fullmatch(rf"({split})-\d{{5,}}\.parquet", name) is not None


class _ShardFile(NamedTuple):
    name: str
    first_record: int  # index in the split
    num_records: int


@dataclass(frozen=True)
class Shards:
    """An opened dataset. It holds only names and counts, so it is cheap to pickle."""

    folder: str
    digest: str
    files: dict[str, tuple[_ShardFile, ...]]
    num_duplicates: int
    quarantined: dict[str, int]
    """Number of refused records by reason."""

    def num_records(self, split: str) -> int:
        """Return the number of records of a split."""
        return sum(file.num_records for file in self.files[split])

    def read(self, split: str, start: int, stop: int) -> list[ShardRecord]:
        """Return records start … stop-1 of the split in their order; read only their row groups.

        Raises DataError if this node cannot read the folder, or if a shard has another number of
        records than the dataset says.
        """
        assert 0 <= start <= stop <= self.num_records(split), (split, start, stop)
        fs, path = open_filesystem(self.folder)
        records: list[ShardRecord] = []
        for file in self.files[split]:
            file_start = max(start - file.first_record, 0)
            file_stop = min(stop - file.first_record, file.num_records)
            if file_start < file_stop:
                name, span = f"{path}/{file.name}", range(file_start, file_stop)
                rows = read_rows(fs, name, span, num_rows=file.num_records, columns=_RECORDS.names)
                records += map(ShardRecord._make, rows)
        assert len(records) == stop - start, (self.folder, split, start, stop, len(records))
        return records

    def read_captions(self, split: str) -> Iterator[str]:
        """Yield all captions of the split in their order; read no other column.

        Raises DataError if this node cannot read the folder.
        """
        fs, path = open_filesystem(self.folder)
        for file in self.files[split]:
            name, num_rows = f"{path}/{file.name}", file.num_records
            rows = read_rows(fs, name, range(num_rows), num_rows=num_rows, columns=["caption"])
            yield from (caption for (caption,) in rows)


def open_shards(folder: str) -> Shards:
    """Open a prepared dataset; read dataset.json, and no shard if it names the shards.

    Without names of shards, the files in the folder are the shards. A test split may be missing.
    Raises DataError if the folder holds no finished dataset or no shard.
    """
    fs, path = open_filesystem(folder)
    fix = f"run `python -m app prepare SOURCE --out {folder}`"
    try:
        with fs.open_input_stream(f"{path}/{MANIFEST}") as stream:
            content = stream.read()
    except FileNotFoundError:
        raise DataError(f"{folder!r} holds no prepared dataset (no {MANIFEST}): {fix}") from None
    except OSError as error:
        reason = explain_remote_error(error, folder)
        raise DataError(f"cannot read {MANIFEST} of {folder!r}: {reason}") from None

    try:
        manifest = json.loads(content)
        num_records = {"test": {}, **(manifest.get("shards") or _count_records(fs, path))}
        files = {split: _list_shards(num_records[split]) for split in SPLITS}
        if not any(files.values()):
            raise DataError(f"{folder!r} holds no shard: {fix}")
        digest, num_duplicates = manifest["digest"], manifest["duplicates"]
        return Shards(folder, digest, files, num_duplicates, manifest["quarantined"])
    except DataError:  # a ValueError, and already one sentence
        raise
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            f"{folder!r} has a {MANIFEST} that `prepare` did not write "
            f"({type(error).__name__}: {error}): {fix}"
        ) from None


def _count_records(fs: pyarrow.fs.FileSystem, path: str) -> dict[str, dict[str, int]]:
    """Return the number of records of each shard in the folder, by split and name."""
    names = sorted(list_files(fs, path))
    counted = {}
    for split in SPLITS:
        shards = [name for name in names if _is_shard(name, split)]
        counts = count_rows(fs, [f"{path}/{name}" for name in shards], ShardRecord._fields)
        counted[split] = dict(zip(shards, counts, strict=True))
    return counted


def _list_shards(num_records: Mapping[str, int]) -> tuple[_ShardFile, ...]:
    starts = accumulate(num_records.values(), initial=0)
    return tuple(
        _ShardFile(name, start, count)
        for (name, count), start in zip(num_records.items(), starts, strict=False)
    )
