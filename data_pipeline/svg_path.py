"""Path data → relative commands in integer units, by the real grammar. Knows no element and no XML.

The bottleneck of the whole pipeline, so in two plain loops: `parse_path` (text → absolute segments) and
`write_path` (segments → text), with dictionaries that remember how numbers are read and written.
"""

import re
from typing import Any, NamedTuple, cast

from data_pipeline.svg_arc import arc_bow, arc_cubics, arc_middle

NUMBER = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
MAX_NUMBER = 1e7  # far outside any drawing, and far inside what a float holds exactly
MAX_CACHED = 50_000  # texts of numbers: a hostile corpus must not fill the memory

_LETTERS = "MmZzLlHhVvCcSsQqTtAa"
_TOKEN = re.compile(  # the last: what cannot be
    rf"[{_LETTERS}]|[-+]?(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++)(?:[eE][-+]?[0-9]++)?+|[^\s,]"
)
_FLAGS = ("0", "1")
_SEP = r"[\s,]*+"
_NUM = f"((?>{NUMBER.pattern}))"
_ARC = re.compile(_SEP + _SEP.join([_NUM, _NUM, _NUM, "([01])", "([01])", _NUM, _NUM]) + _SEP)
_DOT = "h.1-.1"  # there and back, so that what follows stays where it is

# How far a shorter form may move a curve (output units). Near half and full turns the rounded radius or chord
# of an arc can move its middle by many units: it becomes cubics. A mirrored control point (`s`, `t`) adds up
# the rounding of three points: it is written out.
SLACK = 0.75
FLAT = SLACK * SLACK

TINY = 1e-9  # of an arc: below it squares and quotients leave the range of floats
_SIZES = {"m": 2, "l": 2, "c": 6, "s": 6, "q": 4, "t": 4, "a": 4, "z": 0}
_ARITY = {"s": 4, "q": 4, "t": 2}


class Path(NamedTuple):
    """Segments in units of the output's last decimal, absolute and not yet rounded: what each is, and the numbers
    of all (flat, because a million small tuples would keep the garbage collector busy).

    `m` and `l` have x, y (`h` and `v` are `l`); `c` and `s` x1, y1, x2, y2, x, y; `q` and `t` x1, y1, x, y (mirrored
    points worked out); `z` none. `a` has rx, ry, x, y, and in `turns` the text of its rotation and flags.
    """

    kinds: list[str]
    numbers: list[float]
    turns: list[str]


class PathError(ValueError):
    """The path data is outside the grammar, or has a number beyond ±MAX_NUMBER."""


