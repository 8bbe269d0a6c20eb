"""Lengths of a drawing in a user space, and the same in another. Knows no element."""

import math
import re
from dataclasses import dataclass
from functools import lru_cache

from data_pipeline.svg.numbers import NUMBER, format_number, parse_numbers

GRID = 256  # units along the longer side of every canonical drawing
MAX_REMEMBERED = 24  # characters of a length: a hostile corpus must not fill the memory

XS = frozenset(("x", "cx", "x1", "x2", "fx"))
YS = frozenset(("y", "cy", "y1", "y2", "fy"))
WIDTHS = frozenset(("width", "rx"))
HEIGHTS = frozenset(("height", "ry"))

_LENGTH = re.compile(rf"({NUMBER.pattern})\s*(px|pt|pc|mm|cm|in|%)?")
_DASHES = re.compile(rf"none|(?:(?>{NUMBER.pattern})(?:px)?[\s,]*+)++")
_PIXELS = {
    "px": 1.0,
    "": 1.0,
    "pt": 4 / 3,
    "pc": 16.0,
    "mm": 96 / 25.4,
    "cm": 96 / 2.54,
    "in": 96.0,
    "%": 0.0,
}


@dataclass(frozen=True, eq=False)
class Space:
    """How one user space becomes another: (point - origin) * scale. `width` × `height` is what 100% means;
    one unit is drawn at least `zoom` grid units large, whatever the transforms around it say."""

    scale: float
    origin: tuple[float, float]
    width: float
    height: float
    zoom: float = 1.0

    @property
    def diagonal(self) -> float:
        """What 100% means to lengths that are neither widths nor heights."""
        return math.hypot(self.width, self.height) / math.sqrt(2)


def parse_length(text: str, whole: float) -> float | None:
    """`12`, `3pt`, `50%` of `whole` → pixels; None for anything else (`auto`, `1em`, a list)."""
    number, pixels = _parse_short(text) if len(text) < MAX_REMEMBERED else _parse(text)
    return None if number is None else number * (pixels or whole / 100)


def _parse(text: str) -> tuple[float | None, float]:
    """The number, and how many pixels its unit has, none if it is `%`."""
    match = _LENGTH.fullmatch(text.strip())
    if match is None or not abs(number := float(match[1])) <= 1e7:
        return None, 0.0
    return number, _PIXELS[match[2] or ""]


_parse_short = lru_cache(maxsize=4096)(_parse)


def scale_length(name: str, value: str, space: Space, decimals: int, vector: bool) -> str:
    """The attribute in the other space: a place or, if `vector`, the difference of two; no length stays as it is."""
    if len(value) < MAX_REMEMBERED:
        return _scale_short(name, value, space, decimals, vector)
    return _scale(name, value, space, decimals, vector)


def _scale(name: str, value: str, space: Space, decimals: int, vector: bool) -> str:
    wide, high = name in XS or name in WIDTHS, name in YS or name in HEIGHTS
    number = parse_length(value, space.width if wide else space.height if high else space.diagonal)
    if number is None:
        return value
    if name in XS or name in YS:
        shift = 0.0 if vector else space.origin[high]
        return format_number((number - shift) * space.scale, decimals)
    return _small(number * space.scale, decimals)


_scale_short = lru_cache(maxsize=4096)(_scale)


def _small(length: float, decimals: int) -> str:
    """Lengths below 16 units keep one more decimal, and none becomes nothing."""
    text = format_number(length, decimals + (abs(length) * 10**decimals < 16))
    return format_number(length, decimals + 4) if text == "0" else text


def is_dashes(value: str) -> bool:
    """`none`, or numbers in pixels."""
    return _DASHES.fullmatch(value) is not None


def scale_dashes(value: str, scale: float, decimals: int) -> str:
    """`1px, 2`, 10 → `10 20`; what is not a list of numbers stays."""
    if value == "none" or not is_dashes(value):
        return value
    return " ".join(_small(number * scale, decimals) for number in parse_numbers(value))
