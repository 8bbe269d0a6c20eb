"""Parquet format: columns of drawings, captions and ids (see `columns`), read batch by batch."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.config import PrepareConfig
from data_pipeline.errors import DataError
from data_pipeline.sources.columns import (
    HEAD_ROWS,
    Columns,
    find_columns,
    make_records_from_row,
    require_drawings,
)
from data_pipeline.sources.files import SourceFile
from data_pipeline.sources.record import Record

_BATCH_ROWS = 256  # in memory at once
_TEXT = {pa.string(), pa.large_string(), pa.string_view()}
_BYTES = {pa.binary(), pa.large_binary(), pa.binary_view()}


def read_parquet(file: SourceFile, source: str, config: PrepareConfig) -> Iterator[Record]:
    """Return the records of a Parquet file.

    Raises DataError before the first record if the file, its columns or their types are not usable.
    """
    try:
        schema = pq.read_schema(file.path, filesystem=file.fs)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file.path} is not a readable Parquet file: {error}") from None
    columns = find_columns(schema.names, config, file.path)
    _require_text(schema, columns, file.path)
    require_drawings(islice(_read_rows(file, columns), HEAD_ROWS), columns, file.path)

    return (
        record
        for number, row in enumerate(_read_rows(file, columns))
        for record in make_records_from_row(row, columns, f"{file.stem}:{number}", source, config)
    )


def _require_text(schema: pa.Schema, columns: Columns, where: str) -> None:
    """Raise DataError if a column does not hold text; the SVG may also be bytes."""
    for column in (columns.svg, *columns.captions):
        found = schema.field(column).type
        is_svg = column == columns.svg
        if not _is_text(found, may_be_list=not is_svg, may_be_bytes=is_svg or columns.pair):
            raise DataError(f"{where}: column {column!r} holds {found}, not text")


def _is_text(kind: pa.DataType, *, may_be_list: bool, may_be_bytes: bool) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if (may_be_list and is_list) or pa.types.is_dictionary(kind):
        kind = kind.value_type
    return kind in _TEXT or (may_be_bytes and kind in _BYTES)


def _read_rows(file: SourceFile, columns: Columns) -> Iterator[dict[str, Any]]:
    try:
        with pq.ParquetFile(file.path, filesystem=file.fs) as parquet:
            for batch in parquet.iter_batches(_BATCH_ROWS, columns=columns.names()):
                yield from _convert_batch(batch)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{file.path} cannot be read to its end: {' '.join(str(error).split())}"
        ) from None


def _convert_batch(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Return the rows of a batch.

    Parquet does not check that text is UTF-8. A byte that is not becomes U+FFFD, so that one bad
    row does not end the run.
    """
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError:
        names = batch.schema.names
        columns = [_decode_column(column) for column in batch.columns]
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _decode_column(column: pa.Array) -> list[Any]:
    if column.type not in _TEXT:
        return list(column.to_pylist())
    values = column.cast(pa.large_binary()).to_pylist()
    return [None if value is None else value.decode("utf-8", "replace") for value in values]