class _Readings(dict[str, float | None]):
    """The text of a number → the number; a command letter → None."""

    def __missing__(self, text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            raise PathError(f"{text!r} in path data") from None
        if not -MAX_NUMBER <= number <= MAX_NUMBER:
            raise PathError(f"a number beyond ±{MAX_NUMBER:.0e}")
        if len(self) < MAX_CACHED:
            self[text] = number
        return number


class _Texts(dict[int, str]):
    """Units of 10**-decimals → how the number is written after another number: ` 5`, `-5`, ` .25`."""

    def __init__(self, decimals: int, gap: str) -> None:
        self.decimals = decimals
        self.gap = gap

    def __missing__(self, units: int) -> str:
        text = format_number(units / 10**self.decimals, self.decimals)
        text = text if text[0] == "-" else f"{self.gap}{text}"
        if len(self) < MAX_CACHED:
            self[units] = text
        return text


def format_number(value: float, decimals: int) -> str:
    """`0.50` → `.5`, `-0.0` → `0`: the shortest text of the value rounded to that many decimals."""
    text = f"{value:.{decimals}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
        text = text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text
    return "0" if text in ("-0", "") else text


_READINGS = _Readings(dict.fromkeys(_LETTERS))
_TEXTS = [_Texts(decimals, " ") for decimals in range(6)]
_HEADS = [_Texts(decimals, "") for decimals in range(6)]  # after a letter


def parse_numbers(text: str) -> list[float]:
    """Every number in the text, whatever separates them. Raises PathError beyond ±MAX_NUMBER."""
    numbers = list(map(float, NUMBER.findall(text)))
    if numbers and not -MAX_NUMBER <= min(numbers) <= max(numbers) <= MAX_NUMBER:
        raise PathError(f"a number beyond ±{MAX_NUMBER:.0e}")
    return numbers


def scale_path(d: str, scale: float, *, origin: tuple[float, float] = (0.0, 0.0), decimals: int = 0) -> str:
    """`M0,0H24V12z`, scale 2 → `m0 0h48v24z`: (point - origin) * scale, rounded. Raises PathError."""
    return write_path(parse_path(d, scale * 10**decimals, origin), decimals)


def parse_path(d: str, scale: float, origin: tuple[float, float] = (0.0, 0.0)) -> Path:
    """`M1 1h2`, 1 → ["m", "l"], [1, 1, 3, 1], []. Raises PathError."""
    words = _TOKEN.findall(d)
    if not d.isascii() or (words and words[0] not in "Mm"):
        raise PathError(f"path data {d.strip()[:40]!r}")
    values = list(map(_READINGS.__getitem__, words))
    try:
        return _segments(words, values, scale, -origin[0], -origin[1])
    except (TypeError, ValueError, IndexError):  # a letter (None) or the end where a number should be
        raise PathError(f"too few or too many numbers in path data {d.strip()[:40]!r}") from None


def _segments(words: list[str], values: list[Any], scale: float, origin_x: float, origin_y: float) -> Path:
    kinds: list[str] = []
    numbers: list[float] = []  # in units of the input, until the end
    turns: list[str] = []
    x, y = start_x, start_y = origin_x, origin_y
    kind, relative = "", False
    after_arc = 0  # segments up to the last arc, which may have become cubics that nothing mirrors
    n, end = 0, len(words)
    while n < end:
        if values[n] is None:
            kind = words[n]
            relative = kind > "Z"
            kind = kind.lower()
            n += 1
            if kind == "z":
                x, y = start_x, start_y
                kinds.append("z")
                continue
        from_x, from_y = (x, y) if relative else (origin_x, origin_y)
        if kind == "l" or kind == "m":
            x, y = from_x + values[n], from_y + values[n + 1]
            numbers += (x, y)
            kinds.append(kind)
            n += 2
            if kind == "m":
                start_x, start_y, kind = x, y, "l"
        elif kind == "c":
            x1, y1, x2, y2, x, y = values[n : n + 6]
            x, y = from_x + x, from_y + y
            numbers += (from_x + x1, from_y + y1, from_x + x2, from_y + y2, x, y)
            kinds.append("c")
            n += 6
        elif kind == "h" or kind == "v":
            x, y = (from_x + values[n], y) if kind == "h" else (x, from_y + values[n])
            numbers += (x, y)
            kinds.append("l")
            n += 1
        elif kind == "a":
            glued = words[n + 3] not in _FLAGS or words[n + 4] not in _FLAGS
            arcs, n = _glued_arcs(words, values, n) if glued else ([values[n : n + 7]], n + 7)
            for rx, ry, phi, large, sweep, dx, dy in arcs:
                x0, y0 = x, y
                x, y = (x0 + dx, y0 + dy) if relative else (origin_x + dx, origin_y + dy)
                phi = round(phi, 1) % 180.0 if rx != ry else 0.0
                written = _round_arc(x0, y0, x, y, abs(rx), abs(ry), phi, large, sweep, scale, turns)
                kinds += written[0]
                numbers += written[1]
            after_arc = len(kinds)
        elif kind == "z":
            raise PathError("numbers after z")
        else:
            last = kinds[-1] if len(kinds) > after_arc else "a"
            added = _curve(kind, last, numbers[-4:], x, y, from_x, from_y, values[n : n + _ARITY[kind]])
            x, y = added[-2:]
            numbers += added
            kinds.append(kind)
            n += _ARITY[kind]
    return Path(kinds, [number * scale for number in numbers], turns)


def _curve(
    kind: str, last: str, tail: list[float], x: float, y: float, from_x: float, from_y: float, values: list[float]
) -> list[float]:
    """The curves that are rare: the numbers of an `s`, `q` or `t` from (x, y); `tail` are the last four numbers."""
    if len(values) < _ARITY[kind]:
        raise PathError("too few numbers")
    points = [(from_y if n % 2 else from_x) + value for n, value in enumerate(values)]
    if kind == "q":
        return points
    mirrors = last in ("cs" if kind == "s" else "qt")  # the last control point, if there is one
    return [2 * x - tail[0], 2 * y - tail[1], *points] if mirrors else [x, y, *points]


def _glued_arcs(words: list[str], values: list[Any], start: int) -> tuple[list[list[float]], int]:
    """Flags are single digits and may touch what follows: `1 1 0 015 5`. The arcs, and where they end."""
    end = start
    while end < len(words) and values[end] is not None:
        end += 1
    text, position = " ".join(words[start:end]), 0
    arcs = []
    while position < len(text):
        arc = _ARC.match(text, position)
        if arc is None:
            raise PathError(f"arc arguments {text[position:].strip()[:40]!r}")
        arcs.append([cast(float, _READINGS[word]) for word in arc.groups()])
        position = arc.end()
    return arcs, end


def _round_arc(
    x0: float, y0: float, x: float, y: float, rx: float, ry: float, phi: float, large: float, sweep: float,
    k: float, turns: list[str],
) -> tuple[str, tuple[float, ...]]:  # fmt: skip
    """The arc as `a`; as cubics, if rounding would bend it; or as a line, if rounding flattens it."""
    if (abs(x - x0) < TINY and abs(y - y0) < TINY) or rx < TINY or ry < TINY:
        return "l", (x, y)
    dx, dy, written_rx, written_ry = x - x0, y - y0, round(rx * k), round(ry * k)
    px, py = round(x0 * k), round(y0 * k)
    written_dx, written_dy = round(x * k) - px, round(y * k) - py
    is_arc = (written_dx or written_dy) and written_rx and written_ry
    if rx == ry and written_rx and is_arc:
        bow, written_bow = arc_bow(dx, dy, rx, large), arc_bow(written_dx, written_dy, written_rx, large)
        if not sweep:
            bow, written_bow = -bow, -written_bow
        off_x = (x0 + dx / 2 + dy * bow) * k - px - written_dx / 2 - written_dy * written_bow
        off_y = (y0 + dy / 2 - dx * bow) * k - py - written_dy / 2 + written_dx * written_bow
    else:
        middle_x, middle_y = arc_middle(dx, dy, rx, ry, phi, large, sweep)
        written_x, written_y = written_dx / 2, written_dy / 2
        if is_arc:
            written_x, written_y = arc_middle(written_dx, written_dy, written_rx, written_ry, phi, large, sweep)
        off_x, off_y = (x0 + middle_x) * k - px - written_x, (y0 + middle_y) * k - py - written_y
    if off_x * off_x + off_y * off_y <= SLACK * SLACK:
        if not is_arc:
            return "l", (x, y)
        turned = format_number(phi, 1) if phi and written_rx != written_ry else "0"
        turns.append(f" {turned} {'1' if large else '0'} {'1' if sweep else '0'}")
        return "a", (rx, ry, x, y)
    curves = arc_cubics(dx, dy, rx, ry, phi, large, sweep, big=512 / k)
    return "c" * len(curves), tuple((y0 if i % 2 else x0) + number for c in curves for i, number in enumerate(c))


def write_path(path: Path, decimals: int = 0) -> str:
    """The text of the path, its points rounded. What is written are differences of rounded absolute points, so
    that rounding never accumulates."""
    numbers = path.numbers
    rounded = list(map(round, numbers))
    turns = iter(path.turns)
    texts, heads = _TEXTS[decimals], _HEADS[decimals]
    parts: list[str] = []
    letter = "z"  # last one written; the next of the same kind leaves it out
    px = py = start_px = start_py = 0
    control_x = control_y = 0  # of the last curve: `s` and `t` mirror it
    begun = vanished = False  # has this subpath a written segment, one rounded away?
    n = 0
    for kind in path.kinds:
        if kind == "l":
            x, y = rounded[n], rounded[n + 1]
            n += 2
        elif kind == "c" or kind == "s":
            x1, y1, x2, y2, x, y = rounded[n : n + 6]
            if kind == "s":
                x1, y1, kind = _smooth(numbers[n], numbers[n + 1], px, py, control_x, control_y, letter in "cs", "sc")
            n += 6
            dx, dy = x - px, y - py
            off = (x1 - px) * dy - (y1 - py) * dx  # most curves are not flat, and this says so without a call
            if off * off <= FLAT * (dx * dx + dy * dy) and _is_flat(x1 - px, y1 - py, x2 - px, y2 - py, dx, dy):
                kind = "l"
            else:
                first = texts
                if kind != letter:
                    parts.append(kind)
                    letter, first = kind, heads
                if kind == "c":
                    parts += (first[x1 - px], texts[y1 - py])
                    first = texts
                parts += (first[x2 - px], texts[y2 - py], texts[x - px], texts[y - py])
                control_x, control_y = x2, y2
        elif kind == "m" or kind == "z":
            if vanished and not begun:  # a dot made of its caps or joins: `M4 4h.01`
                parts.append(_DOT)
                letter = "h"
            begun = vanished = False
            if kind == "m":
                start_px, start_py = rounded[n], rounded[n + 1]
                n += 2
                parts += ("m", heads[start_px - px], texts[start_py - py])
                letter = "l"
            elif letter != "z":
                parts.append("z")
                letter = "z"
            px, py = start_px, start_py
            continue
        elif kind == "a":
            rx, ry, x, y = rounded[n : n + 4]
            n += 4
            parts += (texts[rx],) if letter == "a" else ("a", heads[rx])
            parts += (texts[ry], next(turns), texts[x - px], texts[y - py])
            letter = "a"
        else:
            x1, y1, x, y = rounded[n : n + 4]
            if kind == "t":
                x1, y1, kind = _smooth(numbers[n], numbers[n + 1], px, py, control_x, control_y, letter in "qt", "tq")
            n += 4
            first = texts
            if kind != letter:
                parts.append(kind)
                letter, first = kind, heads
            if kind == "q":
                parts += (first[x1 - px], texts[y1 - py])
                first = texts
            parts += (first[x - px], texts[y - py])
            control_x, control_y = x1, y1
        if kind == "l":
            dx, dy = x - px, y - py
            if dx and dy:
                parts += (texts[dx], texts[dy]) if letter == "l" else ("l", heads[dx], texts[dy])
                letter = "l"
            elif dx or dy:
                kind = "h" if dx else "v"
                parts += (texts[dx or dy],) if letter == kind else (kind, heads[dx or dy])
                letter = kind
            else:
                vanished = True
                continue
        begun = True
        px, py = x, y
    if vanished and not begun:
        parts.append(_DOT)
    return "".join(parts)


def write_points(path: Path, decimals: int = 0) -> str:
    """[1, -2, 3, 4] → `1-2 3 4`: the absolute form that polygons have."""
    return "".join(map(_TEXTS[decimals].__getitem__, map(round, path.numbers))).lstrip()


def path_slip(path: Path) -> float:
    """How much rounding moves the outline: per segment, mean distance of its ends from where they are written
    times length, in squares of the last decimal's unit."""
    slip = x = y = slip_x = slip_y = 0.0
    numbers = path.numbers
    n = 0
    for kind in path.kinds:
        n += _SIZES[kind]
        if kind == "z":
            continue
        last_x, last_y, last_slip_x, last_slip_y = x, y, slip_x, slip_y
        x, y = numbers[n - 2], numbers[n - 1]
        slip_x, slip_y = abs(x - round(x)), abs(y - round(y))
        if kind != "m":
            slip += (slip_x + last_slip_x) * abs(y - last_y) + (slip_y + last_slip_y) * abs(x - last_x)
    return slip / 2


def _smooth(
    x1: float, y1: float, px: int, py: int, control_x: int, control_y: int, mirrors: bool, kinds: str
) -> tuple[int, int, str]:
    """The rounded control point, and whether a reader who mirrors what was written finds it (`s`) or not (`c`)."""
    seen_x, seen_y = (2 * px - control_x, 2 * py - control_y) if mirrors else (px, py)
    if abs(seen_x - x1) <= SLACK and abs(seen_y - y1) <= SLACK:
        return seen_x, seen_y, kinds[0]
    return round(x1), round(y1), kinds[1]


def _is_flat(x1: int, y1: int, x2: int, y2: int, dx: int, dy: int) -> bool:
    """Is the curve from (0, 0) nowhere farther than three quarters of SLACK from its chord? Then a line will do."""
    length = dx * dx + dy * dy
    if not length:
        return not (x1 or y1 or x2 or y2)
    off_1, off_2 = x1 * dy - y1 * dx, x2 * dy - y2 * dx  # times the length of the chord
    slack = FLAT * length
    if off_1 * off_1 > slack or off_2 * off_2 > slack:
        return False
    return 0 <= x1 * dx + y1 * dy <= length and 0 <= x2 * dx + y2 * dy <= length
