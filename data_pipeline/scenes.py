"""Procedural scenes with exact captions: shapes, colours, sizes, counts and relations. For learning tests.

A scene is drawn in canonical form (see svg.py). Its concept is the composition (which shapes in which colours),
so that a split by concept holds whole compositions out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from data_pipeline.rows import Row

SHAPES = ("circle", "square", "triangle", "diamond", "star", "ring")
COLOURS = {
    "red": "#d22", "green": "#2a4", "blue": "#24d", "yellow": "#fc2",
    "purple": "#82c", "orange": "#f80", "black": "#111", "gray": "#999",
}  # fmt: skip
SIZES = {"small": (14, 20), "medium": (28, 36), "large": (46, 56)}
"""Half the width of a shape (grid units of 256), inclusive."""
RELATIONS = {
    "to the left of": (-1, 0),
    "to the right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}
PENS = {"thin": 4, "light": 6, "regular": 8, "bold": 12, "filled": 8, "tinted": 8}
"""Half the width of a line drawing's pen (grid units)."""
COUNTS = ("one", "two", "three", "four")
Style = Literal["plain", "list"]


@dataclass(frozen=True)
class Thing:
    """One kind of shape in a scene, drawn `count` times."""

    shape: str
    colour: str
    size: str
    count: int

    def plain(self) -> str:
        """`a small red circle` or `three small red circles`."""
        if self.count == 1:
            return f"a {self.size} {self.colour} {self.shape}"
        return f"{COUNTS[self.count - 1]} {self.size} {self.colour} {self.shape}s"


def scenes(num: int, *, seed: int = 0, style: Style = "plain") -> Iterator[Row]:
    """`num` scenes, a pure function of (seed, style); the drawings are the same in every style."""
    for i in range(num):
        yield _scene(i, np.random.default_rng((seed, i)), seed, style)


def line_drawings(num: int, *, seed: int = 0) -> Iterator[Row]:
    """`num` drawings of lines, rings and frames, outlined with one pen as icon fonts are, or filled.

    `a thin drawing of two lines and a ring`: what there is to learn is to read the pen off the outlines' arcs.
    """
    for i in range(num):
        random = np.random.default_rng((seed, i, 1))
        pen = str(random.choice(list(PENS)))
        kinds = [str(kind) for kind in random.choice(list(_OUTLINES), size=int(random.integers(1, 4)))]
        parts = [_OUTLINES[kind](random, PENS[pen]) for kind in kinds]
        filled, outlined = "".join(part[0] for part in parts), "".join(part[0] + part[1] for part in parts)
        body = f'<path d="{filled if pen == "filled" else outlined}"/>'
        if pen == "tinted":
            body = f'<path opacity=".2" d="{filled}"/>{body}'
        named = [f"{'a' if kinds.count(k) == 1 else COUNTS[kinds.count(k) - 1]} {k}{'s' * (kinds.count(k) > 1)}"
                 for k in dict.fromkeys(kinds)]  # fmt: skip
        caption = f"a {pen} drawing of {' and '.join(named)}"
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 256 256" fill="currentColor">{body}</svg>'
        yield Row(f"lines:{seed}:{i}", svg, caption, "line-drawings", caption)


def _line(random: np.random.Generator, p: int) -> tuple[str, str]:
    x, y, length = (int(random.integers(16, 120)) for _ in range(3))
    if random.random() < 0.5:
        return f"M{x} {y}h{length}a{p} {p} 0 0 1 0 {2 * p}h-{length}a{p} {p} 0 0 1 0-{2 * p}z", ""
    return f"M{x} {y}a{p} {p} 0 0 1 {2 * p} 0v{length}a{p} {p} 0 0 1-{2 * p} 0z", ""


def _ring(random: np.random.Generator, p: int) -> tuple[str, str]:
    r = int(random.integers(30, 90))
    x, y = (int(n) for n in random.integers(r + p, 257 - r - p, size=2))
    o, i = r + p, r - p
    outer = f"M{x} {y - o}a{o} {o} 0 1 0 {o} {o} {o} {o} 0 0 0-{o}-{o}z"
    return outer, f"m0 {2 * p}a{i} {i} 0 1 1-{i} {i} {i} {i} 0 0 1 {i}-{i}z"


def _frame(random: np.random.Generator, p: int) -> tuple[str, str]:
    w, h = (int(n) for n in random.integers(40, 120, size=2))
    x, y = int(random.integers(24, 232 - w)), int(random.integers(24, 232 - h))
    c = 2 * p
    outer = (f"M{x + c} {y}h{w - 2 * c}a{c} {c} 0 0 1 {c} {c}v{h - 2 * c}a{c} {c} 0 0 1-{c} {c}h-{w - 2 * c}"
             f"a{c} {c} 0 0 1-{c}-{c}v-{h - 2 * c}a{c} {c} 0 0 1 {c}-{c}z") if min(w, h) > 2 * c else (
             f"M{x} {y}h{w}v{h}h-{w}z")  # fmt: skip
    return outer, f"M{x + c} {y + c}v{max(h - 2 * c, 2)}h{max(w - 2 * c, 2)}v-{max(h - 2 * c, 2)}z"


