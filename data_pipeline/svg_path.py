"""Path data → relative commands in integer units, by the real grammar. Knows no element and no XML."""

import math
import re

from data_pipeline.svg_arc import Arc

NUMBER = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
MAX_NUMBER = 1e7  # far outside any drawing, and far inside what a float holds exactly

_SEP = r"[\s,]*+"
_NUM = f"((?>{NUMBER.pattern}))"
_SEGMENT = re.compile(r"([MmZzLlHhVvCcSsQqTtAa])([^MmZzLlHhVvCcSsQqTtAa]*)")
_VALID = re.compile(rf"\s*(?:[Mm](?:[MmZzLlHhVvCcSsQqTtAa]|{NUMBER.pattern}|[\s,]+)*+)?")
_ARC = re.compile(_SEP + _SEP.join([_NUM, _NUM, _NUM, "([01])", "([01])", _NUM, _NUM]) + _SEP)
_ARITY = {"m": 2, "l": 2, "h": 1, "v": 1, "c": 6, "s": 4, "q": 4, "t": 2, "a": 7}
_AFTER_LETTER = re.compile("(?<=[a-z]) ")
_FLAGS = {"0", "1"}
_DOT = "h.1-.1"  # there and back, so that what follows stays where it is

# How far a shorter form may move a curve (output units). Near half and full turns the rounded radius or chord
# of an arc can move its middle by many units: it becomes cubics. A mirrored control point (`s`, `t`) adds up
# the rounding of three points: it is written out.
SLACK = 0.75


class PathError(ValueError):
    """The path data is outside the grammar, or has a number beyond ±MAX_NUMBER."""


class _Texts(dict[int, str]):
    """Units of 10**-decimals → how the number is written after another number: ` 5`, `-5`, ` .25`."""

    def __init__(self, decimals: int) -> None:
        self.decimals = decimals

    def __missing__(self, units: int) -> str:
        text = format_number(units / 10**self.decimals, self.decimals)
        text = text if text[0] == "-" else f" {text}"
        if -4096 < units < 4096:  # bounded: a hostile corpus must not grow it
            self[units] = text
        return text


def format_number(value: float, decimals: int) -> str:
    """`0.50` → `.5`, `-0.0` → `0`: the shortest text of the value rounded to that many decimals."""
    text = f"{value:.{decimals}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
        text = text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text
    return "0" if text in ("-0", "") else text


_TEXTS = [_Texts(decimals) for decimals in range(5)]


def parse_numbers(text: str) -> list[float]:
    """Every number in the text, whatever separates them. Raises PathError beyond ±MAX_NUMBER."""
    numbers = list(map(float, NUMBER.findall(text)))
    if numbers and not -MAX_NUMBER <= min(numbers) <= max(numbers) <= MAX_NUMBER:
        raise PathError(f"a number beyond ±{MAX_NUMBER:.0e}")
    return numbers


def join_numbers(units: list[int], decimals: int) -> str:
    """[1, -2, 3], 0 → `1-2 3`."""
    texts = _TEXTS[decimals]
    return "".join([texts[number] for number in units]).lstrip()


def _glued_arcs(text: str) -> list[float]:
    """Flags are single digits and may touch what follows: `1 1 0 015 5`."""
    numbers: list[float] = []
    position = 0
    while position < len(text):
        arc = _ARC.match(text, position)
        if arc is None:
            raise PathError(f"arc arguments {text[position:].strip()[:40]!r}")
        numbers += map(float, arc.groups())
        position = arc.end()
    return numbers


def _arguments(kind: str, text: str) -> list[float]:
    numbers = parse_numbers(text)
    if kind == "a":
        words = NUMBER.findall(text)
        if len(words) % 7 or not _FLAGS.issuperset(words[3::7] + words[4::7]):
            numbers = _glued_arcs(text)
    if not numbers or len(numbers) % _ARITY[kind]:
        raise PathError(f"{len(numbers)} numbers after {kind!r}, which takes {_ARITY[kind]} at a time")
    return numbers


