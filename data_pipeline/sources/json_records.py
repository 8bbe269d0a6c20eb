"""JSON format: one object per line, or one array of objects, with columns as Parquet has.

Rows are parsed as a stream, so the file may be larger than memory.
"""

from collections.abc import Iterator
from itertools import chain, islice

from data_pipeline.config import PrepareConfig
from data_pipeline.errors import DataError
from data_pipeline.sources.columns import (
    HEAD_ROWS,
    check_head,
    find_columns,
    make_records_from_row,
)
from data_pipeline.sources.files import SourceFile
from data_pipeline.sources.json_parser import parse_json_objects
from data_pipeline.sources.record import Record


def read_json(file: SourceFile, source: str, config: PrepareConfig) -> Iterator[Record]:
    """Return the records of a JSON file.

    Raises DataError before the first record if the first HEAD_ROWS rows are not usable.
    """
    rows = parse_json_objects(file)
    head = list(islice(rows, HEAD_ROWS))
    if not head:
        raise DataError(f"{file.path} is empty")
    names = list(dict.fromkeys(chain.from_iterable(head)))
    columns = check_head(head, find_columns(names, config, file.path), config, file.path)

    return (
        record
        for number, row in enumerate(chain(head, rows))
        for record in make_records_from_row(row, columns, f"{file.stem}:{number}", source, config)
    )
