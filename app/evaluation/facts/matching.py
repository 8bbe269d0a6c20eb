"""Matching: find which figures of a drawing the things of a caption are."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from app.evaluation.facts.figures import Figure
from app.evaluation.facts.judge import (
    judge_figure_colour,
    judge_figure_style,
    judge_place,
    judge_relation,
    judge_shape,
    judge_size,
)
from app.evaluation.facts.phrases import Phrases, Thing
from app.evaluation.facts.picture import Picture
from app.evaluation.facts.verdict import Kind, Verdict

MAX_ASSIGNMENTS = 500  # of things to figures; above, each thing is assigned alone
_SCORES: dict[Verdict, float] = {"right": 1.0, "cannot_tell": 0.5, "wrong": 0.0}
# A colour says which figure is meant, rather than a size, and a size rather than a side.
_WEIGHTS: dict[Kind, float] = {"colour": 1.25, "shape": 1.1, "size": 1.1, "side": 1.0}


@dataclass(frozen=True)
class Match:
    """Figures that a thing may be, by its shape."""

    sure: list[Figure]
    perhaps: list[Figure]

    @property
    def figures(self) -> list[Figure]:
        """Return the sure figures, or the others if there are none."""
        return self.sure or self.perhaps


class Matcher:
    """Figures of each thing that has a shape."""

    def __init__(self, phrases: Phrases, picture: Picture) -> None:
        self.phrases = phrases
        self.picture = picture
        self.matches = {id(t): self._match(t) for t in phrases.things if t.shape}
        self.scores: dict[tuple[int, int], float] = {}
        self.chosen = self._assign()

    def _match(self, thing: Thing) -> Match:
        verdicts = [
            (figure, judge_shape(figure, thing.shape, self.picture))
            for figure in self.picture.figures
        ]
        return Match(
            [figure for figure, verdict in verdicts if verdict == "right"],
            [figure for figure, verdict in verdicts if verdict == "cannot_tell"],
        )

    def _assign(self) -> dict[int, Figure]:
        """Choose the figures with which most statements are right.

        `a circle … a circle` are two figures. A thing for which no figure is left has none.
        """
        things = [t for t in self.phrases.things if t.shape and self.matches[id(t)].figures]
        options: list[list[Figure | None]] = []
        for thing in things:
            figures = self.matches[id(thing)].figures
            options.append([*figures, None] if _is_new(thing) else [*figures])

        if math.prod(map(len, options)) > MAX_ASSIGNMENTS:
            options = [[self._choose_alone(thing)] for thing in things]
        choices = itertools.product(*options)
        best = max(choices, key=lambda choice: self._score_all(things, choice))
        pairs = zip(things, best, strict=True)
        return {id(thing): figure for thing, figure in pairs if figure is not None}

    def _choose_alone(self, thing: Thing) -> Figure:
        return max(self.matches[id(thing)].figures, key=lambda figure: self._score(thing, figure))

    def _score_all(self, things: list[Thing], figures: Sequence[Figure | None]) -> float:
        chosen = {id(t): f for t, f in zip(things, figures, strict=True) if f is not None}
        new = [id(chosen[id(t)]) for t in things if _is_new(t) and id(t) in chosen]
        if len(new) > len(set(new)):
            return -1.0
        total = sum(1 + self._score(t, chosen[id(t)]) for t in things if id(t) in chosen)
        for relation in self.phrases.relations:
            one, two = chosen.get(id(relation.subject)), chosen.get(id(relation.object))
            if one and two:
                total += _SCORES[judge_relation(one, two, relation.side)]
        return total

    def _score(self, thing: Thing, figure: Figure) -> float:
        key = id(thing), id(figure)
        if key not in self.scores:
            judged = self.judge_attributes(thing, figure)
            self.scores[key] = sum(_WEIGHTS[kind] * _SCORES[verdict] for kind, verdict in judged)
        return self.scores[key]

    def judge_attributes(self, thing: Thing, figure: Figure) -> Iterator[tuple[Kind, Verdict]]:
        """Yield the verdict on each attribute of the thing, if it is this figure."""
        for modifier, name in thing.colours:
            yield "colour", judge_figure_colour(figure, name, modifier, thing.style)
        if thing.style:
            yield "shape", judge_figure_style(figure, thing.style)
        if thing.size:
            yield "size", judge_size(figure, thing.size)
        if thing.place:
            yield "side", judge_place(figure.box, thing.place, self.picture)

    def judge_count(self, thing: Thing) -> tuple[Verdict, str]:
        """Return whether the thing's count is right, and the number that was found."""
        match = self.matches[id(thing)]
        if not match.figures:
            return "cannot_tell", f"no {thing.noun} was found"
        sure, perhaps = self._find_fitting(thing)

        # things of one description add up: `one circle, and to the right of it one circle`
        claimed = thing.count or 1
        for other in self.phrases.things:
            is_other = other is not thing and other.shape == thing.shape
            if is_other and other.count and self._find_fitting(other) == (sure, perhaps):
                claimed += other.count

        # A frame around cells may be counted or not.
        num_cells = sum(id(f) in sure and not f.is_frame for f in match.sure)
        low, high = len(sure), len(perhaps)
        found = f"{low} found" if low == high else f"{low} to {high} found"
        is_possible = claimed <= high if thing.is_at_least else low <= claimed <= high
        is_right = low >= claimed if thing.is_at_least else claimed in (low, num_cells)
        if is_right and match.sure:
            return "right", found
        return "cannot_tell" if is_possible or not self.picture.is_complete else "wrong", found

    def _find_fitting(self, thing: Thing) -> tuple[frozenset[int], frozenset[int]]:
        """Return the ids of the figures that fit the description, and of those that may fit."""
        match = self.matches[id(thing)]
        sure, perhaps = match.sure, [*match.sure, *match.perhaps]
        # An attribute that no figure has is wrong by itself, and does not count.
        for attribute in _split_attributes(thing):
            verdicts = {
                id(f): [verdict for _, verdict in self.judge_attributes(attribute, f)]
                for f in perhaps
            }
            fitting = [f for f in perhaps if "wrong" not in verdicts[id(f)]]
            if fitting:
                perhaps = fitting
                sure = [f for f in sure if set(verdicts[id(f)]) == {"right"}]
        return frozenset(map(id, sure)), frozenset(map(id, perhaps))


def _is_new(thing: Thing) -> bool:
    """Return whether a thing is one figure that the caption has not named before."""
    return (thing.count or 1) == 1 and not thing.is_known


def _split_attributes(thing: Thing) -> list[Thing]:
    """Return one thing for each attribute."""
    things = [Thing(colours=[colour], style=thing.style) for colour in thing.colours]
    if thing.size:
        things.append(Thing(size=thing.size))
    if thing.style:
        things.append(Thing(style=thing.style))
    if thing.place:
        things.append(Thing(place=thing.place))
    return things
