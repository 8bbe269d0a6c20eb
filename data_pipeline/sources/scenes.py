"""Procedural scenes with exact captions: shapes, colours, sizes, counts and relations.

They are for tests of learning. A scene is drawn in canonical form (see `data_pipeline.svg`). Its
concept is the composition (shapes and their colours), so a split by concept holds out whole
compositions.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.sources.record import Record

SHAPES = ("circle", "square", "triangle", "diamond", "star", "ring")
COLOURS = {
    "red": "#d22",
    "green": "#2a4",
    "blue": "#24d",
    "yellow": "#fc2",
    "purple": "#82c",
    "orange": "#f80",
    "black": "#111",
    "gray": "#999",
}
SIZES = {"small": (14, 20), "medium": (28, 36), "large": (46, 56)}
"""Half the width of a shape (grid units of 256), inclusive."""
RELATIONS = {
    "to the left of": (-1, 0),
    "to the right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}
"""Direction from the second shape to the first, as (x, y)."""
COUNTS = ("one", "two", "three", "four")
Style = Literal["plain", "sentence", "table", "compact", "where", "list"]
BASE_STYLES: tuple[Style, ...] = ("plain", "sentence", "table", "compact", "where")
"""Styles that the shipped base model is trained on; `list` is kept for the learning benchmark."""


@dataclass(frozen=True)
class Thing:
    """One kind of shape in a scene, drawn `count` times."""

    shape: str
    colour: str
    size: str
    count: int

    def describe(self) -> str:
        """Return `a small red circle` or `three small red circles`."""
        if self.count == 1:
            return f"a {self.size} {self.colour} {self.shape}"
        return f"{COUNTS[self.count - 1]} {self.size} {self.colour} {self.shape}s"


def read_scenes(spec: str) -> Iterator[Record]:
    """Yield the scenes of `scenes:N`, `scenes:N:SEED` or `scenes:N:SEED:STYLE`.

    STYLE is `plain` (the default) or `list`. Raises DataError for any other `spec`.
    """
    parts = re.fullmatch(r"scenes:(\d+)(?::(\d+))?(?::(plain|list))?", spec)
    if not parts:
        raise DataError(
            f"source {spec!r}: write scenes:N, scenes:N:SEED or scenes:N:SEED:STYLE (plain or list)"
        )
    style: Style = "list" if parts[3] == "list" else "plain"
    return generate_scenes(int(parts[1]), seed=int(parts[2] or 0), style=style)


def generate_scenes(num: int, *, seed: int = 0, style: Style = "plain") -> Iterator[Record]:
    """Yield `num` scenes, a pure function of (seed, style).

    The drawings are the same in every style.
    """
    for i in range(num):
        yield _make_scene(i, np.random.default_rng((seed, i)), seed, style)


def _make_scene(i: int, random: np.random.Generator, seed: int, style: Style) -> Record:
    describe = _DESCRIBE[style]

    if random.random() < 0.2:
        thing = _choose_thing(random, count=int(random.integers(1, 5)))
        things = [thing]
        drawing = _draw_group(thing, random)
        caption = describe(thing)
    else:
        first, second = _choose_thing(random, count=1), _choose_thing(random, count=1)
        things = [first, second]
        relation = str(random.choice(list(RELATIONS)))
        drawing = _draw_related(first, second, relation, random)
        caption = describe(first, relation, second)

    return Record(
        id=f"scene:{seed}:{i}",
        svg=f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 256 256">{drawing}</svg>',
        caption=caption,
        source=f"scenes:{style}",
        concept="+".join(f"{thing.colour}-{thing.shape}" for thing in things),
    )


def _describe_plain(first: Thing, relation: str | None = None, second: Thing | None = None) -> str:
    if second is None:
        return first.describe()
    return f"{first.describe()} {relation} {second.describe()}"


def _describe_in_sentence(
    first: Thing, relation: str | None = None, second: Thing | None = None
) -> str:
    is_plural = first.count > 1
    verb, plural = ("are", "s") if is_plural else ("is", "")
    begin = f"There {verb} {COUNTS[first.count - 1]} {first.shape}{plural}"
    begin += f", {first.colour} and {first.size}"
    if second is None:
        return f"{begin}."
    opposite = _OPPOSITE[_SHORT[str(relation)]]
    return f"{begin}, and {opposite} it one {second.shape}, {second.colour} and {second.size}."


def _describe_in_table(
    first: Thing, relation: str | None = None, second: Thing | None = None
) -> str:
    things = [first] if second is None else [first, second]
    colours = ", ".join(thing.colour for thing in things)
    sizes = ", ".join(thing.size for thing in things)
    shapes = ", ".join(thing.shape for thing in things)
    layout = f"first {relation} second" if second else f"{first.count} in a row"
    return f"Colours {colours}; sizes {sizes}; shapes {shapes}; {layout}"


def _describe_compactly(
    first: Thing, relation: str | None = None, second: Thing | None = None
) -> str:
    begin = f"={first.size}/{first.colour}/{first.shape}"
    if second is None:
        return f"{first.count}{begin}"
    return f"{_SHORT[str(relation)]}{begin} other={second.size}/{second.colour}/{second.shape}"


def _describe_where(first: Thing, relation: str | None = None, second: Thing | None = None) -> str:
    """Return the position of the first of two things in one word, or the count of one thing.

    Only the drawing's coordinates give this word; no other word of the caption helps.
    """
    return COUNTS[first.count - 1] if second is None else _SHORT[str(relation)]


def _describe_in_list(
    first: Thing, relation: str | None = None, second: Thing | None = None
) -> str:
    begin = f"Contents: {first.shape} x{first.count} ({first.colour}, {first.size})"
    if second is None:
        return f"{begin}."
    side = _SHORT[str(relation)]
    return f"{begin} at the {side}; {second.shape} x1 ({second.colour}, {second.size}) opposite."


_OPPOSITE = {
    "left": "to the right of",
    "right": "to the left of",
    "top": "below",
    "bottom": "above",
}
_SHORT = {"to the left of": "left", "to the right of": "right", "above": "top", "below": "bottom"}
_DESCRIBE: dict[Style, Callable[..., str]] = {
    "plain": _describe_plain,
    "sentence": _describe_in_sentence,
    "table": _describe_in_table,
    "compact": _describe_compactly,
    "where": _describe_where,
    "list": _describe_in_list,
}


def _choose_thing(random: np.random.Generator, *, count: int) -> Thing:
    sizes = list(SIZES) if count <= 2 else ["small", "medium"]
    return Thing(
        shape=str(random.choice(SHAPES)),
        colour=str(random.choice(list(COLOURS))),
        size=str(random.choice(sizes)),
        count=count,
    )


def _draw_group(thing: Thing, random: np.random.Generator) -> str:
    """Draw equal shapes side by side, each in a cell of its own, so that none overlap."""
    cell = 256 // thing.count
    radius = min(_choose_radius(thing, random), cell // 2 - 2)
    y = int(random.integers(radius, 257 - radius))
    centres = [k * cell + cell // 2 for k in range(thing.count)]
    return "".join(_draw_shape(thing, x, y, radius) for x in centres)


def _draw_related(first: Thing, second: Thing, relation: str, random: np.random.Generator) -> str:
    """Draw the two things in opposite halves, both near the middle in the other direction."""
    r1, r2 = _choose_radius(first, random), _choose_radius(second, random)
    side = sum(RELATIONS[relation])  # -1: the first thing has the lower coordinate
    along1 = 128 + side * 64 + _choose_shift(62 - r1, random)
    along2 = 128 - side * 64 + _choose_shift(62 - r2, random)
    across1, across2 = 128 + _choose_shift(24, random), 128 + _choose_shift(24, random)
    if RELATIONS[relation][0]:
        return _draw_shape(first, along1, across1, r1) + _draw_shape(second, along2, across2, r2)
    return _draw_shape(first, across1, along1, r1) + _draw_shape(second, across2, along2, r2)


def _choose_shift(limit: int, random: np.random.Generator) -> int:
    return int(random.integers(-limit, limit + 1))


def _choose_radius(thing: Thing, random: np.random.Generator) -> int:
    low, high = SIZES[thing.size]
    return int(random.integers(low, high + 1))


def _draw_shape(thing: Thing, x: int, y: int, r: int) -> str:
    colour = COLOURS[thing.colour]
    if thing.shape == "circle":
        return f'<circle cx="{x}" cy="{y}" r="{r}" fill="{colour}"/>'
    if thing.shape == "ring":
        stroke = f'fill="none" stroke="{colour}" stroke-width="6"'
        return f'<circle cx="{x}" cy="{y}" r="{r - 3}" {stroke}/>'
    if thing.shape == "square":
        return f'<rect x="{x - r}" y="{y - r}" width="{2 * r}" height="{2 * r}" fill="{colour}"/>'
    return f'<path fill="{colour}" d="{_draw_outline(thing.shape, x, y, r)}"/>'


def _draw_outline(shape: str, x: int, y: int, r: int) -> str:
    """Return the relative path of a shape that is centred on (x, y) and 2r wide and high."""
    if shape == "triangle":
        return f"m{x} {y - r} {r} {2 * r}h-{2 * r}z"
    if shape == "diamond":
        return f"m{x} {y - r} {r} {r} -{r} {r} -{r} -{r}z".replace(" -", "-")
    a, b = r // 3, r - r // 3  # a four-pointed star: inner corners at (±a, ±a)
    path = f"m{x} {y - r} {a} {b} {b} {a} -{b} {a} -{a} {b} -{a} -{b} -{b} -{a} {b} -{a}z"
    return path.replace(" -", "-")
