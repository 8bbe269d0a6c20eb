"""Outlines of basic shapes and paths as polylines of complex points."""

import cmath
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.svg.arc import convert_arc_to_cubics
from data_pipeline.svg.numbers import parse_numbers
from data_pipeline.svg.tokens import COMMANDS, read_touching_flags, tokenise_path

Points = NDArray[np.complex128]

NUM_STEPS = 10  # of one Bézier curve
_T = np.linspace(0, 1, NUM_STEPS + 1)[1:]
_CUBIC = np.stack([(1 - _T) ** 3, 3 * (1 - _T) ** 2 * _T, 3 * (1 - _T) * _T**2, _T**3], axis=1)
_NUM_VALUES = {"m": 2, "l": 2, "h": 1, "v": 1, "c": 6, "s": 4, "q": 4, "t": 2}


@dataclass(frozen=True, eq=False)
class Contour:
    """One subpath."""

    points: Points
    """Corners of the polyline; a closed one does not repeat its first point."""
    is_closed: bool


def outline_shape(tag: str, attributes: dict[str, str]) -> list[Contour]:
    """Return the contours of a basic shape or path in its own coordinates."""

    def read(name: str) -> float:
        numbers = parse_numbers(attributes.get(name, ""))
        return numbers[0] if numbers else 0.0

    if tag == "path":
        return flatten_path(attributes.get("d", ""))
    if tag == "circle":
        return _outline_ellipse(complex(read("cx"), read("cy")), read("r"), read("r"))
    if tag == "ellipse":
        rx, ry = read("rx") or read("ry"), read("ry") or read("rx")
        return _outline_ellipse(complex(read("cx"), read("cy")), rx, ry)
    if tag == "rect":
        corner, size = complex(read("x"), read("y")), (read("width"), read("height"))
        return _outline_rect(corner, size, (read("rx") or read("ry"), read("ry") or read("rx")))
    if tag == "line":
        ends = [complex(read("x1"), read("y1")), complex(read("x2"), read("y2"))]
        return [Contour(np.array(ends), False)]

    numbers = parse_numbers(attributes.get("points", ""))
    points = np.array([complex(x, y) for x, y in zip(numbers[::2], numbers[1::2], strict=False)])
    return [Contour(points, tag == "polygon")] if len(points) > 1 else []


def _outline_ellipse(centre: complex, rx: float, ry: float) -> list[Contour]:
    if rx <= 0 or ry <= 0:
        return []
    angles = np.linspace(0, math.tau, 4 * NUM_STEPS, endpoint=False)
    return [Contour(centre + rx * np.cos(angles) + 1j * ry * np.sin(angles), True)]


def _outline_rect(
    corner: complex, size: tuple[float, float], radii: tuple[float, float]
) -> list[Contour]:
    width, height = size
    if width <= 0 or height <= 0:
        return []
    rx, ry = min(radii[0], width / 2), min(radii[1], height / 2)
    if rx <= 0 or ry <= 0:
        square = [0, width, complex(width, height), complex(0, height)]
        return [Contour(corner + np.array(square, dtype=complex), True)]

    quarter = np.linspace(0, math.pi / 2, NUM_STEPS)
    centres = ((width - rx, height - ry), (rx, height - ry), (rx, ry), (width - rx, ry))
    arcs = [
        complex(x, y) + rx * np.cos(quarter + turn) + 1j * ry * np.sin(quarter + turn)
        for (x, y), turn in zip(centres, np.arange(4) * math.pi / 2, strict=True)
    ]
    return [Contour(corner + np.concatenate(arcs), True)]


@dataclass
class _Pen:
    """Reader of path data: the current point, and the contours so far."""

    here: complex = 0j
    start: complex = 0j
    control: complex = 0j  # of the last curve; the current point after other commands
    last: str = ""
    points: list[Points] = field(default_factory=list)
    contours: list[Contour] = field(default_factory=list)

    def lift(self, *, is_closed: bool) -> None:
        """End the contour, and begin another one at the current point."""
        points = np.concatenate(self.points) if self.points else np.array([self.here])
        is_same = np.abs(np.diff(points, prepend=np.inf)) < 1e-9
        points = points[~is_same]
        if len(points) > 1:
            if abs(points[0] - points[-1]) < 1e-6 and len(points) > 2:
                points, is_closed = points[:-1], True
            self.contours.append(Contour(points, is_closed))
        elif is_closed or len(self.points) > 1:
            self.contours.append(Contour(np.repeat(points, 2), False))  # a dot: caps may draw it
        self.points = []

    def draw(self, points: Points) -> None:
        """Append points to the contour."""
        if not self.points:
            self.points.append(np.array([self.here]))
        self.points.append(points)
        self.here = complex(points[-1])

    def draw_cubic(self, one: complex, two: complex, end: complex) -> None:
        """Append a cubic Bézier curve."""
        self.draw(_CUBIC @ np.array([self.here, one, two, end]))
        self.control = two

    def draw_quadratic(self, control: complex, end: complex) -> None:
        """Append a quadratic Bézier curve."""
        here = self.here
        self.draw_cubic(here + (control - here) * 2 / 3, end + (control - end) * 2 / 3, end)
        self.control = control


