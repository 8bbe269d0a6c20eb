"""Procedural line drawings in the style of icon fonts, with captions of the pen and the parts.

They train a model to read the pen from an outline. An icon font has no strokes: it draws the two
edges of each line as one filled path, whose round ends are arcs with a radius of half the pen's
width. The drawings contain no icons, only geometry.
"""

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np

from data_pipeline.sources.record import Record

PENS = {"thin": 4, "light": 6, "regular": 8, "bold": 12, "filled": 8, "tinted": 8}
"""Half the pen's width (grid units).

The first part of a filled drawing is solid; that of a tinted drawing lies over a pale copy.
"""
CAPTIONS: tuple[Callable[[str, str], str], ...] = (
    lambda pen, parts: f"a {pen} drawing of {parts}",
    lambda pen, parts: f"{parts}, {pen}",
    lambda pen, parts: f"Pen: {pen}. Parts: {parts}.",
    lambda pen, parts: f"This {pen} picture shows {parts}.",
)
Outline = tuple[str, str]
"""Path data of a part's outer edge and of its inner edge.

The inner edge runs in the opposite direction; it is empty if the part has none.
"""
Point = tuple[float, float]
MARGIN = 16
_SIZE = 256


def generate_line_drawings(num: int, *, seed: int = 0) -> Iterator[Record]:
    """Yield `num` drawings of one to three parts, a pure function of the seed.

    The SVG is not canonical. The concept is made of the pen and the parts, so a split by concept
    holds out whole captions.
    """
    for i in range(num):
        random = np.random.default_rng((seed, i, 1))
        pen = str(random.choice(list(PENS)))
        first_kind = str(random.choice(_CLOSED))
        other_kinds = random.choice(list(_PARTS), size=int(random.integers(0, 3)))
        kinds = [first_kind, *map(str, other_kinds)]

        # draw
        (outer, inner), *others = (_PARTS[kind](random, PENS[pen]) for kind in kinds)
        path = outer + ("" if pen == "filled" else inner) + "".join(map("".join, others))
        body = f'<path d="{path}"/>'
        if pen == "tinted":
            body = f'<path opacity=".2" d="{outer}"/>' + body
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_SIZE} {_SIZE}" '
            f'fill="currentColor">{body}</svg>'
        )

        # describe
        parts = _join_words(list(dict.fromkeys(kinds)))
        caption = CAPTIONS[int(random.integers(len(CAPTIONS)))](pen, parts)
        yield Record(f"lines:{seed}:{i}", svg, caption, "line-drawings", f"{pen} {parts}")


