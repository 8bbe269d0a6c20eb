"""Salient facts of a drawing: those that a full caption would name."""

from collections import defaultdict
from dataclasses import dataclass

from app.evaluation.facts.figures import Figure
from app.evaluation.facts.judge import SIZES, judge_relation, judge_shape, judge_size
from app.evaluation.facts.palette import RGB, name_colour
from app.evaluation.facts.picture import Picture
from app.evaluation.facts.verdict import Kind
from app.evaluation.facts.words import SHAPES

MIN_SHARE = 0.15  # of the painted area, of a salient colour
MAX_GROUPS = 3  # kinds of figures in a drawing that is made of figures
MIN_COVERED = 0.85  # share of the painted area inside the boxes of the figures
_NAMED = frozenset(SHAPES.values()) - {"dot", "pill"}


# Any right word on a side names the fact: `left`, or `top right` of the page.
_SIDES = "left right above below inside top bottom centre"
_CORNERS = ("top left", "top right", "bottom left", "bottom right")
SIDE_WORDS = frozenset((*_SIDES.split(), *_CORNERS))


@dataclass(frozen=True)
class Fact:
    """One salient fact."""

    kind: Kind
    words: frozenset[str]
    """Words of the vocabulary, each of which names the fact."""
    text: str


@dataclass
class _Group:
    """Figures of one shape, colour and size."""

    shapes: frozenset[str]
    colours: frozenset[str]
    sizes: frozenset[str]
    figures: list[Figure]


def list_facts(picture: Picture) -> list[Fact]:
    """Return the salient facts.

    They are the large colours. Of a drawing that consists of a few simple figures, they are also
    the shapes, numbers, sizes, and the side on which one of two figures is.
    """
    facts = _list_colours(picture) if picture.is_coloured else []
    groups = _group_figures(picture)
    if not groups:
        return facts

    for group in groups:
        name = "/".join(sorted(group.shapes))
        facts.append(Fact("shape", group.shapes, name))
        if group.sizes:
            facts.append(Fact("size", group.sizes, f"{'/'.join(sorted(group.sizes))} {name}"))
        if len(group.figures) > 1:
            number = str(len(group.figures))
            facts.append(Fact("count", frozenset((number,)), f"{number} {name}"))
    if [len(group.figures) for group in groups] == [1, 1]:
        facts += _list_sides(groups[0], groups[1])
    return facts


def _list_colours(picture: Picture) -> list[Fact]:
    shares: defaultdict[frozenset[str], float] = defaultdict(float)
    for colour, share in picture.colours:
        shares[_name(colour)] += share
    if picture.has_background:
        shares[_name(picture.background)] += 1.0
    return [
        Fact("colour", names, "/".join(sorted(names)))
        for names, share in shares.items()
        if share >= MIN_SHARE and names
    ]


def _name(colour: RGB) -> frozenset[str]:
    return frozenset(name for name, verdict in name_colour(colour).items() if verdict == "right")


def _group_figures(picture: Picture) -> list[_Group]:
    """Return the figures by shape, colour and size, or none if the drawing shows other things."""
    groups: dict[tuple[frozenset[str], ...], _Group] = {}
    for figure in picture.figures:
        shapes = frozenset(n for n in _NAMED if judge_shape(figure, n, picture) == "right")
        colours = frozenset().union(*(_name(colour) for colour in figure.fills or figure.pens))
        sizes = frozenset(size for size in SIZES if judge_size(figure, size) == "right")
        if not shapes:
            return []
        key = (shapes, colours, sizes)
        groups.setdefault(key, _Group(shapes, colours, sizes, [])).figures.append(figure)

    is_simple = 0 < len(groups) <= MAX_GROUPS and picture.covered >= MIN_COVERED
    return list(groups.values()) if is_simple else []


def _list_sides(one: _Group, other: _Group) -> list[Fact]:
    sides = [
        side
        for side in ("left", "right", "above", "below", "inside")
        for first, second in ((one, other), (other, one))
        if judge_relation(first.figures[0], second.figures[0], side) == "right"
    ]
    text = f"{'/'.join(sorted(one.shapes))} and {'/'.join(sorted(other.shapes))}"
    return [Fact("side", SIDE_WORDS, f"{text}: {'/'.join(sides)}")] if sides else []
