"""Procedural scenes with exact captions: shapes, colours, sizes, counts and relations. For learning tests.

A scene is drawn in canonical form (see svg.py). Its concept is the composition (which shapes in which colours),
so that a split by concept holds whole compositions out.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from data_pipeline.sources.record import Record

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
COUNTS = ("one", "two", "three", "four")
Style = Literal["plain", "sentence", "table", "compact", "where", "list"]
BASE_STYLES: tuple[Style, ...] = ("plain", "sentence", "table", "compact", "where")
"""What the shipped base is trained on; `list` is kept from it, for the learning benchmark."""


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


def generate_scenes(num: int, *, seed: int = 0, style: Style = "plain") -> Iterator[Record]:
    """`num` scenes, a pure function of (seed, style); the drawings are the same in every style."""
    for i in range(num):
        yield _scene(i, np.random.default_rng((seed, i)), seed, style)


def _scene(i: int, random: np.random.Generator, seed: int, style: Style) -> Record:
    if random.random() < 0.2:
        thing = _thing(random, count=int(random.integers(1, 5)))
        shapes, caption, things = _group(thing, random), _CAPTIONS[style](thing), [thing]
    else:
        first, second = _thing(random, count=1), _thing(random, count=1)
        relation = str(random.choice(list(RELATIONS)))
        shapes = _related(first, second, relation, random)
        caption, things = _CAPTIONS[style](first, relation, second), [first, second]
    drawing = "".join(shapes)
    composition = "+".join(f"{thing.colour}-{thing.shape}" for thing in things)
    return Record(
        id=f"scene:{seed}:{i}",
        svg=f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 256 256">{drawing}</svg>',
        caption=caption,
        source=f"scenes:{style}",
        concept=composition,
    )


def _plain(first: Thing, relation: str | None = None, second: Thing | None = None) -> str:
    return first.plain() if second is None else f"{first.plain()} {relation} {second.plain()}"


def _sentence(first: Thing, relation: str | None = None, second: Thing | None = None) -> str:
    many = first.count > 1
    begun = f"There {'are' if many else 'is'} {COUNTS[first.count - 1]} {first.shape}{'s' * many}"
    begun += f", {first.colour} and {first.size}"
    if second is None:
        return f"{begun}."
    return f"{begun}, and {_OPPOSITE[_SHORT[str(relation)]]} it one {second.shape}, {second.colour} and {second.size}."


def _table(first: Thing, relation: str | None = None, second: Thing | None = None) -> str:
    things = [first] if second is None else [first, second]
    colours, sizes, shapes = (
        ", ".join(getattr(t, name) for t in things) for name in ("colour", "size", "shape")
    )
    last = f"first {relation} second" if second else f"{first.count} in a row"
    return f"Colours {colours}; sizes {sizes}; shapes {shapes}; {last}"


def _compact(first: Thing, relation: str | None = None, second: Thing | None = None) -> str:
    begun = f"={first.size}/{first.colour}/{first.shape}"
    if second is None:
        return f"{first.count}{begun}"
    return f"{_SHORT[str(relation)]}{begun} other={second.size}/{second.colour}/{second.shape}"


def _where(first: Thing, relation: str | None = None, second: Thing | None = None) -> str:
    """Where the first of two things is, in one word: nothing else helps to say it."""
    return COUNTS[first.count - 1] if second is None else _SHORT[str(relation)]


def _list(first: Thing, relation: str | None = None, second: Thing | None = None) -> str:
    listed = f"Contents: {first.shape} x{first.count} ({first.colour}, {first.size})"
    if second is None:
        return f"{listed}."
    where = _SHORT[str(relation)]
    return f"{listed} at the {where}; {second.shape} x1 ({second.colour}, {second.size}) opposite."


_OPPOSITE = {
    "left": "to the right of",
    "right": "to the left of",
    "top": "below",
    "bottom": "above",
}
_SHORT = {"to the left of": "left", "to the right of": "right", "above": "top", "below": "bottom"}
_CAPTIONS: dict[Style, Callable[..., str]] = {
    "plain": _plain, "sentence": _sentence, "table": _table, "compact": _compact, "where": _where, "list": _list,
}  # fmt: skip


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
    return f"m{x} {y - r} {a} {b} {b} {a} -{b} {a} -{a} {b} -{a} -{b} -{b} -{a} {b} -{a}z".replace(
        " -", "-"
    )
