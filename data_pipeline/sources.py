"""Every input format → rows, streamed. Knows no cleaning, no splits and no shards."""

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.config import PrepareConfig
from data_pipeline.errors import DataError
from data_pipeline.icons import phosphor_icons
from data_pipeline.rows import Row
from data_pipeline.scenes import Style, scenes

_BATCH_ROWS = 512  # of a Parquet file that are in memory at once
_TEXT = {pa.string(), pa.large_string(), pa.string_view()}
_BYTES = {pa.binary(), pa.large_binary(), pa.binary_view()}
_READABLE: dict[str, Any] = {"encoding": "utf-8-sig", "errors": "replace"}
_CAPTION_FILES = ("captions.json", "captions.jsonl", "captions.csv")


def read_source(spec: str, config: PrepareConfig) -> Iterator[Row]:
    """The rows of one source, in its own order. What can be checked is checked before the first row.

    `spec` is one of
    - `phosphor`: the icons of the package py-phosphor-icons;
    - `scenes:N`, `scenes:N:SEED` or `scenes:N:SEED:STYLE`: N procedurally drawn scenes, captions `plain` or `list`;
    - a `.parquet` file, or a folder of them, with the columns that `config` names;
    - a `.jsonl` file: one object per line, with the same names as keys;
    - a folder of `.svg` files (subfolders too) with, beside them, one `captions.json` ({file: caption}),
      `captions.jsonl` or `captions.csv` (rows with the configured id and caption columns, the id being the
      file's path in the folder, with or without `.svg`), or else a `.txt` next to each `.svg`.
      A drawing without a caption is a row with an empty one.

    Raises DataError.
    """
    if spec == "phosphor":
        return phosphor_icons()
    if spec.startswith("scenes:"):
        return _scenes(spec)
    path = Path(spec).expanduser()
    if path.is_dir():
        if files := sorted(path.glob("*.parquet")):
            return _parquet(files, path.name, config)
        return _folder(path, config)
    if not path.exists():
        raise DataError(
            f"source {spec!r} does not exist: give a .parquet or .jsonl file, a folder, phosphor or scenes:N"
        )
    if path.suffix == ".parquet":
        return _parquet([path], path.name, config)
    if path.suffix == ".jsonl":
        return _jsonl(path, config)
    raise DataError(f"source {spec!r} is neither a folder nor a .parquet or .jsonl file")


def _row(id_: object, svg: object, caption: object, source: str) -> Row:
    """Rows with the same caption, whatever its case and spacing, are one concept."""
    text = "" if caption is None else str(caption)
    drawing = svg if isinstance(svg, str | bytes) else ""  # to quarantine: not XML
    return Row(str(id_), drawing, text, source, concept=" ".join(text.lower().split()))


def _scenes(spec: str) -> Iterator[Row]:
    parts = re.fullmatch(r"scenes:(\d+)(?::(\d+))?(?::(plain|list))?", spec)
    if not parts:
        raise DataError(f"source {spec!r}: write scenes:N, scenes:N:SEED or scenes:N:SEED:STYLE (plain or list)")
    style: Style = "list" if parts[3] == "list" else "plain"
    return scenes(int(parts[1]), seed=int(parts[2] or 0), style=style)


def _required(config: PrepareConfig) -> dict[str, str]:
    """Column → the flag that names it. An empty id column numbers the rows instead."""
    columns = {config.svg_column: "--svg-column", config.caption_column: "--caption-column"}
    return columns | ({config.id_column: "--id-column"} if config.id_column else {})


def _check_columns(path: Path, found: Sequence[str], required: Mapping[str, str]) -> None:
    for column, flag in required.items():
        if column not in found:
            raise DataError(
                f"{path} has no column {column!r}, only {', '.join(sorted(found))}: name the right one with {flag}"
            )


def _parquet(paths: list[Path], source: str, config: PrepareConfig) -> Iterator[Row]:
    for path in paths:
        try:
            schema = pq.read_schema(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{path} is not a readable Parquet file: {error}") from None
        _check_columns(path, schema.names, _required(config))
        for column, kinds in ((config.svg_column, _TEXT | _BYTES), (config.caption_column, _TEXT)):
            if schema.field(column).type not in kinds:
                raise DataError(f"{path}: column {column!r} holds {schema.field(column).type}, not text")
    return _parquet_rows(paths, source, config)


def _parquet_rows(paths: list[Path], source: str, config: PrepareConfig) -> Iterator[Row]:
    columns = list(_required(config))
    for path in paths:
        number = 0
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
                for record in batch.to_pylist():
                    yield _from_record(record, f"{path.stem}:{number}", source, config)
                    number += 1


def _from_record(record: dict[str, Any], number: str, source: str, config: PrepareConfig) -> Row:
    id_ = record[config.id_column] if config.id_column else number
    return _row(id_, record[config.svg_column], record[config.caption_column], source)


def _json_lines(path: Path, required: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    with path.open(**_READABLE) as lines:
        for number, line in enumerate(lines, start=1):
            if line.isspace():
                continue
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict):
                raise DataError(f"{path}, line {number}: not a JSON object")
            _check_columns(Path(f"{path}, line {number},"), list(record), required)
            yield record


def _jsonl(path: Path, config: PrepareConfig) -> Iterator[Row]:
    required = _required(config)
    if next(_json_lines(path, required), None) is None:
        raise DataError(f"{path} is empty")
    return (
        _from_record(record, f"{path.stem}:{number}", path.name, config)
        for number, record in enumerate(_json_lines(path, required))
    )


def _folder(path: Path, config: PrepareConfig) -> Iterator[Row]:
    drawings = sorted(path.rglob("*.svg"))
    if not drawings:
        raise DataError(f"{path} holds no .parquet and no .svg file")
    captions = _captions(path, config)
    if not captions and not any(drawing.with_suffix(".txt").exists() for drawing in drawings):
        raise DataError(f"{path} has no captions: put {', '.join(_CAPTION_FILES)} or a .txt beside each .svg into it")
    return _drawings(path, drawings, captions)


def _captions(path: Path, config: PrepareConfig) -> dict[str, str]:
    """File → caption, from the first captions file there is; empty without one."""
    required = {config.id_column or "id": "--id-column", config.caption_column: "--caption-column"}
    id_, caption = required
    found = next((path / name for name in _CAPTION_FILES if (path / name).exists()), None)
    if found is None:
        return {}
    if found.suffix == ".json":
        try:
            captions = json.loads(found.read_text(**_READABLE))
        except ValueError as error:
            raise DataError(f"{found} is not JSON: {error}") from None
        if not isinstance(captions, dict):
            raise DataError(f"{found} must be an object of file names and captions")
        return captions
    if found.suffix == ".jsonl":
        return {str(record[id_]): record[caption] for record in _json_lines(found, required)}
    with found.open(**_READABLE, newline="") as lines:
        table = csv.DictReader(lines)
        _check_columns(found, list(table.fieldnames or ()), required)
        return {record[id_]: record[caption] for record in table}


def _drawings(path: Path, drawings: list[Path], captions: dict[str, str]) -> Iterator[Row]:
    for drawing in drawings:
        name = drawing.relative_to(path).as_posix()
        stem = name.removesuffix(".svg")
        caption = captions.get(name, captions.get(stem))
        beside = drawing.with_suffix(".txt")
        if caption is None and beside.exists():
            caption = beside.read_text(**_READABLE).strip()
        yield _row(stem, drawing.read_bytes(), caption, path.name)
