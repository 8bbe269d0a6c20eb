"""Plain flattener of path data: an oracle that measures how far a rewritten path moved."""

import math
import re

import numpy as np

_COMMANDS = {"m": 2, "l": 2, "h": 1, "v": 1, "c": 6, "s": 4, "q": 4, "t": 2, "a": 7, "z": 0}


def parse_segments(d: str) -> list[tuple[str, list[float]]]:
    """Return the commands with their numbers, read character by character."""
    segments: list[tuple[str, list[float]]] = []
    position, command = 0, ""
    number = re.compile(r"[\s,]*([-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?)")
    flag = re.compile(r"[\s,]*([01])")
    while d[position:].strip(" ,\n"):
        # command
        letter = re.compile(r"[\s,]*([a-zA-Z])").match(d, position)
        if letter:
            command, position = letter[1], letter.end()
        elif command in "mM":
            command = "l" if command == "m" else "L"

        # numbers
        values = []
        for n in range(_COMMANDS[command.lower()]):
            match = (flag if command in "aA" and n in (3, 4) else number).match(d, position)
            assert match, d[position:]
            values.append(float(match[1]))
            position = match.end()
        segments.append((command, values))
    return segments


def arc_points(
    p: complex, rx: float, ry: float, phi: float, large: bool, sweep: bool, q: complex
) -> list[complex]:
    """Return 128 points of the arc from p to q, by SVG 1.1, appendix F.6."""
    if p == q:
        return []
    if not rx or not ry:
        return [q]

    # chord and radii in the frame of the ellipse
    turn = complex(math.cos(math.radians(phi)), math.sin(math.radians(phi)))
    half = (p - q) / 2 / turn
    x, y, rx, ry = half.real, half.imag, abs(rx), abs(ry)
    grow = math.sqrt((x / rx) ** 2 + (y / ry) ** 2)
    if grow > 1:
        rx, ry = rx * grow, ry * grow

    # centre and angles
    root = max(0.0, (rx * ry) ** 2 / ((rx * y) ** 2 + (ry * x) ** 2) - 1) ** 0.5
    root = -root if large == sweep else root
    cx, cy = root * rx * y / ry, -root * ry * x / rx
    first = math.atan2((y - cy) / ry, (x - cx) / rx)
    last = math.atan2((-y - cy) / ry, (-x - cx) / rx)
    if sweep and last < first:
        last += math.tau
    if not sweep and last > first:
        last -= math.tau

    centre = complex(cx, cy) * turn + (p + q) / 2
    angles = np.linspace(first, last, 129)[1:]
    return [complex(rx * math.cos(a), ry * math.sin(a)) * turn + centre for a in angles]


def flatten(d: str, scale: float) -> list[np.ndarray]:
    """Return the subpaths as polylines of complex points, with curves in 32 steps."""
    subpaths: list[list[complex]] = []
    here = start = control = 0j
    previous = ""
    for command, n in parse_segments(d):
        kind, base = command.lower(), here if command.islower() else 0j
        if kind not in "mz" and previous == "z":
            subpaths.append([here])
        points = [base + complex(n[i], n[i + 1]) for i in range(0, len(n) - 1, 2)]

        if kind == "m":
            here = start = points[0]
            subpaths.append([here])
        elif kind == "z":
            subpaths[-1].append(start)
            here = start
        elif kind in "lhv":
            if kind == "h":
                points = [complex(base.real + n[0], here.imag)]
            if kind == "v":
                points = [complex(here.real, base.imag + n[0])]
            here = points[0]
            subpaths[-1].append(here)
        elif kind in "csqt":
            family = "cs" if kind in "cs" else "qt"
            if kind in "st":
                points = [2 * here - control if previous in family else here, *points]
            subpaths[-1] += curve_points(here, points)
            *_, control, here = points
        else:
            end = base + complex(n[5], n[6])
            subpaths[-1] += arc_points(here, n[0], n[1], n[2], n[3] == 1, n[4] == 1, end)
            here = end
        previous = kind
    return [np.array(points) * scale for points in subpaths]


def curve_points(start: complex, points: list[complex]) -> list[complex]:
    """Return 32 points of the quadratic or cubic Bézier curve from `start` through `points`."""
    t = np.linspace(0, 1, 33)[1:]
    if len(points) == 2:
        b, c = points
        return list((1 - t) ** 2 * start + 2 * (1 - t) * t * b + t**2 * c)
    b, c, d = points
    return list((1 - t) ** 3 * start + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t**2 * c + t**3 * d)


def max_distance(points: np.ndarray, line: np.ndarray) -> float:
    """Return the largest distance from one of the points to the polyline."""
    a, b = line[:-1], line[1:]
    if not len(a):
        return float(np.abs(points - line[0]).max())
    along = b - a
    length = np.where(along == 0, 1, np.abs(along) ** 2)
    share = np.clip(((points[:, None] - a) * along.conj()).real / length, 0, 1)
    return float(np.abs(points[:, None] - (a + share * along)).min(axis=1).max())


def deviation(before: list[np.ndarray], after: list[np.ndarray]) -> float:
    """Return the largest distance between the polylines of two flattened paths."""
    assert len(before) == len(after)
    pairs = list(zip(before, after, strict=True))
    return max((max(max_distance(p, q), max_distance(q, p)) for p, q in pairs), default=0.0)
