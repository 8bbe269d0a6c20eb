"""Procedural line drawings in the manner of icon fonts, with captions that name the pen and the parts.

What there is to learn is to read the pen off an outline: an icon font draws no strokes but the two edges of each
line as one filled path, whose round ends are arcs with the radius of half the pen. Never an icon, only geometry.
"""

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np

from data_pipeline.sources.record import Record

PENS = {"thin": 4, "light": 6, "regular": 8, "bold": 12, "filled": 8, "tinted": 8}
"""Half the pen's width (grid units). The first part of a filled drawing is solid, of a tinted one over a pale copy."""
CAPTIONS: tuple[Callable[[str, str], str], ...] = (
    lambda pen, parts: f"a {pen} drawing of {parts}",
    lambda pen, parts: f"{parts}, {pen}",
    lambda pen, parts: f"Pen: {pen}. Parts: {parts}.",
    lambda pen, parts: f"This {pen} picture shows {parts}.",
)
Outline = tuple[str, str]
"""Path data of a part's outer edge, and of its inner edge (empty: it has none), which runs the other way round."""
MARGIN = 16


def generate_line_drawings(num: int, *, seed: int = 0) -> Iterator[Record]:
    """`num` drawings of one to three parts, a pure function of the seed.

    Not canonical as drawn. The concept is the caption, so that a split by concept holds whole captions out.
    """
    for i in range(num):
        random = np.random.default_rng((seed, i, 1))
        pen = str(random.choice(list(PENS)))
        kinds = [
            str(random.choice(_CLOSED)),
            *map(str, random.choice(list(_PARTS), size=int(random.integers(0, 3)))),
        ]
        (outer, inner), *others = (_PARTS[kind](random, PENS[pen]) for kind in kinds)
        drawn = outer + ("" if pen == "filled" else inner) + "".join(map("".join, others))
        body = (
            f'<path opacity=".2" d="{outer}"/>' if pen == "tinted" else ""
        ) + f'<path d="{drawn}"/>'
        named = list(dict.fromkeys(kinds))
        parts = " and ".join([", ".join(named[:-1]), named[-1]] if named[1:] else named)
        caption = CAPTIONS[int(random.integers(len(CAPTIONS)))](pen, parts)
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 256 256" fill="currentColor">{body}</svg>'
        yield Record(f"lines:{seed}:{i}", svg, caption, "line-drawings", f"{pen} {parts}")


def _point(random: np.random.Generator, margin: float) -> tuple[float, float]:
    x, y = random.uniform(MARGIN + margin, 256 - MARGIN - margin, size=2)
    return float(x), float(y)


def _stroke(random: np.random.Generator, p: int) -> Outline:
    """A line of one or two segments with round ends, each segment across, down or in any direction."""
    points = [_point(random, p)]
    angle = (
        math.pi / 4 * int(random.integers(8))
        if random.random() < 0.75
        else random.uniform(0, 2 * math.pi)
    )
    for _ in range(int(random.integers(1, 3))):
        length = random.uniform(20, 110)
        points.append(
            (points[-1][0] + length * math.cos(angle), points[-1][1] + length * math.sin(angle))
        )
        angle += float(random.choice([-1, 1])) * random.uniform(math.pi / 4, 2 * math.pi / 3)
    there, back = _side(points, p), _side(points[::-1], p)
    arc = f"A{p} {p} 0 0 1 "
    return f"M{_line(there)}{arc}{_line(back[:1])}L{_line(back[1:])}{arc}{_line(there[:1])}z", ""


def _side(points: list[tuple[float, float]], p: int) -> list[tuple[float, float]]:
    """The polyline moved by p to its left; a corner goes where the two moved lines meet."""
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(points)]
    normals = [(p * y / math.hypot(x, y), -p * x / math.hypot(x, y)) for x, y in steps]
    moved = [(points[0][0] + normals[0][0], points[0][1] + normals[0][1])]
    for at, one, two in zip(points[1:], normals, normals[1:], strict=False):
        x, y = one[0] + two[0], one[1] + two[1]
        scale = 2 * p * p / (x * x + y * y)
        moved.append((at[0] + x * scale, at[1] + y * scale))
    return [*moved, (points[-1][0] + normals[-1][0], points[-1][1] + normals[-1][1])]


def _line(points: list[tuple[float, float]]) -> str:
    return " ".join(f"{x:.2f} {y:.2f}" for x, y in points)


def _circle(x: float, y: float, r: float, sweep: int) -> str:
    return f"M{x:.0f} {y - r:.0f}a{r:g} {r:g} 0 1 {sweep} 0 {2 * r:g} {r:g} {r:g} 0 0 {sweep} 0-{2 * r:g}z"