_OUTLINES = {"line": _line, "ring": _ring, "frame": _frame}


def _scene(i: int, random: np.random.Generator, seed: int, style: Style) -> Row:
    if random.random() < 0.2:
        thing = _thing(random, count=int(random.integers(1, 5)))
        shapes, caption, things = _group(thing, random), _describe(style, thing), [thing]
    else:
        first, second = _thing(random, count=1), _thing(random, count=1)
        relation = str(random.choice(list(RELATIONS)))
        shapes = _related(first, second, relation, random)
        caption, things = _describe(style, first, relation, second), [first, second]
    drawing = "".join(shapes)
    composition = "+".join(f"{thing.colour}-{thing.shape}" for thing in things)
    return Row(
        id=f"scene:{seed}:{i}",
        svg=f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 256 256">{drawing}</svg>',
        caption=caption,
        source=f"scenes:{style}",
        concept=composition,
    )


def _describe(style: Style, first: Thing, relation: str | None = None, second: Thing | None = None) -> str:
    if style == "plain":
        return first.plain() if second is None else f"{first.plain()} {relation} {second.plain()}"
    listed = f"{first.shape} x{first.count} ({first.colour}, {first.size})"
    if second is None:
        return f"Contents: {listed}."
    where = {"to the left of": "left", "to the right of": "right", "above": "top", "below": "bottom"}[str(relation)]
    return f"Contents: {listed} at the {where}; {second.shape} x1 ({second.colour}, {second.size}) opposite."


def _thing(random: np.random.Generator, *, count: int) -> Thing:
    sizes = list(SIZES) if count <= 2 else ["small", "medium"]
    return Thing(
        shape=str(random.choice(SHAPES)),
        colour=str(random.choice(list(COLOURS))),
        size=str(random.choice(sizes)),
        count=count,
    )


def _group(thing: Thing, random: np.random.Generator) -> list[str]:
    """A row of equal shapes, each in its own cell, so that none overlap."""
    cell = 256 // thing.count
    radius = min(_radius(thing, random), cell // 2 - 2)
    y = int(random.integers(radius, 257 - radius))
    return [_draw(thing, k * cell + cell // 2, y, radius) for k in range(thing.count)]


def _related(first: Thing, second: Thing, relation: str, random: np.random.Generator) -> list[str]:
    """The first thing in one half of the drawing, the second in the other; across, both near the middle."""
    r1, r2 = _radius(first, random), _radius(second, random)
    side = sum(RELATIONS[relation])  # -1: the first thing has the lower coordinate
    mine = 128 + side * 64 + _jitter(62 - r1, random)
    other = 128 - side * 64 + _jitter(62 - r2, random)
    across, drifted = 128 + _jitter(24, random), 128 + _jitter(24, random)
    if RELATIONS[relation][0]:
        return [_draw(first, mine, across, r1), _draw(second, other, drifted, r2)]
    return [_draw(first, across, mine, r1), _draw(second, drifted, other, r2)]


def _jitter(reach: int, random: np.random.Generator) -> int:
    return int(random.integers(-reach, reach + 1))


def _radius(thing: Thing, random: np.random.Generator) -> int:
    low, high = SIZES[thing.size]
    return int(random.integers(low, high + 1))


def _draw(thing: Thing, x: int, y: int, r: int) -> str:
    colour = COLOURS[thing.colour]
    if thing.shape == "circle":
        return f'<circle cx="{x}" cy="{y}" r="{r}" fill="{colour}"/>'
    if thing.shape == "ring":
        return f'<circle cx="{x}" cy="{y}" r="{r - 3}" fill="none" stroke="{colour}" stroke-width="6"/>'
    if thing.shape == "square":
        return f'<rect x="{x - r}" y="{y - r}" width="{2 * r}" height="{2 * r}" fill="{colour}"/>'
    return f'<path fill="{colour}" d="{_outline(thing.shape, x, y, r)}"/>'


def _outline(shape: str, x: int, y: int, r: int) -> str:
    """Relative path of a shape that is centred on (x, y) and 2r wide and high."""
    if shape == "triangle":
        return f"m{x} {y - r} {r} {2 * r}h-{2 * r}z"
    if shape == "diamond":
        return f"m{x} {y - r} {r} {r} -{r} {r} -{r} -{r}z".replace(" -", "-")
    a, b = r // 3, r - r // 3  # a four-pointed star: inner corners at (±a, ±a)
    return f"m{x} {y - r} {a} {b} {b} {a} -{b} {a} -{a} {b} -{a} -{b} -{b} -{a} {b} -{a}z".replace(" -", "-")