class _Pen:
    """Where the path stands, truly (x, y) and as written (px, py), in units of the output.

    What is written is the difference of rounded absolute points, so that rounding never accumulates.
    """

    def __init__(self, x: float, y: float, decimals: int) -> None:
        self.texts = _TEXTS[decimals]
        self.parts: list[str] = []
        self.letter = "z"  # last one written; the next of the same kind leaves it out
        self.x, self.y = self.start_x, self.start_y = x, y
        self.px = self.py = self.start_px = self.start_py = 0
        self.control_x = self.control_y = 0.0  # of the last curve: `s` and `t` mirror it
        self.written_x = self.written_y = 0
        self.begun = self.vanished = False  # has this subpath a written segment, one rounded away?

    def _write(self, letter: str, x: int, y: int, *offsets: int) -> None:
        if letter != self.letter:
            self.parts.append(letter)
            self.letter = letter
        texts = self.texts
        self.parts.extend([texts[offset] for offset in offsets])
        self.px, self.py = x, y
        self.begun = True

    def _end_subpath(self) -> None:
        if self.vanished and not self.begun:  # a dot made of its caps or joins: `M4 4h.01`
            self.parts.append(_DOT)
            self.letter = "h"
        self.begun = self.vanished = False

    def move(self, x: float, y: float) -> None:
        self._end_subpath()
        nx, ny = round(x), round(y)
        self.letter = ""
        self._write("m", nx, ny, nx - self.px, ny - self.py)
        self.x, self.y, self.letter, self.begun = x, y, "l", False
        self.start_x, self.start_y, self.start_px, self.start_py = x, y, nx, ny

    def close(self) -> None:
        self._end_subpath()
        if self.letter != "z":
            self.parts.append("z")
        self.x, self.y, self.px, self.py = self.start_x, self.start_y, self.start_px, self.start_py
        self.letter = "z"

    def line(self, x: float, y: float) -> None:
        nx, ny = round(x), round(y)
        dx, dy = nx - self.px, ny - self.py
        if dx and dy:
            self._write("l", nx, ny, dx, dy)
        elif dy:
            self._write("v", nx, ny, dy)
        elif dx:
            self._write("h", nx, ny, dx)
        else:
            self.vanished = True
        self.x, self.y = x, y

    def _mirrored(self, letters: str, x: float, y: float) -> bool:
        """Would a reader who mirrors what was written find this control point?"""
        seen_x, seen_y = self.px, self.py
        if self.letter in letters:
            seen_x, seen_y = 2 * seen_x - self.written_x, 2 * seen_y - self.written_y
        return abs(seen_x - x) <= SLACK and abs(seen_y - y) <= SLACK

    def cubic(self, x1: float, y1: float, x2: float, y2: float, x: float, y: float, *, smooth: bool = False) -> None:
        px, py, nx2, ny2, nx, ny = self.px, self.py, round(x2), round(y2), round(x), round(y)
        if smooth and self._mirrored("cs", x1, y1):
            self._write("s", nx, ny, nx2 - px, ny2 - py, nx - px, ny - py)
        else:
            offsets = round(x1) - px, round(y1) - py, nx2 - px, ny2 - py, nx - px, ny - py
            if not any(offsets):
                self.vanished = True
            else:
                self._write("c", nx, ny, *offsets)
        self.written_x, self.written_y = nx2, ny2
        self.x, self.y, self.control_x, self.control_y = x, y, x2, y2

    def quadratic(self, x1: float, y1: float, x: float, y: float, *, smooth: bool = False) -> None:
        px, py, nx, ny = self.px, self.py, round(x), round(y)
        if smooth and self._mirrored("qt", x1, y1):
            mirrored = self.letter in "qt"
            self.written_x = 2 * px - self.written_x if mirrored else px
            self.written_y = 2 * py - self.written_y if mirrored else py
            self._write("t", nx, ny, nx - px, ny - py)
        else:
            self.written_x, self.written_y = round(x1), round(y1)
            self._write("q", nx, ny, self.written_x - px, self.written_y - py, nx - px, ny - py)
        self.x, self.y, self.control_x, self.control_y = x, y, x1, y1

    def arc(self, rx: float, ry: float, phi: float, large: bool, sweep: bool, x: float, y: float) -> None:
        x0, y0, px, py = self.x, self.y, self.px, self.py
        rx, ry = abs(rx), abs(ry)
        nrx, nry, nx, ny = round(rx), round(ry), round(x), round(y)
        dx, dy = nx - px, ny - py
        if (x == x0 and y == y0) or not rx or not ry:
            self.line(x, y)
            return
        phi = round(phi % 180, 1) if rx != ry else 0.0
        true = Arc(x - x0, y - y0, rx, ry, phi, large, sweep)
        middle_x, middle_y = true.middle()
        written_x, written_y = dx / 2, dy / 2
        is_arc = (dx or dy) and nrx and nry
        if is_arc:
            written_x, written_y = Arc(dx, dy, nrx, nry, phi, large, sweep).middle()
        if math.hypot(x0 + middle_x - px - written_x, y0 + middle_y - py - written_y) > SLACK:
            for x1, y1, x2, y2, x3, y3 in true.cubics():
                self.cubic(x0 + x1, y0 + y1, x0 + x2, y0 + y2, x0 + x3, y0 + y3)
        elif is_arc:
            self._write("a", nx, ny, nrx, nry)
            turned = format_number(phi, 1) if nrx != nry else "0"
            self.parts.append(f" {turned} {int(large)} {int(sweep)}")
            self.parts.extend((self.texts[dx], self.texts[dy]))
        else:
            self.line(x, y)
        self.x, self.y = x, y

    def text(self) -> str:
        self._end_subpath()
        return _AFTER_LETTER.sub("", "".join(self.parts))


