"""CSS transforms, written as the transform attribute of SVG."""

import math
import re
from collections.abc import Callable

from data_pipeline.svg.errors import StyleError
from data_pipeline.svg.lengths import parse_length
from data_pipeline.svg.numbers import NUMBER, format_number

_CALL = re.compile(r"([\w-]+)\(([^()]*)\)[\s,]*")
_MEASURE = re.compile(rf"({NUMBER.pattern})([a-zA-Z%]*)")
_DEGREES = {"deg": 1.0, "grad": 0.9, "rad": 180 / math.pi, "turn": 360.0}
_DECIMALS = 6


def _parse_number(text: str) -> float | None:
    match = _MEASURE.fullmatch(text)
    if match is None or match[2] not in ("", "%"):
        return None
    return float(match[1]) / (100 if match[2] else 1)


def _parse_angle(text: str) -> float | None:
    match = _MEASURE.fullmatch(text)
    if match is None:
        return None
    degrees = _DEGREES.get(match[2].lower()) if match[2] or float(match[1]) else 0.0
    return None if degrees is None else float(match[1]) * degrees


def _parse_distance(text: str) -> float | None:
    match = _MEASURE.fullmatch(text)
    if match is None or (not match[2] and float(match[1])):
        return None  # CSS has no lengths without a unit, except 0
    distance = None if match[2] == "%" else parse_length(text.lower(), 0.0)
    if distance is None:
        raise StyleError(f"the length {text[:40]!r} in a transform")
    return distance


def _skew(x: float, y: float = 0.0) -> tuple[str, list[float]]:
    return "matrix", [1, math.tan(math.radians(y)), math.tan(math.radians(x)), 1, 0, 0]


# name → (parser of the arguments, their possible numbers, the function of SVG)
_Rewrite = Callable[..., tuple[str, list[float]]]
_FUNCTIONS: dict[str, tuple[Callable[[str], float | None], tuple[int, ...], _Rewrite]] = {
    "matrix": (_parse_number, (6,), lambda *n: ("matrix", [*n])),
    "translate": (_parse_distance, (1, 2), lambda *n: ("translate", [*n])),
    "translatex": (_parse_distance, (1,), lambda x: ("translate", [x])),
    "translatey": (_parse_distance, (1,), lambda y: ("translate", [0, y])),
    "translatez": (_parse_distance, (1,), lambda z: ("translate", [0])),
    "translate3d": (_parse_distance, (3,), lambda x, y, z: ("translate", [x, y])),
    "scale": (_parse_number, (1, 2), lambda *n: ("scale", [*n])),
    "scalex": (_parse_number, (1,), lambda x: ("scale", [x, 1])),
    "scaley": (_parse_number, (1,), lambda y: ("scale", [1, y])),
    "scale3d": (_parse_number, (3,), lambda x, y, z: ("scale", [x, y])),
    "rotate": (_parse_angle, (1,), lambda a: ("rotate", [a])),
    "rotatez": (_parse_angle, (1,), lambda a: ("rotate", [a])),
    "skewx": (_parse_angle, (1,), lambda a: ("skewX", [a])),
    "skewy": (_parse_angle, (1,), lambda a: ("skewY", [a])),
    "skew": (_parse_angle, (1, 2), _skew),
}


def convert_transform(value: str) -> str | None:
    """Return `rotate(90) translate(4 3)` for `rotate(.25turn) translate(4px, 3px)`.

    Returns None for a value that CSS ignores, such as `rotate(90)`, which has no unit.
    Raises StyleError for a function in space, and for a length relative to a box or a font.
    """
    calls = []
    for name, arguments in _CALL.findall(value):
        if name.lower() not in _FUNCTIONS:
            raise StyleError(f"{name}() in the transform {value[:60]!r}")
        parse, counts, rewrite = _FUNCTIONS[name.lower()]
        numbers = [parse(text) for text in arguments.replace(",", " ").split()]
        if None in numbers or len(numbers) not in counts:
            return None

        function, rewritten = rewrite(*numbers)
        texts = [format_number(number, _DECIMALS) for number in rewritten]
        calls.append(f"{function}({' '.join(texts)})")

    rest = _CALL.sub("", value).strip()
    if "(" in rest:
        raise StyleError(f"the transform {value[:60]!r}")
    return None if rest else " ".join(calls)
