"""Lengths of a drawing: parse them, and scale them from one user space to another."""

import re
from dataclasses import dataclass
from functools import lru_cache

from data_pipeline.svg.numbers import MAX_NUMBER, NUMBER, format_number, parse_numbers

GRID = 256  # units along the longer side of every canonical drawing
MAX_CACHED_LENGTH = 24  # characters of a cached value: a hostile corpus must not fill the memory

XS = frozenset(("x", "cx", "x1", "x2", "fx"))
YS = frozenset(("y", "cy", "y1", "y2", "fy"))
WIDTHS = frozenset(("width", "rx"))
HEIGHTS = frozenset(("height", "ry"))

# Units of SVG 1.1, in lower case. Not all renderers read `20PX`: it stays as it is.
_LENGTH = re.compile(rf"({NUMBER.pattern})\s*(px|pt|pc|mm|cm|in|q|Q|%)?")
_NUMBER_LIST = re.compile(rf"none|(?:(?>{NUMBER.pattern})(?:px)?[\s,]*+)++", re.IGNORECASE)
_PIXELS_PER_UNIT = {
    "px": 1.0,
    "": 1.0,
    "pt": 4 / 3,
    "pc": 16.0,
    "mm": 96 / 25.4,
    "cm": 96 / 2.54,
    "in": 96.0,
    "q": 24 / 25.4,
    "%": 0.0,
}


@dataclass(frozen=True, eq=False)
class Space:
    """Map from one user space to another: (point - origin) * scale."""

    scale: float
    origin: tuple[float, float]
    zoom: float = 1.0
    """Lower bound of the grid units that one unit covers, for any transforms of ancestors."""


def parse_length(text: str, whole: float) -> float | None:
    """Return the pixels of `12`, `3pt` or `50%` of `whole`.

    Returns None for anything else, such as `auto`, `1em` or a list.
    """
    if len(text) < MAX_CACHED_LENGTH:
        number, pixels_per_unit = _parse_cached(text)
    else:
        number, pixels_per_unit = _parse(text)
    return None if number is None else number * (pixels_per_unit or whole / 100)


def _parse(text: str) -> tuple[float | None, float]:
    """Return the number and the pixels in its unit, which are 0 for `%`."""
    match = _LENGTH.fullmatch(text.strip())
    if match is None or not abs(number := float(match[1])) <= MAX_NUMBER:
        return None, 0.0
    return number, _PIXELS_PER_UNIT[(match[2] or "").lower()]


_parse_cached = lru_cache(maxsize=4096)(_parse)


def scale_length(name: str, value: str, space: Space, decimals: int, is_offset: bool) -> str:
    """Return the attribute value in the other space.

    Coordinates are positions, or differences of two positions if `is_offset`. A value that is not
    one length is returned unchanged, and so is a percentage: it remains only in units of a box.
    """
    if len(value) < MAX_CACHED_LENGTH:
        return _scale_cached(name, value, space, decimals, is_offset)
    return _scale(name, value, space, decimals, is_offset)


def _scale(name: str, value: str, space: Space, decimals: int, is_offset: bool) -> str:
    number = parse_length(value, 0.0)
    if number is None or "%" in value:
        return value

    is_y = name in YS
    if is_y or name in XS:
        origin = 0.0 if is_offset else space.origin[is_y]
        return format_number((number - origin) * space.scale, decimals)
    return format_size(number * space.scale, decimals)


_scale_cached = lru_cache(maxsize=4096)(_scale)


def format_size(size: float, decimals: int) -> str:
    """Return the text of a size, with one more decimal below 16 units of the last decimal.

    A size that would still round to 0 gets four more decimals.
    """
    text = format_number(size, decimals + (abs(size) * 10**decimals < 16))
    return format_number(size, decimals + 4) if text == "0" else text


def is_number_list(value: str) -> bool:
    """Return whether the value is `none` or a list of numbers in pixels."""
    return _NUMBER_LIST.fullmatch(value) is not None


def scale_number_list(value: str, scale: float, decimals: int) -> str:
    """Return `10 20` for `1px, 2` and scale 10; return any other value unchanged."""
    if value == "none" or not is_number_list(value):
        return value
    return " ".join(format_size(number * scale, decimals) for number in parse_numbers(value))
