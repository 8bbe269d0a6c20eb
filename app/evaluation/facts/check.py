"""Claims: find which figures the things of a caption are, and judge each statement on them."""

from collections.abc import Iterator
from dataclasses import replace

from app.evaluation.facts.figures import Figure
from app.evaluation.facts.judge import (
    judge_drawing_colour,
    judge_drawing_style,
    judge_figure_colour,
    judge_figure_style,
    judge_monochrome,
    judge_pen,
    judge_place,
    judge_relation,
    judge_size,
)
from app.evaluation.facts.matching import Match, Matcher
from app.evaluation.facts.palette import SYNONYMS, encode_colour, judge_colour
from app.evaluation.facts.phrases import Phrases, Relation, Thing, parse_caption
from app.evaluation.facts.picture import Picture, read_picture
from app.evaluation.facts.verdict import Claim, Kind, Verdict, choose_best
from data_pipeline.svg import GRID


def check_claims(caption: str, svg: str) -> list[Claim]:
    """Return every claim that the caption makes on colours, counts, shapes, sides and sizes.

    The verdicts follow from the drawing alone. Raises SVGRefused if the drawing is no valid SVG.
    """
    return check_phrases(parse_caption(caption), read_picture(svg))


def check_phrases(phrases: Phrases, picture: Picture) -> list[Claim]:
    """Return the claims of a parsed caption."""
    checker = _Checker(phrases, picture)
    claims = [claim for thing in phrases.things for claim in checker.check_thing(thing)]
    claims += [checker.check_relation(relation) for relation in phrases.relations]
    return claims + list(_check_drawing(phrases, picture))