def _ring(random: np.random.Generator, p: int) -> Outline:
    r = 4 * int(random.integers(5, 25))
    x, y = _point(random, r + p - MARGIN)
    return _circle(x, y, r + p, 1), _circle(x, y, r - p, 0)


def _dot(random: np.random.Generator, p: int) -> Outline:
    x, y = _point(random, p)
    return _circle(x, y, int(random.integers(8, 17)), int(random.integers(2))), ""


def _bow(random: np.random.Generator, p: int) -> Outline:
    """Part of a ring, with round ends."""
    r = 4 * int(random.integers(5, 20))
    x, y = _point(random, r)
    first, reach = random.uniform(0, 2 * math.pi), random.uniform(0.6, 2.9)
    (a, b), (c, d) = ((math.cos(t), math.sin(t)) for t in (first, first + reach))
    o, i = r + p, r - p
    return (f"M{x + o * a:.2f} {y + o * b:.2f}A{o} {o} 0 0 1 {x + o * c:.2f} {y + o * d:.2f}"
            f"A{p} {p} 0 0 1 {x + i * c:.2f} {y + i * d:.2f}A{i} {i} 0 0 0 {x + i * a:.2f} {y + i * b:.2f}"
            f"A{p} {p} 0 0 1 {x + o * a:.2f} {y + o * b:.2f}z"), ""  # fmt: skip


def _frame(random: np.random.Generator, p: int) -> Outline:
    """A rectangle whose middle line has corners of radius c, each edge its own."""
    w, h = (8 * int(n) for n in random.integers(6, 26, size=2))
    x, y = (int(random.integers(p + 8, 248 - p - side)) for side in (w, h))
    c = int(random.choice([0, 8, 8, 16, 24]))
    outer = _rectangle(x - p, y - p, w + 2 * p, h + 2 * p, c + p if c else 0, clockwise=True)
    return outer, _rectangle(x + p, y + p, w - 2 * p, h - 2 * p, max(c - p, 0), clockwise=False)


def _rectangle(x: int, y: int, w: int, h: int, c: int, *, clockwise: bool) -> str:
    across, down, corner = w - 2 * c, h - 2 * c, f"a{c} {c} 0 0 {int(clockwise)} "
    if across <= 0 or down <= 0 or not c:
        sides = f"h{w}v{h}h-{w}z" if clockwise else f"v{h}h{w}v-{h}z"
        return f"M{x} {y}{sides}"
    if clockwise:
        return (f"M{x + c} {y}h{across}{corner}{c} {c}v{down}{corner}-{c} {c}h-{across}{corner}-{c}-{c}"
                f"v-{down}{corner}{c}-{c}z")  # fmt: skip
    return (f"M{x + c} {y}{corner}-{c} {c}v{down}{corner}{c} {c}h{across}{corner}{c}-{c}"
            f"v-{down}{corner}-{c}-{c}z")  # fmt: skip


def _blob(random: np.random.Generator, p: int) -> Outline:
    """A closed curve around a centre; its inner edge is the same curve, smaller by the pen."""
    r = random.uniform(28, 80)
    x, y = _point(random, r - MARGIN)
    radii = [float(q) for q in r * random.uniform(0.7, 1.1, size=int(random.integers(3, 7)))]
    back = [radii[0], *radii[:0:-1]]
    return _loop(x, y, [q + p for q in radii], 1), _loop(x, y, [q - p for q in back], -1)


def _loop(x: float, y: float, radii: list[float], way: int) -> str:
    turn = way * 2 * math.pi / len(radii)
    points = [(x + q * math.cos(k * turn), y + q * math.sin(k * turn)) for k, q in enumerate(radii)]
    reach = (
        4 / 3 * math.tan(turn / 4)
    )  # of the control points: exact to 1e-3 where the radii are equal
    reaches = [
        (-q * reach * math.sin(k * turn), q * reach * math.cos(k * turn))
        for k, q in enumerate(radii)
    ]
    path = f"M{_line(points[:1])}"
    for k in range(len(points)):
        (ax, ay), (bx, by) = points[k], points[(k + 1) % len(points)]
        (ux, uy), (vx, vy) = reaches[k], reaches[(k + 1) % len(points)]
        path += f"C{_line([(ax + ux, ay + uy), (bx - vx, by - vy), (bx, by)])}"
    return f"{path}z"


_PARTS = {"line": _stroke, "ring": _ring, "dot": _dot, "bow": _bow, "frame": _frame, "blob": _blob}
_CLOSED = ("ring", "frame", "blob")
