"""Every source that people have → rows, streamed. Knows no cleaning, no splits and no shards."""

import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import chain

from data_pipeline.config import PrepareConfig
from data_pipeline.errors import DataError
from data_pipeline.sources.files import SourceFile, find_files
from data_pipeline.sources.iconify import is_icon_set, read_icon_set
from data_pipeline.sources.phosphor import read_phosphor
from data_pipeline.sources.record import Record
from data_pipeline.sources.scenes import Style, generate_scenes
from data_pipeline.sources.svg_files import SVG_SUFFIXES, read_folder, read_webdataset
from data_pipeline.sources.tabular import read_json, read_parquet

PARQUET, TARS, JSONS = (".parquet",), (".tar", ".tar.gz", ".tgz"), (".jsonl", ".json")
_HEAD_BYTES = 1 << 16  # of an Iconify set name its prefix and begin its icons
_EXPECTED = "expected .parquet, .tar, .svg, .jsonl or .json"


def read_source(
    spec: str, config: PrepareConfig, *, ignored_files: Collection[str] = ()
) -> Iterator[Record]:
    """The rows of one source, in its own order. What can be checked is checked before the first row.

    `spec` is one of
    - `phosphor`: the icons of the package py-phosphor-icons;
    - `scenes:N`, `scenes:N:SEED` or `scenes:N:SEED:STYLE`: N procedurally drawn scenes, captions `plain` or `list`;
    - a file, a folder with everything below it, or a URI of either (`s3://bucket/key`, `hf://datasets/owner/name`;
      see `files`). A folder's format is the first of these of which it holds a file:
      - `.parquet`, with the columns of a known dataset (see `captions`) or those that `config` names;
      - `.tar`, `.tar.gz`: WebDataset samples `KEY.svg` with `KEY.txt` or `KEY.json`;
      - `.svg`, `.svgz`, with one captions file (`captions.json` of {file: caption}, or rows in `captions.jsonl`,
        `captions.csv`, `metadata.jsonl`, `metadata.csv`, whose id is the file's path in the folder, with or
        without its suffix), or else a `.txt` next to each;
      - `.jsonl`, `.json`: records in lines or in an array, with columns as Parquet has; or an Iconify set.

    Without captions a source is refused: what StarVector's svg-stack calls `Filename` is a hash. `caption_column`
    takes any column for one.

    Raises DataError.
    """
    if spec == "phosphor":
        return read_phosphor()
    if spec.startswith("scenes:"):
        return _scenes(spec)
    source, files = find_files(spec)
    files = [file for file in files if file.name not in ignored_files]
    if found := _ending(files, PARQUET):
        return chain.from_iterable([read_parquet(file, source, config) for file in found])
    if found := _ending(files, TARS):
        return _chained(read_webdataset, found, source, config)
    if found := _ending(files, SVG_SUFFIXES):
        return read_folder(found, files, source, config)
    if found := _ending(files, JSONS):
        sets = [file for file in found if _is_iconify(file)]
        return (
            _chained(_icon_set, sets, source, config)
            if sets
            else _chained(read_json, found, source, config)
        )
    if not files:
        raise DataError(f"source {spec!r} is an empty folder: {_EXPECTED}")
    suffixes = sorted({"." + file.name.rpartition(".")[2] for file in files})
    raise DataError(
        f"source {spec!r} holds no drawings, only {', '.join(suffixes[:5])}: {_EXPECTED}"
    )


def _ending(files: Sequence[SourceFile], suffixes: tuple[str, ...]) -> list[SourceFile]:
    return [file for file in files if file.name.lower().endswith(suffixes)]


def _chained(
    rows_of: Callable[[SourceFile, str, PrepareConfig], Iterator[Record]],
    files: Sequence[SourceFile],
    source: str,
    config: PrepareConfig,
) -> Iterator[Record]:
    """The first file is checked at once, the others when they are opened: there may be thousands."""
    first = rows_of(files[0], source, config)
    return chain(first, chain.from_iterable(rows_of(file, source, config) for file in files[1:]))


def _is_iconify(file: SourceFile) -> bool:
    if not file.name.lower().endswith(".json"):
        return False
    head = file.head(_HEAD_BYTES)
    return b'"prefix"' in head and b'"icons"' in head  # a package's info.json has a prefix, too


def _icon_set(file: SourceFile, source: str, config: PrepareConfig) -> Iterator[Record]:
    try:
        icons = json.loads(file.text())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file.path} is not JSON: {error}") from None
    if not is_icon_set(icons):
        raise DataError(
            f"{file.path} is not an Iconify set: expected an object with prefix and icons"
        )
    return read_icon_set(icons)


def _scenes(spec: str) -> Iterator[Record]:
    parts = re.fullmatch(r"scenes:(\d+)(?::(\d+))?(?::(plain|list))?", spec)
    if not parts:
        raise DataError(
            f"source {spec!r}: write scenes:N, scenes:N:SEED or scenes:N:SEED:STYLE (plain or list)"
        )
    style: Style = "list" if parts[3] == "list" else "plain"
    return generate_scenes(int(parts[1]), seed=int(parts[2] or 0), style=style)