class _Checker:
    def __init__(self, phrases: Phrases, picture: Picture) -> None:
        self.picture = picture
        self.matcher = Matcher(phrases, picture)

    def check_thing(self, thing: Thing) -> Iterator[Claim]:
        """Yield the claims of one noun phrase."""
        for claim in self._check_figures(thing) if thing.shape else self._check_noun(thing):
            if thing.is_doubtful:
                claim = replace(claim, verdict="cannot_tell", reason="the caption is not sure")
            yield claim

    def _check_figures(self, thing: Thing) -> Iterator[Claim]:
        noun, figure = thing.noun, self.matcher.chosen.get(id(thing))
        presence = self._judge_presence(self.matcher.matches[id(thing)], figure)
        yield Claim("shape", noun, *presence, thing.shape)
        if thing.count is not None:
            text = f"{thing.count_text} {noun}".replace("plural", "more than one")
            yield Claim("count", text, *self.matcher.judge_count(thing), str(thing.count))

        for modifier, name in thing.colours:
            text = f"{modifier} {name} {noun}".strip()
            if figure is None:
                found = judge_drawing_colour(self.picture, name, modifier)
            else:
                figures = [figure]
                if (thing.count or 1) > 1 and len(thing.colours) > 1:
                    figures = self.matcher.matches[id(thing)].figures  # `red and white circles`
                verdict = choose_best(
                    judge_figure_colour(f, name, modifier, thing.style) for f in figures
                )
                found = verdict, _describe_colours(figure)
            yield Claim("colour", text, *found, SYNONYMS.get(name, name))
        words: dict[Kind, str] = {"shape": thing.style, "size": thing.size, "side": thing.place}
        for kind, word in words.items():
            if word:
                verdict, reason = self._judge_word(kind, word, noun, figure)
                yield Claim(kind, f"{word} {noun}", verdict, reason, word)

    def _judge_word(
        self, kind: Kind, word: str, noun: str, figure: Figure | None
    ) -> tuple[Verdict, str]:
        if figure is None:
            return "cannot_tell", f"no {noun} was found"
        if kind == "shape":
            style = "outlined" if figure.is_outlined else "filled"
            return judge_figure_style(figure, word), style
        if kind == "size":
            return judge_size(figure, word), f"{figure.extent / GRID:.0%} of the page"
        centre = f"centre at {figure.centre.real:.0f}, {figure.centre.imag:.0f}"
        return judge_place(figure.box, word, self.picture), centre

    def _judge_presence(self, match: Match, figure: Figure | None) -> tuple[Verdict, str]:
        if match.sure and (figure is not None or match.perhaps):
            return ("right" if figure else "cannot_tell"), f"{len(match.sure)} found"
        if match.sure:
            return "wrong", f"only {len(match.sure)} found"
        if match.perhaps:
            return "cannot_tell", f"{len(match.perhaps)} outlines are nearly so"
        if not self.picture.is_complete:
            return "cannot_tell", "a part of the drawing was not read"
        return "wrong", "none found"

    def _check_noun(self, thing: Thing) -> Iterator[Claim]:
        """Yield the claims on a thing without a known shape: only its colours can be checked."""
        noun = thing.noun or "drawing"
        for modifier, name in thing.colours:
            text = f"{modifier} {name} {thing.noun}".strip()
            found = judge_drawing_colour(self.picture, name, modifier)
            yield Claim("colour", text, *found, SYNONYMS.get(name, name))
        if thing.style:
            verdict = judge_drawing_style(self.picture, thing.style)
            pen = _describe_pen(self.picture)
            yield Claim("shape", f"{thing.style} {noun}", verdict, pen, thing.style)
        reason = f"the drawing does not say which part is the {noun}"
        if thing.count is not None:
            text = f"{thing.count_text} {noun}"
            yield Claim("count", text, "cannot_tell", reason, str(thing.count))
        if thing.size:
            yield Claim("size", f"{thing.size} {noun}", "cannot_tell", reason, thing.size)
        if thing.place:
            found = self._judge_region(thing, reason)
            yield Claim("side", f"{thing.place} {noun}", *found, thing.place)

    def _judge_region(self, thing: Thing, reason: str) -> tuple[Verdict, str]:
        """Return whether everything of the thing's colour lies in the place."""
        verdicts: set[Verdict] = set()
        for modifier, name in thing.colours:
            for colour, box in self.picture.regions.items():
                if judge_colour(colour, name, modifier) == "right":
                    verdicts.add(judge_place(box, thing.place, self.picture))
        if len(verdicts) == 1:
            return verdicts.pop(), "box of everything of this colour"
        return "cannot_tell", reason

    def check_relation(self, relation: Relation) -> Claim:
        """Return the claim that one thing is left of, right of, above, below or inside another."""
        text = f"{relation.subject.noun or 'drawing'} {relation.side} {relation.object.noun}"
        chosen = self.matcher.chosen
        one, two = chosen.get(id(relation.subject)), chosen.get(id(relation.object))
        is_doubtful = relation.subject.is_doubtful or relation.object.is_doubtful
        if one is None or two is None or is_doubtful:
            return Claim("side", text, "cannot_tell", "one was not found", relation.side)
        boxes = " and ".join(", ".join(f"{side:.0f}" for side in f.box) for f in (one, two))
        verdict = judge_relation(one, two, relation.side)
        return Claim("side", text, verdict, f"boxes {boxes}", relation.side)


def _check_drawing(phrases: Phrases, picture: Picture) -> Iterator[Claim]:
    if phrases.is_monochrome:
        yield Claim("colour", "black and white", *judge_monochrome(picture), "black")
    for text, width in phrases.pens:
        verdict, reason = judge_pen(picture, width), _describe_pen(picture)
        if width:
            yield Claim("size", f"{text}: {width}", verdict, reason, width)
        else:
            yield Claim("shape", text, verdict, reason, "outlined")


def _describe_pen(picture: Picture) -> str:
    return f"the paint is {picture.thickness:.0f} units wide in the mean"


def _describe_colours(figure: Figure) -> str:
    parts = []
    for name, colours in (("fill", figure.fills), ("outline", figure.pens)):
        if colours:
            texts = [f"#{encode_colour(colour):06x}" for colour in colours]
            parts.append(f"{name} {', '.join(dict.fromkeys(texts))}")
    return "; ".join(parts)
