"""Choose the format of a source and read its records.

A new format goes into a module of its own with one `read_…` function, which `read_source` calls.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import chain
from typing import TypeAlias

from data_pipeline.config import PrepareConfig
from data_pipeline.errors import DataError
from data_pipeline.sources.files import SVG_SUFFIXES, SourceFile, find_files
from data_pipeline.sources.folder import is_caption_file, read_folder
from data_pipeline.sources.iconify import is_iconify, read_iconify
from data_pipeline.sources.json_records import read_json
from data_pipeline.sources.parquet import count_rows, read_parquet
from data_pipeline.sources.phosphor import read_phosphor
from data_pipeline.sources.record import Record, set_split
from data_pipeline.sources.scenes import read_scenes
from data_pipeline.sources.split_names import find_layout
from data_pipeline.sources.webdataset import read_webdataset

PARQUET_SUFFIXES = (".parquet",)
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
JSON_SUFFIXES = (".jsonl", ".json")
_ReadFile: TypeAlias = Callable[[SourceFile], Iterator[Record]]
_EXPECTED = "expected .parquet, .tar, .svg, .jsonl or .json"


def read_source(
    spec: str, config: PrepareConfig, *, ignored_files: Collection[str] = ()
) -> Iterator[Record]:
    """Return the records of one source, in the source's order.

    `spec` is one of
    - `phosphor`: the icons of the package py-phosphor-icons (see `phosphor`);
    - `scenes:N`, `scenes:N:SEED` or `scenes:N:SEED:STYLE`: N procedural scenes with captions in the
      style `plain` or `list` (see `scenes`);
    - a file, a folder with all its subfolders, or a URI of either (`s3://bucket/key`,
      `hf://datasets/owner/name`; see `data_pipeline.filesystem`).

    The format of a folder is the first of these formats for which it holds a file:
    1. `.parquet`, with the columns of a known dataset (see `columns`) or those that `config` names
       (see `parquet`);
    2. `.tar`, `.tar.gz`, `.tgz`: samples `KEY.svg` with `KEY.txt` or `KEY.json` (see `webdataset`);
    3. `.svg`, `.svgz`, with caption files (`captions.json` of {file: caption}, or rows in
       `captions.jsonl`, `captions.csv`, `metadata.jsonl`, `metadata.csv`, `metadata.parquet`, whose
       id is the drawing's path from there, with or without its suffix), or else a `.txt` next to
       each drawing (see `folder`);
    4. `.jsonl`, `.json`: an Iconify set (see `iconify`), or else objects in lines or in an array,
       with columns as Parquet has (see `json_records`).

    A source without captions is refused, such as StarVector's svg-stack, but not with
    `DrawingsConfig`. A column or the names of files may give the splits (see `split_names`).

    Suffixes are in any case. Files with a name in `ignored_files`, hidden files and descriptions of
    a hub's dataset (`dataset_infos.json`) are not read and do not decide the format.

    Raises DataError. Everything that can be checked is checked before the first record.
    """
    if spec == "phosphor":
        return read_phosphor()
    if spec.startswith("scenes:"):
        return read_scenes(spec)

    source, files = find_files(spec)
    files = [file for file in files if file.name not in ignored_files]
    drawings = _select_suffixes(files, SVG_SUFFIXES)
    parquets = _select_suffixes(files, PARQUET_SUFFIXES)
    if drawings:
        parquets = [file for file in parquets if not is_caption_file(file)]
    if parquets:
        read = _with_layout(parquets, source, config, read_parquet)
        return chain.from_iterable([read(file) for file in parquets])
    if tars := _select_suffixes(files, TAR_SUFFIXES):
        return _read_files(tars, _with_layout(tars, source, config, read_webdataset))
    if drawings:
        return read_folder(drawings, files, source, config)
    if jsons := _select_suffixes(files, JSON_SUFFIXES):
        if icon_sets := [file for file in jsons if is_iconify(file)]:
            return _read_files(icon_sets, read_iconify)
        return _read_files(jsons, _with_layout(jsons, source, config, read_json))

    if not files:
        raise DataError(f"source {spec!r} is an empty folder: {_EXPECTED}")
    suffixes = sorted({"." + file.name.rpartition(".")[2] for file in files})
    raise DataError(
        f"source {spec!r} holds no drawings, only {', '.join(suffixes[:5])}: {_EXPECTED}"
    )


def count_drawings(spec: str) -> int | None:
    """Return the number of drawings in a folder or in Parquet files, from their list and footers.

    Return None for other formats, which must be read to be counted. Raises DataError.
    """
    if spec == "phosphor" or spec.startswith("scenes:"):
        return None
    _, files = find_files(spec)
    drawings = _select_suffixes(files, SVG_SUFFIXES)
    parquets = _select_suffixes(files, PARQUET_SUFFIXES)
    if drawings:
        parquets = [file for file in parquets if not is_caption_file(file)]
    if parquets:
        return sum(map(count_rows, parquets))
    return None if _select_suffixes(files, TAR_SUFFIXES) else len(drawings) or None


def _select_suffixes(files: Sequence[SourceFile], suffixes: tuple[str, ...]) -> list[SourceFile]:
    return [file for file in files if file.name.lower().endswith(suffixes)]


def _with_layout(
    files: Sequence[SourceFile],
    source: str,
    config: PrepareConfig,
    read_file: Callable[[SourceFile, str, PrepareConfig], Iterator[Record]],
) -> _ReadFile:
    """Return a reader that adds the split which the names of the files give (see `split_names`)."""
    is_wanted = config.split_column is None
    layout = find_layout([file.name for file in files], are_drawings=False) if is_wanted else {}
    return lambda file: set_split(read_file(file, source, config), layout.get(file.name, ""))


def _read_files(files: Sequence[SourceFile], read_file: _ReadFile) -> Iterator[Record]:
    """Return the records of all files.

    The first file is opened and checked now, the others during the iteration: there may be
    thousands.
    """
    first = read_file(files[0])
    return chain(first, chain.from_iterable(read_file(file) for file in files[1:]))