def _join_words(words: list[str]) -> str:
    """Join `a`, `b` and `c` to `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)


def _choose_point(random: np.random.Generator, margin: float) -> Point:
    x, y = random.uniform(MARGIN + margin, _SIZE - MARGIN - margin, size=2)
    return float(x), float(y)


def _draw_line(random: np.random.Generator, half_pen: int) -> Outline:
    """Draw a line of one or two segments with round ends.

    Three quarters of the lines begin at a multiple of 45°, the others at any angle.
    """
    # choose points
    points = [_choose_point(random, half_pen)]
    if random.random() < 0.75:
        angle = math.pi / 4 * int(random.integers(8))
    else:
        angle = random.uniform(0, 2 * math.pi)
    for _ in range(int(random.integers(1, 3))):
        length = random.uniform(20, 110)
        x, y = points[-1]
        points.append((x + length * math.cos(angle), y + length * math.sin(angle)))
        angle += float(random.choice([-1, 1])) * random.uniform(math.pi / 4, 2 * math.pi / 3)

    # draw both sides
    there, back = _offset_polyline(points, half_pen), _offset_polyline(points[::-1], half_pen)
    arc = f"A{half_pen} {half_pen} 0 0 1 "
    return (
        f"M{_format_points(there)}{arc}{_format_points(back[:1])}"
        f"L{_format_points(back[1:])}{arc}{_format_points(there[:1])}z"
    ), ""


def _offset_polyline(points: list[Point], distance: int) -> list[Point]:
    """Move a polyline to its left; a corner moves to the intersection of the moved segments."""
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(points)]
    normals = [
        (distance * y / math.hypot(x, y), -distance * x / math.hypot(x, y)) for x, y in steps
    ]
    moved = [(points[0][0] + normals[0][0], points[0][1] + normals[0][1])]
    for point, before, after in zip(points[1:], normals, normals[1:], strict=False):
        x, y = before[0] + after[0], before[1] + after[1]
        scale = 2 * distance * distance / (x * x + y * y)
        moved.append((point[0] + x * scale, point[1] + y * scale))
    return [*moved, (points[-1][0] + normals[-1][0], points[-1][1] + normals[-1][1])]


def _format_points(points: list[Point]) -> str:
    return " ".join(f"{x:.2f} {y:.2f}" for x, y in points)


def _draw_circle(x: float, y: float, r: float, sweep: int) -> str:
    return (
        f"M{x:.0f} {y - r:.0f}a{r:g} {r:g} 0 1 {sweep} 0 {2 * r:g} "
        f"{r:g} {r:g} 0 0 {sweep} 0-{2 * r:g}z"
    )


def _draw_ring(random: np.random.Generator, half_pen: int) -> Outline:
    r = 4 * int(random.integers(5, 25))
    x, y = _choose_point(random, r + half_pen - MARGIN)
    return _draw_circle(x, y, r + half_pen, 1), _draw_circle(x, y, r - half_pen, 0)


def _draw_dot(random: np.random.Generator, half_pen: int) -> Outline:
    x, y = _choose_point(random, half_pen)
    return _draw_circle(x, y, int(random.integers(8, 17)), int(random.integers(2))), ""


def _draw_bow(random: np.random.Generator, half_pen: int) -> Outline:
    """Draw a part of a ring, with round ends."""
    r = 4 * int(random.integers(5, 20))
    x, y = _choose_point(random, r)
    start, extent = random.uniform(0, 2 * math.pi), random.uniform(0.6, 2.9)
    (a, b), (c, d) = ((math.cos(t), math.sin(t)) for t in (start, start + extent))
    outer, inner = r + half_pen, r - half_pen
    cap = f"A{half_pen} {half_pen} 0 0 1"
    return (
        f"M{x + outer * a:.2f} {y + outer * b:.2f}"
        f"A{outer} {outer} 0 0 1 {x + outer * c:.2f} {y + outer * d:.2f}"
        f"{cap} {x + inner * c:.2f} {y + inner * d:.2f}"
        f"A{inner} {inner} 0 0 0 {x + inner * a:.2f} {y + inner * b:.2f}"
        f"{cap} {x + outer * a:.2f} {y + outer * b:.2f}z"
    ), ""


def _draw_frame(random: np.random.Generator, half_pen: int) -> Outline:
    """Draw a rectangular frame; `c` is the corner radius of the middle of its line."""
    p = half_pen
    w, h = (8 * int(n) for n in random.integers(6, 26, size=2))
    x, y = (int(random.integers(p + 8, 248 - p - side)) for side in (w, h))
    c = int(random.choice([0, 8, 8, 16, 24]))
    outer = _draw_rectangle(x - p, y - p, w + 2 * p, h + 2 * p, c + p if c else 0, clockwise=True)
    inner = _draw_rectangle(x + p, y + p, w - 2 * p, h - 2 * p, max(c - p, 0), clockwise=False)
    return outer, inner


def _draw_rectangle(x: int, y: int, w: int, h: int, c: int, *, clockwise: bool) -> str:
    """Return the path of a rectangle with corner radius `c`; square corners if it has no room."""
    across, down = w - 2 * c, h - 2 * c
    if across <= 0 or down <= 0 or not c:
        sides = f"h{w}v{h}h-{w}z" if clockwise else f"v{h}h{w}v-{h}z"
        return f"M{x} {y}{sides}"

    corner = f"a{c} {c} 0 0 {int(clockwise)} "
    if clockwise:
        return (
            f"M{x + c} {y}h{across}{corner}{c} {c}v{down}{corner}-{c} {c}"
            f"h-{across}{corner}-{c}-{c}v-{down}{corner}{c}-{c}z"
        )
    return (
        f"M{x + c} {y}{corner}-{c} {c}v{down}{corner}{c} {c}"
        f"h{across}{corner}{c}-{c}v-{down}{corner}-{c}-{c}z"
    )


def _draw_blob(random: np.random.Generator, half_pen: int) -> Outline:
    """Draw a closed curve around a centre; the inner edge is the same curve, smaller by the pen."""
    r = random.uniform(28, 80)
    x, y = _choose_point(random, r - MARGIN)
    radii = [float(q) for q in r * random.uniform(0.7, 1.1, size=int(random.integers(3, 7)))]
    reversed_radii = [radii[0], *radii[:0:-1]]
    outer = _draw_loop(x, y, [q + half_pen for q in radii], 1)
    inner = _draw_loop(x, y, [q - half_pen for q in reversed_radii], -1)
    return outer, inner


def _draw_loop(x: float, y: float, radii: list[float], direction: int) -> str:
    """Return a smooth path through points around (x, y), one at each radius.

    `direction` is 1 for clockwise and -1 for counterclockwise.
    """
    turn = direction * 2 * math.pi / len(radii)
    points = [(x + q * math.cos(k * turn), y + q * math.sin(k * turn)) for k, q in enumerate(radii)]

    # control points: exact to 1e-3 where the radii are equal
    reach = 4 / 3 * math.tan(turn / 4)
    tangents = [
        (-q * reach * math.sin(k * turn), q * reach * math.cos(k * turn))
        for k, q in enumerate(radii)
    ]

    path = f"M{_format_points(points[:1])}"
    for k in range(len(points)):
        (ax, ay), (bx, by) = points[k], points[(k + 1) % len(points)]
        (ux, uy), (vx, vy) = tangents[k], tangents[(k + 1) % len(points)]
        path += f"C{_format_points([(ax + ux, ay + uy), (bx - vx, by - vy), (bx, by)])}"
    return f"{path}z"


_PARTS = {
    "line": _draw_line,
    "ring": _draw_ring,
    "dot": _draw_dot,
    "bow": _draw_bow,
    "frame": _draw_frame,
    "blob": _draw_blob,
}
_CLOSED = ("ring", "frame", "blob")
