"""Drawings that are files of their own, in a folder or in a WebDataset tar, with captions beside them → rows."""

import csv
import json
import tarfile
from collections.abc import Iterator, Sequence
from itertools import chain, groupby, islice
from typing import Any

from data_pipeline.config import PrepareConfig
from data_pipeline.errors import DataError
from data_pipeline.sources.columns import CAPTION_COLUMNS, find_columns, make_records
from data_pipeline.sources.files import SourceFile
from data_pipeline.sources.record import Record
from data_pipeline.sources.tabular import read_json_objects

SVG_SUFFIXES = (".svg", ".svgz")
CAPTION_FILES = (
    "captions.json",
    "captions.jsonl",
    "captions.csv",
    "metadata.jsonl",
    "metadata.csv",
)
_MAX_CAPTION_BYTES = 1 << 20
_HEAD_SAMPLES = 100  # of a tar: without any caption in them there is none

Captions = list[tuple[str, object]]  # name, text


def read_folder(
    drawings: Sequence[SourceFile], files: Sequence[SourceFile], source: str, config: PrepareConfig
) -> Iterator[Record]:
    """`files` is all that lies in the folder. Raises DataError before the first row."""
    by_name = {file.name: file for file in files}
    captions = _caption_file(by_name, config)
    if not captions and not any(_stem(drawing.name) + ".txt" in by_name for drawing in drawings):
        raise DataError(
            f"{source} has no captions: put {', '.join(CAPTION_FILES)} or a .txt beside each .svg into it"
        )
    return _folder_rows(drawings, by_name, captions, source, config)


def _folder_rows(
    drawings: Sequence[SourceFile],
    by_name: dict[str, SourceFile],
    captions: dict[str, Captions],
    source: str,
    config: PrepareConfig,
) -> Iterator[Record]:
    for drawing in drawings:
        stem = _stem(drawing.name)
        texts = captions.get(drawing.name) or captions.get(stem) or []
        if not texts and stem + ".txt" in by_name:
            texts = [("txt", _caption_text(by_name[stem + ".txt"].head(_MAX_CAPTION_BYTES)))]
        yield from make_records(stem, drawing.head(config.max_svg_bytes + 1), texts, source, config)


def _stem(name: str) -> str:
    return name[: name.rindex(".")]


def _caption_text(data: bytes) -> str:
    return data.decode("utf-8-sig", "replace").strip()


def _caption_file(by_name: dict[str, SourceFile], config: PrepareConfig) -> dict[str, Captions]:
    """File → its captions, from the first captions file there is; empty without one."""
    found = next((by_name[name] for name in CAPTION_FILES if name in by_name), None)
    if found is None:
        return {}
    if found.name == "captions.json":
        return _caption_object(found)
    if found.name.endswith(".jsonl"):
        records = list(read_json_objects(found))
    else:
        try:
            with found.lines() as lines:
                records = list(csv.DictReader(lines, restkey=""))
        except csv.Error as error:
            raise DataError(f"{found.path} is not CSV: {error}") from None
    if not records:
        raise DataError(f"{found.path} is empty")
    names = list(dict.fromkeys(chain.from_iterable(records)))
    # The drawing lies in a file of its own: any column stands in for it.
    stand_in = {"svg_column": names[0], "id_column": config.id_column or None}
    columns = find_columns(names, config.model_copy(update=stand_in), found.path)
    if not columns.id:
        raise DataError(
            f"{found.path} has no column of files, only {', '.join(names)}: name it with --id-column"
        )
    captions: dict[str, Captions] = {}
    for record in records:
        texts = [(name, record.get(name)) for name in columns.captions]
        captions.setdefault(str(record.get(columns.id)), []).extend(texts)
    return captions


def _caption_object(file: SourceFile) -> dict[str, Captions]:
    """{file: caption} or {file: [captions]}."""
    try:
        captions = json.loads(file.text())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file.path} is not JSON: {error}") from None
    if not isinstance(captions, dict):
        raise DataError(f"{file.path} must be an object of file names and captions")
    return {
        name: [(str(n), text) for n, text in enumerate(value)]
        if isinstance(value, list)
        else [("0", value)]
        for name, value in captions.items()
    }


def read_webdataset(file: SourceFile, source: str, config: PrepareConfig) -> Iterator[Record]:
    """Samples of a WebDataset: neighbours `KEY.svg` and `KEY.txt` or `KEY.json`. Raises DataError before the first."""
    samples = _samples(file, config)
    head = list(islice(samples, _HEAD_SAMPLES))
    if not head:
        raise DataError(f"{file.path} holds no .svg")
    if not any(captions for _, _, captions in head):
        raise DataError(
            f"{file.path} has no captions in its first {len(head)} drawings: beside KEY.svg expected KEY.txt, or "
            f"KEY.json with one of {', '.join(CAPTION_COLUMNS)}"
        )
    return chain.from_iterable(
        make_records(*sample, source, config) for sample in chain(head, samples)
    )


def _samples(file: SourceFile, config: PrepareConfig) -> Iterator[tuple[str, bytes, Captions]]:
    try:
        with file.stream() as stream, tarfile.open(fileobj=stream, mode="r|*") as archive:
            parts = ((*_key(member.name), member) for member in archive if member.isfile())
            for key, members in groupby(parts, key=lambda part: part[0]):
                svg: bytes | None = None
                captions: Captions = []
                for _, suffix, member in members:
                    if suffix in SVG_SUFFIXES:
                        svg = _read(archive, member, config.max_svg_bytes + 1)
                    elif suffix == ".txt":
                        captions.append(
                            ("txt", _caption_text(_read(archive, member, _MAX_CAPTION_BYTES)))
                        )
                    elif suffix == ".json":
                        captions += _json_captions(
                            _read(archive, member, _MAX_CAPTION_BYTES), config
                        )
                if svg is not None:
                    yield key, svg, captions
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{file.path} is not a readable tar: {error}") from None


def _key(name: str) -> tuple[str, str]:
    """`a/b.old.SVG` → `a/b`, `.svg`: WebDataset's keys end at the first dot of the base name."""
    folder, slash, base = name.rpartition("/")
    key, _, rest = base.partition(".")
    return folder + slash + key, "." + rest.rpartition(".")[2].lower()


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo, num_bytes: int) -> bytes:
    stream = archive.extractfile(member)
    assert stream is not None, member.name  # only links and folders have none
    return stream.read(num_bytes)


def _json_captions(data: bytes, config: PrepareConfig) -> Captions:
    """None from what is not an object with captions: the row is then refused for having none."""
    try:
        record: Any = json.loads(_caption_text(data))
    except (ValueError, RecursionError):
        return []
    if not isinstance(record, dict):
        return []
    spelt = {name.lower(): name for name in record}
    names: Sequence[str] = (config.caption_column,) if config.caption_column else CAPTION_COLUMNS
    return [(name, record[spelt[name.lower()]]) for name in names if name.lower() in spelt]
