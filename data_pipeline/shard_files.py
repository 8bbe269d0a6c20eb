"""Count and read the rows of a dataset's files, and tell them from the files of others."""

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from data_pipeline.errors import DataError

_NUM_THREADS = 32  # they wait for an object store most of the time


def count_rows(
    fs: pyarrow.fs.FileSystem, paths: Sequence[str], columns: Sequence[str]
) -> list[int]:
    """Return the number of rows of each file; read only the footers, many at a time.

    Raises DataError if a file cannot be read or lacks one of the columns.
    """
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        return list(threads.map(partial(_count_rows, fs, columns), paths))


def _count_rows(fs: pyarrow.fs.FileSystem, columns: Sequence[str], path: str) -> int:
    try:
        metadata = pq.read_metadata(path, filesystem=fs)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a readable shard: {error}") from None
    _require_columns(path, metadata, columns)
    return int(metadata.num_rows)


def read_rows(
    fs: pyarrow.fs.FileSystem,
    path: str,
    rows: range,
    *,
    num_rows: int,
    columns: Sequence[str],
) -> list[tuple[Any, ...]]:
    """Return the columns of some rows of a file with `num_rows` rows; read only their row groups.

    Raises DataError if it cannot be read, has another number of rows or lacks a column.
    """
    with open_parquet(fs, path, num_rows=num_rows, columns=columns) as file:
        # select the row groups that overlap the rows
        groups, num_skipped, first = [], 0, 0
        for group in range(file.num_row_groups):
            group_rows = file.metadata.row_group(group).num_rows
            if first + group_rows <= rows.start:
                num_skipped += group_rows
            elif first < rows.stop:
                groups.append(group)
            first += group_rows
        table = file.read_row_groups(groups, columns=list(columns))

    table = table.slice(rows.start - num_skipped, len(rows)).select(columns)
    return list(zip(*(column.to_pylist() for column in table), strict=True))


@contextmanager
def open_parquet(
    fs: pyarrow.fs.FileSystem, path: str, *, num_rows: int, columns: Sequence[str]
) -> Iterator[pq.ParquetFile]:
    """Open a file. Raises DataError if it has another number of rows or lacks a column.

    An error of reading in the `with` block becomes a DataError that names the file.
    """
    try:
        with pq.ParquetFile(path, filesystem=fs) as file:
            _require_columns(path, file.metadata, columns)
            if file.metadata.num_rows != num_rows:
                raise DataError(
                    f"shard {path} holds {file.metadata.num_rows} records, and dataset.json says "
                    f"{num_rows}: prepare the dataset again"
                )
            yield file
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"shard {path} cannot be read ({' '.join(str(error).split())}): give data.shards a "
            "folder that every node can read, or prepare the dataset again"
        ) from None


def _require_columns(path: str, metadata: pq.FileMetaData, columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in metadata.schema.names]
    if missing:
        raise DataError(
            f"shard {path} has no column {missing[0]!r} but {', '.join(metadata.schema.names)}: "
            "run `python -m app prepare` on it"
        )


def list_files(fs: pyarrow.fs.FileSystem, path: str) -> list[str]:
    """Return the names of the files in a folder, none if it is missing."""
    selector = pyarrow.fs.FileSelector(path, allow_not_found=True)
    return [info.base_name for info in fs.get_file_info(selector) if info.is_file]


def clear_partial_folder(
    fs: pyarrow.fs.FileSystem, path: str, partial_path: str, *, is_own: Callable[[str], bool]
) -> None:
    """Delete the folder that a killed run of `prepare` has left beside the dataset's folder.

    Raises DataError if one of the two is no folder, or if `partial_path` holds a file whose name
    is not that of our own files.
    """
    kinds = pyarrow.fs.FileType
    for each in (path, partial_path):
        if fs.get_file_info(each).type not in (kinds.NotFound, kinds.Directory):
            raise DataError(f"cannot write {path!r}: {each} is a file; give another folder")

    for info in fs.get_file_info(pyarrow.fs.FileSelector(partial_path, allow_not_found=True)):
        if not (info.is_file and is_own(info.base_name)):
            raise DataError(
                f"cannot write {path!r}: {partial_path} holds {info.base_name}, which `prepare` "
                "has not written; move it away, or give another folder"
            )
    if fs.get_file_info(partial_path).type != kinds.NotFound:
        fs.delete_dir(partial_path)


def require_own_files(
    fs: pyarrow.fs.FileSystem, path: str, names: Collection[str], schemas: Collection[pa.Schema]
) -> None:
    """Raise DataError if a file that a new dataset would replace was not written by `prepare`.

    `names` are the files in the folder `path` whose names are those of a dataset. A JSON file is
    ours if it has the digest of a dataset. If it names shards, these are ours, also damaged ones,
    and so are files other than shards. Another Parquet file is ours if it has one of `schemas`.
    """
    owned: set[str] = set()
    for name in sorted(names, key=lambda name: (not name.endswith(".json"), name)):
        try:
            if name in owned:
                continue
            if name.endswith(".json"):
                with fs.open_input_stream(f"{path}/{name}") as stream:
                    values = json.loads(stream.read())
                is_own = {"digest", "quarantined"} <= values.keys()
                if is_own and "shards" in values:
                    owned.update(*values["shards"].values(), (n for n in names if "-" not in n))
            else:
                is_own = pq.read_schema(f"{path}/{name}", filesystem=fs) in schemas
        except (OSError, ValueError, AttributeError, TypeError, pa.ArrowException):
            is_own = False
        if not is_own:
            raise DataError(
                f"cannot write {path!r}: it holds {name}, which `prepare` has not written and "
                "would replace; move it away, or give another folder"
            )
