"""Parquet format: columns of drawings, captions and ids (see `columns`), read batch by batch."""

import io
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.config import PrepareConfig
from data_pipeline.errors import DataError
from data_pipeline.sources.captions import TEXT_KEYS
from data_pipeline.sources.columns import (
    HEAD_ROWS,
    Columns,
    check_head,
    find_columns,
    make_records_from_row,
)
from data_pipeline.sources.files import SourceFile
from data_pipeline.sources.record import Record

# In memory at once: this many rows, or fewer of about this size.
_BATCH_ROWS = 256
_BATCH_BYTES = 1 << 21
# A column of a row group is read in pieces of this size (bytes): the group may be the whole corpus.
_BUFFER_BYTES = 1 << 20


def read_parquet(file: SourceFile, source: str, config: PrepareConfig) -> Iterator[Record]:
    """Return the records of a Parquet file.

    Raises DataError before the first record if the file, its columns or their types are not usable.
    """
    schema = read_schema(file)
    columns = _require_types(schema, find_columns(schema.names, config, file.path), file.path)
    sides = (columns.svg, *columns.captions) if columns.pair else ()
    if checked := [name for name in (*sides, columns.split) if name]:
        head = list(islice(read_rows(file, checked), HEAD_ROWS))
        columns = check_head(head, columns, config, file.path)
    names = columns.names()

    return (
        record
        for number, row in enumerate(read_rows(file, names))
        for record in make_records_from_row(row, columns, f"{file.stem}:{number}", source, config)
    )


def read_schema(file: SourceFile) -> pa.Schema:
    """Return the columns of a Parquet file. Raises DataError."""
    return _read_metadata(file).schema.to_arrow_schema()


def count_rows(file: SourceFile) -> int:
    """Return the number of rows in the footer of a Parquet file. Raises DataError."""
    return int(_read_metadata(file).num_rows)


def _read_metadata(file: SourceFile) -> pq.FileMetaData:
    """Return the footer without the Arrow types that the writer noted beside Parquet's own.

    Text is then `string` and a list is `list`, whatever the writer had in memory (dictionary,
    fixed size). pyarrow 25 cannot read a null in a column that was noted as a fixed-size list.
    Raises DataError if the file cannot be read.
    """
    file.require_data()
    footer = io.BytesIO()
    try:
        pq.read_metadata(file.path, filesystem=file.fs).write_metadata_file(footer)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{file.path} is not a readable Parquet file: {reason}") from None
    return pq.read_metadata(io.BytesIO(footer.getvalue().replace(b"ARROW:schema", b"arrow-schema")))


def _require_types(schema: pa.Schema, columns: Columns, where: str) -> Columns:
    """Return the columns without captions of an unusable type, if others are left.

    Raises DataError if the drawings or all captions are of an unusable type, or if two columns have
    one name. A column of nulls has no type; its rows have no value.
    """
    for column in columns.names():
        if schema.names.count(column) > 1:
            raise DataError(f"{where} has several columns {column!r}: rename all but one")
    usable = tuple(name for name in columns.captions if _is_caption(schema.field(name).type))
    for column in (columns.svg, *(columns.captions if not usable else ())):
        found = schema.field(column).type
        if column != columns.svg or not _is_scalar(found):
            raise DataError(f"{where}: column {column!r} holds {found}, not text")
    return replace(columns, captions=usable)


def _is_scalar(kind: pa.DataType) -> bool:
    return kind in (pa.string(), pa.binary()) or pa.types.is_null(kind)


def _is_caption(kind: pa.DataType) -> bool:
    """Return whether `captions` reads values of this type; pandas makes a column of NaN floats."""
    if not pa.types.is_list(kind):
        return _is_scalar(kind) or pa.types.is_floating(kind)
    item = kind.value_type
    if pa.types.is_struct(item):
        return any(field.name in TEXT_KEYS for field in item)
    return _is_scalar(item)


def read_rows(file: SourceFile, names: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file with the named columns. Raises DataError if it is broken."""
    try:
        with pq.ParquetFile(
            file.path,
            filesystem=file.fs,
            metadata=_read_metadata(file),
            buffer_size=_BUFFER_BYTES,
            pre_buffer=False,
        ) as parquet:
            num_rows = _choose_batch_rows(parquet.metadata)
            for batch in parquet.iter_batches(num_rows, columns=names):
                yield from _convert_batch(batch)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{file.path} cannot be read to its end: {' '.join(str(error).split())}"
        ) from None


def _choose_batch_rows(metadata: pq.FileMetaData) -> int:
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    row_bytes = sum(group.total_byte_size for group in groups) / max(metadata.num_rows, 1)
    return max(min(int(_BATCH_BYTES / max(row_bytes, 1)), _BATCH_ROWS), 1)


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
    kind = _to_binary(column.type)
    if kind == column.type:
        return list(column.to_pylist())
    return [_decode(value) for value in column.cast(kind).to_pylist()]


def _to_binary(kind: pa.DataType) -> pa.DataType:
    """Return the type with bytes in place of text, also inside lists and structs."""
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _to_binary(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(_to_binary(kind.value_type))
    return pa.binary() if kind == pa.string() else kind


def _decode(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if isinstance(value, dict):
        return {key: _decode(item) for key, item in value.items()}
    return value
