"""Lengths of a drawing in a user space, and the same in another. Knows no element."""

import math
import re
from dataclasses import dataclass
from functools import lru_cache

from data_pipeline.svg_numbers import NUMBER, format_number, parse_numbers

GRID = 256  # units along the longer side of every canonical drawing
MAX_REMEMBERED = 24  # characters of a length: a hostile corpus must not fill the memory

_LENGTH = re.compile(rf"({NUMBER.pattern})\s*(px|pt|pc|mm|cm|in|%)?")
_DASHES = re.compile(rf"none|(?:(?>{NUMBER.pattern})(?:px)?[\s,]*+)++")
_PIXELS = {"px": 1.0, "": 1.0, "pt": 4 / 3, "pc": 16.0, "mm": 96 / 25.4, "cm": 96 / 2.54, "in": 96.0}


@dataclass(frozen=True)
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
    if len(text) < MAX_REMEMBERED:
        return _parse_short(text, whole)
    return _parse(text, whole)


def _parse(text: str, whole: float) -> float | None:
    match = _LENGTH.fullmatch(text.strip())
    if match is None or not abs(float(match[1])) <= 1e7:
        return None
    return float(match[1]) * (whole / 100 if match[2] == "%" else _PIXELS[match[2] or ""])


_parse_short = lru_cache(maxsize=4096)(_parse)


def small(length: float, decimals: int) -> str:
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
    return " ".join(small(number * scale, decimals) for number in parse_numbers(value))
