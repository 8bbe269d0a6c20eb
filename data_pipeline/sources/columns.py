"""Which columns of a record are the drawing, its captions and its id, and which captions become examples.

Known by their columns, whatever the file format: StarVector svg-stack and text2svg-stack, OmniSVG MMSVG-Icon and
MMSVG-Illustration, LLM4SVG SVGX-Core and SVGX-SFT, pairs {input, output}, and our own shards.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_pipeline.config import PrepareConfig
from data_pipeline.errors import DataError
from data_pipeline.sources.record import Record, stable_hash

SVG_COLUMNS = ("svg", "svg_code")
CAPTION_COLUMNS = (
    "caption", "description", "detail", "keywords", "caption_cogvlm", "caption_llava", "caption_blip2",
    "qwen_caption", "blip_caption", "text",
)  # fmt: skip
"""In this order: the first that is not empty is `the` caption, and says what the concept is."""
ID_COLUMNS = ("id", "uuid", "filename", "file_name", "key")
PAIR = ("input", "output")
"""One is the drawing and the other its caption: a pair is looked at, not believed."""


@dataclass(frozen=True)
class Columns:
    """Names as they are spelt in the source. `pair`: svg and captions are found out record by record."""

    svg: str
    captions: tuple[str, ...]
    id: str  # empty: rows are numbered
    pair: bool = False

    def all(self) -> list[str]:
        return list(dict.fromkeys([self.svg, *self.captions, *([self.id] if self.id else [])]))


def find_columns(found: Sequence[str], config: PrepareConfig, where: str) -> Columns:
    """What the config names, or else the known names, upper or lower case. Raises DataError.

    >>> find_columns(["Filename", "Svg", "caption_blip2"], PrepareConfig(out="x"), "a.parquet")
    Columns(svg='Svg', captions=('caption_blip2',), id='Filename', pair=False)
    """
    spelt = {name.lower(): name for name in reversed(found)}
    ids = [spelt[name] for name in ID_COLUMNS if name in spelt]
    id_ = (ids[0] if ids else "") if config.id_column is None else config.id_column
    if id_:
        _require(id_, "--id-column", found, where)
    named = config.svg_column is not None or config.caption_column is not None
    if not named and not spelt.keys() & set(SVG_COLUMNS) and spelt.keys() >= set(PAIR):
        return Columns(spelt["input"], (spelt["output"],), id_, pair=True)
    if config.svg_column is None:
        drawings = [spelt[name] for name in SVG_COLUMNS if name in spelt]
        if not drawings:
            raise DataError(
                _missing(
                    where,
                    "drawings",
                    found,
                    (*SVG_COLUMNS, "the pair input, output"),
                    "--svg-column",
                )
            )
        svg = drawings[0]
    else:
        svg = _require(config.svg_column, "--svg-column", found, where)
    return Columns(svg, _find_captions(found, config, where), id_)


def _find_captions(found: Sequence[str], config: PrepareConfig, where: str) -> tuple[str, ...]:
    if config.caption_column is not None:
        return (_require(config.caption_column, "--caption-column", found, where),)
    spelt = {name.lower(): name for name in reversed(found)}
    captions = tuple(spelt[name] for name in CAPTION_COLUMNS if name in spelt)
    if not captions:
        hint = (
            "; svg-stack has none, text2svg-stack has"
            if {"filename", "svg"} <= spelt.keys()
            else ""
        )
        raise DataError(
            _missing(where, "captions", found, CAPTION_COLUMNS, "--caption-column") + hint
        )
    return captions


def _missing(
    where: str, what: str, found: Iterable[str], expected: Iterable[str], flag: str
) -> str:
    return (
        f"{where} has no column of {what}, only {', '.join(sorted(found)) or 'none'}: "
        f"expected one of {', '.join(expected)}, or name it with {flag}"
    )


def _require(column: str, flag: str, found: Iterable[str], where: str) -> str:
    if column not in found:
        raise DataError(
            f"{where} has no column {column!r}, only {', '.join(sorted(found))}: name the right one with {flag}"
        )
    return column


def looks_like_svg(value: object) -> bool:
    """Does it begin like XML and hold an svg element?"""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return isinstance(text, str) and text.lstrip("\ufeff \t\r\n").startswith("<") and "<svg" in text


def make_records_from_row(
    record: Mapping[str, Any], columns: Columns, number: str, source: str, config: PrepareConfig
) -> Iterator[Record]:
    """The examples of one record; a missing column is as an empty one. `number` is the id of a row without."""
    svg, captions = columns.svg, columns.captions
    if columns.pair and not looks_like_svg(record.get(svg)):
        svg, captions = captions[0], (svg,)
    id_ = record.get(columns.id) if columns.id else None
    texts = [(name, record.get(name)) for name in captions]
    return make_records(number if id_ is None else str(id_), record.get(svg), texts, source, config)


def make_records(
    id_: str,
    svg: object,
    captions: Iterable[tuple[str, object]],
    source: str,
    config: PrepareConfig,
) -> Iterator[Record]:
    """One drawing with the captions that `config.captions` chooses: each is a row, an example, the unit of all counts.

    Rows whose first captions are the same, whatever their case and spacing, are one concept. A drawing without
    a caption is a row with an empty one, and what is no drawing is an empty one: both go to quarantine.
    """
    texts = [(name, text) for name, value in captions if (text := _text(value)).strip()] or [
        ("", "")
    ]
    drawing = svg if isinstance(svg, str | bytes) else ""
    concept = " ".join(texts[0][1].lower().split())
    if config.captions == "all" and len(texts) > 1:
        for name, text in texts:
            yield Record(f"{id_}:{name}", drawing, text, source, concept)
        return
    chosen = stable_hash(config.seed, id_) % len(texts) if config.captions == "random" else 0
    yield Record(id_, drawing, texts[chosen][1], source, concept)


def _text(value: object) -> str:
    """Keywords may be a list."""
    if isinstance(value, list):
        return ", ".join(str(part) for part in value)
    return "" if value is None else str(value)
