"""Find the columns of drawing, captions, id and split in a table, and read its rows.

The table may be a Parquet file, a JSON file or a file of captions. The known columns are those of
StarVector svg-stack and text2svg-stack, OmniSVG MMSVG-Icon and MMSVG-Illustration, LLM4SVG
SVGX-Core and SVGX-SFT, pairs {input, output}, and our own shards.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from data_pipeline.config import PrepareConfig
from data_pipeline.errors import DataError
from data_pipeline.sources.captions import decode_caption, is_missing, make_records
from data_pipeline.sources.record import Record
from data_pipeline.sources.split_names import SPLIT_NAMES, parse_split

HEAD_ROWS = 100
"""The first rows show which columns a file has, and whether a pair holds drawings."""

SVG_COLUMNS = ("svg", "svg_code")
CAPTION_COLUMNS = (
    "caption",
    "captions",
    "description",
    "detail",
    "keywords",
    "caption_cogvlm",
    "caption_llava",
    "caption_blip2",
    "qwen_caption",
    "blip_caption",
    "text",
    "sentences",
    "conversations",
    "messages",
)
"""In order of preference: the first that is not empty is the caption, and gives the concept."""
SPLIT_COLUMN = "split"
ID_COLUMNS = ("id", "uuid", "filename", "file_name", "key")
PAIR = ("input", "output")
"""One holds the drawing and the other its caption; the content decides which, row by row."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns, with the source's spelling."""

    svg: str
    captions: tuple[str, ...]
    id: str
    """Empty: the records are numbered."""
    split: str = ""
    """Empty: the rows give no split."""
    pair: bool = False
    """The content of each row decides which column is the drawing."""

    def names(self) -> list[str]:
        """Return all distinct names."""
        names = [self.svg, *self.captions, self.id, self.split]
        return list(dict.fromkeys(name for name in names if name))


def find_columns(found: Sequence[str], config: PrepareConfig, where: str) -> Columns:
    """Return the columns that the config names, or else known columns in any case.

    `found` are the names in the file `where`. Raises DataError if a column is missing.

    >>> find_columns(["Filename", "Svg", "caption_blip2"], PrepareConfig(out="x"), "a.parquet")
    Columns(svg='Svg', captions=('caption_blip2',), id='Filename', split='', pair=False)
    """
    spelling = _map_lower_case(found)
    id_ = _find_id(found, config, where)
    split = _find_split(found, config, where)

    is_named = config.svg_column is not None or config.caption_column is not None
    has_svg = bool(spelling.keys() & set(SVG_COLUMNS))
    if not is_named and not has_svg and spelling.keys() >= set(PAIR):
        columns = Columns(spelling["input"], (spelling["output"],), id_, split, pair=True)
    else:
        svg = _find_svg(found, config, where)
        columns = Columns(svg, _find_captions(found, config, where), id_, split)
    require_single(columns.names(), found, where)
    return columns


def require_single(names: Iterable[str], found: Sequence[str], where: str) -> None:
    """Raise DataError if several of the columns in the file `where` have one of the names."""
    for name in names:
        if found.count(name) > 1:
            raise DataError(
                f"{where} has {found.count(name)} columns named {name!r}: rename or remove all "
                "but one"
            )


def _map_lower_case(names: Sequence[str]) -> dict[str, str]:
    """Map each name in lower case to its spelling; the first of several spellings wins."""
    return {name.lower(): name for name in reversed(names)}


def _find_id(found: Sequence[str], config: PrepareConfig, where: str) -> str:
    if config.id_column is None:
        spelling = _map_lower_case(found)
        return next((spelling[name] for name in ID_COLUMNS if name in spelling), "")
    if config.id_column:
        _require(config.id_column, "--id-column", found, where)
    return config.id_column


def _find_split(found: Sequence[str], config: PrepareConfig, where: str) -> str:
    if config.split_column is None:
        return _map_lower_case(found).get(SPLIT_COLUMN, "")
    if config.split_column:
        _require(config.split_column, "--split-column", found, where)
    return config.split_column


