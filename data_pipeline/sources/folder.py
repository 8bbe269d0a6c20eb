"""Folder format: one .svg or .svgz file for each drawing, with captions beside the drawings.

The captions are in one of CAPTION_FILES in any folder, or in a .txt file next to each drawing:
- captions.json is an object {file: caption} or {file: [captions]};
- the other caption files are tables with a column of files and columns of captions.
A file is named by its path from the folder of the caption file, with or without its suffix. Of
several captions files that name a drawing, the one in the deepest folder counts. Thus each split of
a Hugging Face image folder may have a metadata file of its own. The caption files of one folder add
to each other, and may not disagree about a drawing. A table in CSV may have commas, semicolons or
tabs between its fields.
"""

import csv
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TypeVar

from data_pipeline.config import PrepareConfig
from data_pipeline.errors import DataError
from data_pipeline.sources.captions import (
    MAX_CAPTION_BYTES,
    Captions,
    decode_caption,
    make_records,
    read_texts,
)
from data_pipeline.sources.columns import (
    check_head,
    find_columns,
    read_id,
    read_split,
    require_single,
)
from data_pipeline.sources.files import (
    SVG_SUFFIXES,
    SourceFile,
    UnreadableFileError,
    normalise_name,
)
from data_pipeline.sources.json_parser import load_json, parse_json_objects
from data_pipeline.sources.parquet import read_rows, read_schema
from data_pipeline.sources.record import Record
from data_pipeline.sources.split_names import find_layout

T = TypeVar("T")

CAPTION_FILES = (
    "captions.json",
    "captions.jsonl",
    "captions.csv",
    "metadata.jsonl",
    "metadata.csv",
    "metadata.parquet",
)
_FILE_COLUMNS = ("file_name", "filename", "file")  # before a column of ids
_DELIMITERS = ",;\t"  # of CSV; spreadsheets of many languages write semicolons
_MAX_FIELD_CHARS = 1 << 26  # of one field of CSV; Python's own limit is 131,072


def is_caption_file(file: SourceFile) -> bool:
    """Return whether a folder's captions may be in the file, by its name."""
    return _split_folder(file)[1] in CAPTION_FILES


def read_folder(
    drawings: Sequence[SourceFile], files: Sequence[SourceFile], source: str, config: PrepareConfig
) -> Iterator[Record]:
    """Return the records of the drawings; `files` are all files of the folder.

    Raises DataError before the first record if the folder has no usable captions.
    """
    if not config.needs_captions:
        return _make_folder_records(drawings, {}, {}, {}, source, config)
    names = [normalise_name(drawing.name) for drawing in drawings]
    captions, splits = _read_captions(files, config)
    if config.split_column is None:
        splits = find_layout(names, are_drawings=True) | splits
    text_files = _find_text_files(files, {_drop_suffix(name) for name in names})
    if not captions and not text_files:
        raise DataError(
            f"{source} has no captions: put {', '.join(CAPTION_FILES)} "
            "or a .txt beside each .svg into it"
        )
    if not text_files and not any(_find(captions, name) for name in names):
        raise DataError(
            f"{source} has captions of files such as {next(iter(captions))!r}, but of no drawing "
            f"such as {names[0]!r}: name the drawings by their path from the file of captions"
        )
    return _make_folder_records(drawings, captions, splits, text_files, source, config)


def _make_folder_records(
    drawings: Sequence[SourceFile],
    captions: Mapping[str, Captions],
    splits: Mapping[str, str],
    text_files: Mapping[str, SourceFile],
    source: str,
    config: PrepareConfig,
) -> Iterator[Record]:
    for drawing in drawings:
        name = normalise_name(drawing.name)
        stem = _drop_suffix(name)
        split = _find(splits, name) or ""
        texts = _find(captions, name) or []
        try:
            if not texts and stem in text_files:
                texts = [("txt", decode_caption(text_files[stem].read_head(MAX_CAPTION_BYTES)))]
            svg = drawing.read_head(config.max_svg_bytes + 1)
        except UnreadableFileError as error:
            yield Record(stem, b"", "", source, "", split=split, unreadable=str(error))
            continue
        yield from make_records(stem, svg, texts, source, config, split)


def _split_folder(file: SourceFile) -> tuple[str, str]:
    """Return the folder and the base name in lower case."""
    folder, _, base = normalise_name(file.name).rpartition("/")
    return folder, base.lower()


def _drop_suffix(name: str) -> str:
    return name[: name.rindex(".")]


def _find_text_files(files: Iterable[SourceFile], stems: Collection[str]) -> dict[str, SourceFile]:
    """Map the stem of each drawing to the .txt file beside it."""
    texts = [file for file in files if file.name.lower().endswith(".txt")]
    by_stem = {_drop_suffix(normalise_name(file.name)): file for file in texts}
    return {stem: by_stem[stem] for stem in stems if stem in by_stem}


def _find(values: Mapping[str, T], name: str) -> T | None:
    """Return the value of a drawing, whose suffix may be missing or in the other case."""
    stem, dot, suffix = name.rpartition(".")
    names = (name, stem + dot + suffix.lower(), stem + dot + suffix.upper(), stem)
    return next((values[name] for name in names if name in values), None)