def scale_path(d: str, scale: float, *, origin: tuple[float, float] = (0.0, 0.0), decimals: int = 0) -> str:
    """`M0,0H24V12z`, scale 2 → `m0 0h48v24z`: (point - origin) * scale, rounded to `decimals` decimals.

    Raises PathError.
    """
    if not _VALID.fullmatch(d):
        raise PathError(f"path data {d.strip()[:40]!r}…")
    k = scale * 10**decimals
    origin_x, origin_y = -origin[0] * k, -origin[1] * k
    pen = _Pen(origin_x, origin_y, decimals)
    previous = ""
    for letter, text in _SEGMENT.findall(d):
        kind = letter.lower()
        if kind == "z":
            if text and not text.isspace():
                raise PathError("numbers after z")
            pen.close()
            previous = kind
            continue
        numbers = _arguments(kind, text)
        arity = _ARITY[kind]
        for n in range(0, len(numbers), arity):
            x, y = (pen.x, pen.y) if letter == kind else (origin_x, origin_y)
            _draw(pen, kind, previous, [number * k for number in numbers[n : n + arity]], x, y, k)
            previous = kind
            if kind == "m":
                kind, letter = "l", "l" if letter == "m" else "L"
    return pen.text()


def _draw(pen: _Pen, kind: str, previous: str, n: list[float], x: float, y: float, k: float) -> None:
    """One segment: `n` its numbers in output units, (x, y) what they are relative to."""
    match kind:
        case "l":
            pen.line(x + n[0], y + n[1])
        case "h":
            pen.line(x + n[0], pen.y)
        case "v":
            pen.line(pen.x, y + n[0])
        case "c":
            pen.cubic(x + n[0], y + n[1], x + n[2], y + n[3], x + n[4], y + n[5])
        case "a":
            pen.arc(n[0], n[1], n[2] / k, n[3] > 0, n[4] > 0, x + n[5], y + n[6])
        case "m":
            pen.move(x + n[0], y + n[1])
        case "s":
            mirror = previous in ("c", "s")
            x1 = 2 * pen.x - pen.control_x if mirror else pen.x
            y1 = 2 * pen.y - pen.control_y if mirror else pen.y
            pen.cubic(x1, y1, x + n[0], y + n[1], x + n[2], y + n[3], smooth=True)
        case "q":
            pen.quadratic(x + n[0], y + n[1], x + n[2], y + n[3])
        case "t":
            mirror = previous in ("q", "t")
            x1 = 2 * pen.x - pen.control_x if mirror else pen.x
            y1 = 2 * pen.y - pen.control_y if mirror else pen.y
            pen.quadratic(x1, y1, x + n[0], y + n[1], smooth=True)