def flatten_path(d: str) -> list[Contour]:
    """Return the contours of path data, with curves as polylines."""
    tokens, values = tokenise_path(d)
    pen = _Pen()
    index, letter = 0, "M"
    while index < len(tokens):
        if values[index] is None:
            letter = tokens[index]
            index += 1
        elif letter in "Mm":
            letter = "L" if letter == "M" else "l"
        index = _read_command(pen, letter, tokens, values, index)
    pen.lift(is_closed=False)
    return pen.contours


def _read_command(
    pen: _Pen, letter: str, tokens: list[str], values: Sequence[Any], index: int
) -> int:
    """Draw one command, and return the index behind its numbers."""
    command, is_relative = COMMANDS[letter]
    base = pen.here if is_relative else 0j

    if command == "z":
        pen.lift(is_closed=True)
        pen.here = pen.start
    elif command == "a":
        index = _draw_arc(pen, base, tokens, values, index)
    else:
        end = index + _NUM_VALUES[command]
        _draw_segment(pen, command, base, values[index:end])
        index = end

    if command not in "csqt":
        pen.control = pen.here
    pen.last = command
    return index


def _draw_segment(pen: _Pen, command: str, base: complex, numbers: Sequence[float]) -> None:
    if command == "h":
        pen.draw(np.array([complex(base.real + numbers[0], pen.here.imag)]))
        return
    if command == "v":
        pen.draw(np.array([complex(pen.here.real, base.imag + numbers[0])]))
        return

    points = [base + complex(x, y) for x, y in zip(numbers[::2], numbers[1::2], strict=True)]
    mirrored = 2 * pen.here - pen.control
    if command == "m":
        pen.lift(is_closed=False)
        pen.here = pen.start = points[0]
    elif command == "l":
        pen.draw(np.array(points))
    elif command == "c":
        pen.draw_cubic(points[0], points[1], points[2])
    elif command == "s":
        first = mirrored if pen.last in "cs" else pen.here
        pen.draw_cubic(first, points[0], points[1])
    elif command == "q":
        pen.draw_quadratic(points[0], points[1])
    else:
        pen.draw_quadratic(mirrored if pen.last in "qt" else pen.here, points[0])


def _draw_arc(
    pen: _Pen, base: complex, tokens: list[str], values: Sequence[Any], index: int
) -> int:
    rx, ry, rotation = (abs(values[index]), abs(values[index + 1]), values[index + 2])
    large, sweep, x, y, index = read_touching_flags(tokens, values, index + 3)
    end = base + complex(x, y)
    chord = end - pen.here
    if abs(chord) < 1e-9:
        return index
    if rx < 1e-9 or ry < 1e-9:
        pen.draw(np.array([end]))
        return index

    numbers = convert_arc_to_cubics(
        pen.here.real, pen.here.imag, chord.real, chord.imag,
        rx, ry, rotation, large, sweep, large_radius=math.inf,
    )  # fmt: skip
    for n in range(0, len(numbers), 6):
        one, two, corner = (complex(numbers[i], numbers[i + 1]) for i in range(n, n + 6, 2))
        pen.draw_cubic(one, two, corner)
    return index


def widen_line(points: Points, width: float, *, is_closed: bool, cap: str) -> list[Points]:
    """Return convex polygons, all of one orientation, whose union is the stroke of a polyline.

    Joins are round: a mitre is a detail below the size of a fact.
    """
    ends = np.append(points, points[0]) if is_closed else points
    half = width / 2
    polygons = []

    # segments
    steps = np.diff(ends)
    lengths = np.abs(steps)
    for begin, step, length in zip(ends, steps, lengths, strict=False):
        if length < 1e-9:
            continue
        side, along = 1j * step / length * half, step / length * half
        is_square = cap == "square" and len(points) == 2
        first, last = (begin - along, begin + step + along) if is_square else (begin, begin + step)
        polygons.append(np.array([first - side, last - side, last + side, first + side]))

    # joins, and round caps
    num_sides = 8 if half < 16 else 16
    circle = half * np.array([cmath.exp(1j * math.tau * k / num_sides) for k in range(num_sides)])
    joins = ends if cap == "round" or is_closed else ends[1:-1]
    return polygons + [centre + circle for centre in joins]
