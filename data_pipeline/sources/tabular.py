"""Parquet, JSON Lines and JSON arrays → rows, a batch or a line at a time. Knows no drawing's inside."""

import io
import json
import re
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.config import PrepareConfig
from data_pipeline.errors import DataError
from data_pipeline.sources.columns import (
    Columns,
    find_columns,
    looks_like_svg,
    make_records_from_row,
)
from data_pipeline.sources.files import SourceFile
from data_pipeline.sources.record import Record

_BATCH_ROWS = 256  # of a Parquet file that are in memory at once
_HEAD_RECORDS = 100  # say which columns a file has, and whether a pair holds drawings
_CHUNK_CHARS = 1 << 20
_MAX_RECORD_CHARS = 1 << 26  # of a JSON array: what is longer is taken for broken
_BETWEEN = re.compile(r"[\s,]*")
_TEXT = {pa.string(), pa.large_string(), pa.string_view()}
_BYTES = {pa.binary(), pa.large_binary(), pa.binary_view()}


def read_parquet(file: SourceFile, source: str, config: PrepareConfig) -> Iterator[Record]:
    """Raises DataError before the first row."""
    try:
        schema = pq.read_schema(file.path, filesystem=file.fs)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file.path} is not a readable Parquet file: {error}") from None
    columns = find_columns(schema.names, config, file.path)
    _check_types(schema, columns, file.path)
    if columns.pair:
        _check_pair(islice(_parquet_records(file, columns), _HEAD_RECORDS), columns, file.path)
    return (
        row
        for number, record in enumerate(_parquet_records(file, columns))
        for row in make_records_from_row(record, columns, f"{file.stem}:{number}", source, config)
    )


def _check_types(schema: pa.Schema, columns: Columns, where: str) -> None:
    for column in (columns.svg, *columns.captions):
        found = kind = schema.field(column).type
        may_be_list = column != columns.svg and (
            pa.types.is_list(kind) or pa.types.is_large_list(kind)
        )
        if may_be_list or pa.types.is_dictionary(kind):
            kind = kind.value_type
        if kind not in _TEXT and not (kind in _BYTES and (column == columns.svg or columns.pair)):
            raise DataError(f"{where}: column {column!r} holds {found}, not text")


def _parquet_records(file: SourceFile, columns: Columns) -> Iterator[dict[str, Any]]:
    try:
        with pq.ParquetFile(file.path, filesystem=file.fs) as parquet:
            for batch in parquet.iter_batches(_BATCH_ROWS, columns=columns.all()):
                yield from _readable(batch)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{file.path} cannot be read to its end: {' '.join(str(error).split())}"
        ) from None


def _readable(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Nobody checks that Parquet's text is UTF-8: what is not becomes U+FFFD, and not the end of the corpus."""
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError:
        columns = [_decoded(column) for column in batch.columns]
        return [
            dict(zip(batch.schema.names, values, strict=True))
            for values in zip(*columns, strict=True)
        ]


def _decoded(column: pa.Array) -> list[Any]:
    if column.type not in _TEXT:
        return list(column.to_pylist())
    values = column.cast(pa.large_binary()).to_pylist()
    return [None if value is None else value.decode("utf-8", "replace") for value in values]


def read_json(file: SourceFile, source: str, config: PrepareConfig) -> Iterator[Record]:
    """One object per line, or one array of objects. Raises DataError, for its first records before the first row."""
    records = read_json_objects(file)
    head = list(islice(records, _HEAD_RECORDS))
    if not head:
        raise DataError(f"{file.path} is empty")
    columns = find_columns(list(dict.fromkeys(chain.from_iterable(head))), config, file.path)
    if columns.pair:
        _check_pair(iter(head), columns, file.path)
    return (
        row
        for number, record in enumerate(chain(head, records))
        for row in make_records_from_row(record, columns, f"{file.stem}:{number}", source, config)
    )


def _check_pair(records: Iterator[dict[str, Any]], columns: Columns, where: str) -> None:
    sides = (columns.svg, *columns.captions)
    if not any(looks_like_svg(record.get(side)) for record in records for side in sides):
        raise DataError(
            f"{where}: neither {' nor '.join(sides)} holds an SVG in the first {_HEAD_RECORDS} records"
        )


def read_json_objects(file: SourceFile) -> Iterator[dict[str, Any]]:
    """Raises DataError for what is no object, with its place."""
    with file.lines() as stream:
        first = stream.read(_CHUNK_CHARS)  # not a line: an array may be all on one
        if first.lstrip().startswith("["):
            yield from _array(first, stream, file.path)
        else:
            yield from _lines(first + stream.readline(), stream, file.path)


def _lines(first: str, stream: TextIO, where: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(chain(io.StringIO(first, newline=""), stream), start=1):
        if line.strip():
            yield _object(line, f"{where}, line {number}")


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise DataError(f"{where}: not a JSON object")
    return record


def _array(buffer: str, stream: TextIO, where: str) -> Iterator[dict[str, Any]]:
    """The objects of an array too large for memory: one is decoded as soon as it is complete."""
    decode = json.JSONDecoder().raw_decode
    position, number = buffer.index("[") + 1, 1
    while True:
        position = _BETWEEN.match(buffer, position).end()  # type: ignore[union-attr]  # it matches nothing, too
        if buffer.startswith("]", position):
            return
        try:
            record, position = decode(buffer, position)
        except RecursionError:
            raise DataError(f"{where}, record {number}: nested too deeply") from None
        except ValueError:
            more = stream.read(_CHUNK_CHARS) if len(buffer) - position < _MAX_RECORD_CHARS else ""
            if not more:
                raise DataError(f"{where}, record {number}: not a JSON object") from None
            buffer, position = buffer[position:] + more, 0
            continue
        if not isinstance(record, dict):
            raise DataError(f"{where}, record {number}: not a JSON object")
        yield record
        number += 1
