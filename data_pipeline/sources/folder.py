"""Folder format: one .svg or .svgz file for each drawing, with captions beside the drawings.

The captions are in one of CAPTION_FILES, or in a .txt file next to each drawing:
- captions.json is an object {file: caption} or {file: [captions]};
- the other caption files are tables with a column of files and columns of captions.
A file is named by its path in the folder, with or without its suffix.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from data_pipeline.config import PrepareConfig
from data_pipeline.errors import DataError
from data_pipeline.sources.captions import (
    MAX_CAPTION_BYTES,
    Captions,
    decode_caption,
    make_records,
)
from data_pipeline.sources.columns import find_columns
from data_pipeline.sources.files import SourceFile
from data_pipeline.sources.json_parser import load_json, parse_json_objects
from data_pipeline.sources.record import Record

CAPTION_FILES = (
    "captions.json",
    "captions.jsonl",
    "captions.csv",
    "metadata.jsonl",
    "metadata.csv",
)


def read_folder(
    drawings: Sequence[SourceFile], files: Sequence[SourceFile], source: str, config: PrepareConfig
) -> Iterator[Record]:
    """Return the records of the drawings; `files` are all files of the folder.

    Raises DataError before the first record if the folder has no usable captions.
    """
    by_name = {file.name: file for file in files}
    captions = _read_captions(by_name, config)
    has_text_files = any(_drop_suffix(drawing.name) + ".txt" in by_name for drawing in drawings)
    if not captions and not has_text_files:
        raise DataError(
            f"{source} has no captions: put {', '.join(CAPTION_FILES)} "
            "or a .txt beside each .svg into it"
        )

    return _make_folder_records(drawings, by_name, captions, source, config)


def _make_folder_records(
    drawings: Sequence[SourceFile],
    by_name: Mapping[str, SourceFile],
    captions: Mapping[str, Captions],
    source: str,
    config: PrepareConfig,
) -> Iterator[Record]:
    for drawing in drawings:
        stem = _drop_suffix(drawing.name)
        texts = captions.get(drawing.name) or captions.get(stem) or []
        text_file = by_name.get(stem + ".txt")
        if not texts and text_file is not None:
            texts = [("txt", decode_caption(text_file.read_head(MAX_CAPTION_BYTES)))]

        svg = drawing.read_head(config.max_svg_bytes + 1)
        yield from make_records(stem, svg, texts, source, config)


def _drop_suffix(name: str) -> str:
    return name[: name.rindex(".")]


def _read_captions(by_name: Mapping[str, SourceFile], config: PrepareConfig) -> dict[str, Captions]:
    """Map each drawing's file to its captions in the first caption file; empty without one."""
    for name in CAPTION_FILES:
        if name in by_name:
            file = by_name[name]
            return _read_object(file) if name == "captions.json" else _read_table(file, config)
    return {}


def _read_object(file: SourceFile) -> dict[str, Captions]:
    """Read {file: caption} or {file: [captions]}."""
    value = load_json(file)
    if not isinstance(value, dict):
        raise DataError(f"{file.path} must be an object of file names and captions")
    captions: dict[str, Captions] = {}
    for name, texts in value.items():
        texts = texts if isinstance(texts, list) else [texts]
        captions[name] = [(str(n), text) for n, text in enumerate(texts)]
    return captions


def _read_table(file: SourceFile, config: PrepareConfig) -> dict[str, Captions]:
    """Read a CSV or JSON Lines table with a column of files and columns of captions."""
    rows = list(parse_json_objects(file)) if file.name.endswith(".jsonl") else _read_csv(file)
    if not rows:
        raise DataError(f"{file.path} is empty")

    # find_columns requires a column of drawings, but the drawings are in files of their own:
    # name any column for them.
    names = list(dict.fromkeys(chain.from_iterable(rows)))
    changes = {"svg_column": names[0], "id_column": config.id_column or None}
    columns = find_columns(names, config.model_copy(update=changes), file.path)
    if not columns.id:
        raise DataError(
            f"{file.path} has no column of files, only {', '.join(names)}: name it with --id-column"
        )

    captions: dict[str, Captions] = {}
    for row in rows:
        texts = [(name, row.get(name)) for name in columns.captions]
        captions.setdefault(str(row.get(columns.id)), []).extend(texts)
    return captions


def _read_csv(file: SourceFile) -> list[dict[str, object]]:
    try:
        with file.open_text() as lines:
            return list(csv.DictReader(lines, restkey=""))
    except csv.Error as error:
        raise DataError(f"{file.path} is not CSV: {error}") from None