def _read_captions(
    files: Iterable[SourceFile], config: PrepareConfig
) -> tuple[dict[str, Captions], dict[str, str]]:
    """Map the path of each drawing to its captions, and to the split that its table gives."""
    by_folder: dict[str, list[SourceFile]] = {}
    found = [file for file in files if is_caption_file(file)]
    for file in sorted(found, key=lambda file: CAPTION_FILES.index(_split_folder(file)[1])):
        by_folder.setdefault(_split_folder(file)[0], []).append(file)

    captions: dict[str, Captions] = {}
    splits: dict[str, str] = {}
    for folder in sorted(by_folder):  # a folder is before its subfolders
        named, given = _read_caption_files(by_folder[folder], config)
        paths = {name: normalise_name(f"{folder or '.'}/{name}") for name in named}
        captions |= {paths[name]: texts for name, texts in named.items()}
        splits |= {paths[name]: split for name, split in given.items()}
    return captions, splits


def _read_caption_files(
    files: Sequence[SourceFile], config: PrepareConfig
) -> tuple[dict[str, Captions], dict[str, str]]:
    """Read all caption files of one folder.

    Raises DataError if two of them give one drawing different captions or splits.
    """
    captions: dict[str, Captions] = {}
    splits: dict[str, str] = {}
    owners: dict[str, SourceFile] = {}
    for file in files:
        is_object = _split_folder(file)[1] == "captions.json"
        named, given = (_read_object(file), {}) if is_object else _read_table(file, config)
        earlier = dict(captions)
        for name, texts in named.items():
            known = _find_spelling(earlier, name)
            if known is not None:
                is_same = _agree(_list_texts(earlier[known]), _list_texts(texts))
                if not is_same or not _agree(splits.get(known), given.get(name)):
                    raise DataError(
                        f"{owners[known].path} and {file.path} disagree about {name!r}: correct "
                        "one of the files, or remove it"
                    )
                texts = texts if _list_texts(texts) else earlier[known]
            captions[name] = texts
            owners.setdefault(name, file)
        splits |= given
    return captions, splits


def _find_spelling(names: Collection[str], name: str) -> str | None:
    """Return the spelling of a drawing's name, with or without its suffix, that is in `names`."""
    stem, _, suffix = name.rpartition(".")
    base = stem if f".{suffix.lower()}" in SVG_SUFFIXES else name
    endings = [ending for each in SVG_SUFFIXES for ending in (each, each.upper())]
    spellings = (name, base, *(base + ending for ending in endings))
    return next((spelling for spelling in spellings if spelling in names), None)


def _agree(first: object, second: object) -> bool:
    """Return whether two values are equal, or one is missing."""
    return not first or not second or first == second


def _list_texts(captions: Captions) -> list[str]:
    return [text for _, text in read_texts(captions)[0]]


def _read_object(file: SourceFile) -> dict[str, Captions]:
    """Read {file: caption} or {file: [captions]}."""
    value = load_json(file)
    if not isinstance(value, dict):
        raise DataError(f"{file.path} must be an object of file names and captions")
    captions: dict[str, Captions] = {}
    for name, texts in value.items():
        captions.setdefault(normalise_name(name), []).append(("", texts))
    return captions


def _read_table(
    file: SourceFile, config: PrepareConfig
) -> tuple[dict[str, Captions], dict[str, str]]:
    """Read a table with a column of files, columns of captions, and perhaps one of splits."""
    rows = _read_table_rows(file)
    if not rows:
        raise DataError(
            f"{file.path} is empty, or has a header without rows: write a row for each drawing, or "
            "remove the file"
        )

    # find_columns requires a column of drawings, but the drawings are in files of their own:
    # name any column for them.
    names = list(dict.fromkeys(chain.from_iterable(rows)))
    file_column = next((name for name in names if name.lower() in _FILE_COLUMNS), None)
    changes = {"svg_column": names[0], "id_column": config.id_column or file_column}
    columns = find_columns(names, config.model_copy(update=changes), file.path)
    if not columns.id:
        raise DataError(
            f"{file.path} has no column of files, only {', '.join(names)}: name it with --id-column"
        )

    columns = check_head(rows, columns, config, file.path)
    captions: dict[str, Captions] = {}
    splits: dict[str, str] = {}
    for row in rows:
        texts = [(name, row.get(name)) for name in columns.captions]
        name = read_id(row, columns.id)
        if name is not None:
            captions.setdefault(normalise_name(name), []).extend(texts)
            if split := read_split(row, columns.split, file.path):
                splits[normalise_name(name)] = split
    return captions, splits


def _read_table_rows(file: SourceFile) -> list[dict[str, object]]:
    name = file.name.lower()
    if name.endswith(".parquet"):
        names = read_schema(file).names
        require_single(names, names, file.path)
        return list(read_rows(file, names))
    return list(parse_json_objects(file)) if name.endswith(".jsonl") else _read_csv(file)


def _read_csv(file: SourceFile) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    with file.open_text() as lines:
        header = lines.readline()
        delimiter = _find_delimiter(header)
        reader = csv.DictReader(chain([header], lines), delimiter=delimiter, strict=True)

        limit = csv.field_size_limit(_MAX_FIELD_CHARS)  # of this process
        try:
            names = reader.fieldnames or []
            require_single(filter(None, names), names, file.path)
            for row in reader:
                if any(row.pop(None, ())):  # fields without a name
                    raise DataError(
                        f"{file.path}, line {reader.line_num}: more fields than the "
                        f"{len(names)} of the header; put a text with {delimiter!r} in quotes"
                    )
                rows.append(dict(row))
        except csv.Error as error:
            line = reader.line_num + 1  # the first one of the row
            raise DataError(f"{file.path}, line {line}: not CSV ({error})") from None
        finally:
            csv.field_size_limit(limit)
    return rows


def _find_delimiter(header: str) -> str:
    """Return the delimiter that splits the header into most fields; of equal ones the comma."""
    return max(
        _DELIMITERS,
        key=lambda delimiter: max(map(len, csv.reader([header], delimiter=delimiter)), default=0),
    )