def _find_svg(found: Sequence[str], config: PrepareConfig, where: str) -> str:
    if config.svg_column is not None:
        return _require(config.svg_column, "--svg-column", found, where)
    spelling = _map_lower_case(found)
    svg = next((spelling[name] for name in SVG_COLUMNS if name in spelling), None)
    if svg is None:
        expected = (*SVG_COLUMNS, "the pair input, output")
        raise DataError(_explain_missing("drawings", found, expected, "--svg-column", where))
    return svg


def _find_captions(found: Sequence[str], config: PrepareConfig, where: str) -> tuple[str, ...]:
    if not config.needs_captions:
        return ()
    if config.caption_column is not None:
        return (_require(config.caption_column, "--caption-column", found, where),)
    spelling = _map_lower_case(found)
    captions = tuple(spelling[name] for name in CAPTION_COLUMNS if name in spelling)
    if not captions:
        is_svg_stack = {"filename", "svg"} <= spelling.keys()
        hint = "; svg-stack has none, text2svg-stack has" if is_svg_stack else ""
        missing = _explain_missing("captions", found, CAPTION_COLUMNS, "--caption-column", where)
        raise DataError(missing + hint)
    return captions


def _explain_missing(
    content: str, found: Iterable[str], expected: Iterable[str], flag: str, where: str
) -> str:
    return (
        f"{where} has no column of {content}, only {', '.join(sorted(found)) or 'none'}: "
        f"expected one of {', '.join(expected)}, or name it with {flag}"
    )


def _require(column: str, flag: str, found: Iterable[str], where: str) -> str:
    if column not in found:
        raise DataError(
            f"{where} has no column {column!r}, only {', '.join(sorted(found))}: "
            f"name the right one with {flag}"
        )
    return column


def check_head(
    rows: Sequence[Mapping[str, Any]], columns: Columns, config: PrepareConfig, where: str
) -> Columns:
    """Return the columns, without a column `split` whose values in the first rows are no splits.

    Raises DataError if `columns` is a pair and none of the rows holds an SVG in it.
    """
    sides = (columns.svg, *columns.captions)
    if columns.pair and not any(looks_like_svg(row.get(side)) for row in rows for side in sides):
        raise DataError(
            f"{where}: neither {' nor '.join(sides)} holds an SVG in the first {HEAD_ROWS} rows"
        )
    are_splits = all(parse_split(row.get(columns.split)) is not None for row in rows)
    return columns if are_splits or config.split_column else replace(columns, split="")


def looks_like_svg(value: object) -> bool:
    """Return whether the value is text or bytes that begins like XML and has an svg element."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return isinstance(text, str) and text.lstrip("\ufeff \t\r\n").startswith("<") and "<svg" in text


def make_records_from_row(
    row: Mapping[str, Any], columns: Columns, number: str, source: str, config: PrepareConfig
) -> Iterator[Record]:
    """Yield the records of one row. A missing column is the same as an empty one.

    `number` is the id of a row without an id.
    """
    svg, captions = columns.svg, columns.captions
    if columns.pair and not looks_like_svg(row.get(svg)):
        svg, captions = captions[0], (svg,)
    id_ = read_id(row, columns.id)
    texts = [(name, row.get(name)) for name in captions]
    split = read_split(row, columns.split, source)
    return make_records(number if id_ is None else id_, row.get(svg), texts, source, config, split)


def read_split(row: Mapping[str, Any], column: str, source: str) -> str:
    """Return our name of the split of a row, "" if it has none. Raises DataError."""
    value = row.get(column) if column else None
    split = parse_split(value)
    if split is None:
        raise DataError(
            f"{source}: column {column!r} holds {value!r}, which is none of "
            f"{', '.join(SPLIT_NAMES)}: correct it, or give --split-column '' to split by concept"
        )
    return split


def read_id(row: Mapping[str, Any], column: str) -> str | None:
    """Return the id of a row, or None if it has none."""
    value = row.get(column) if column else None
    if is_missing(value):
        return None
    return decode_caption(value) if isinstance(value, bytes) else str(value)
