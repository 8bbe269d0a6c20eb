"""Verdicts on the claims of a caption."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["colour", "count", "shape", "side", "size"]
KINDS: tuple[Kind, ...] = ("colour", "count", "shape", "side", "size")
Verdict = Literal["right", "wrong", "cannot_tell"]


@dataclass(frozen=True)
class Claim:
    """One statement of a caption about the drawing, and the verdict on it."""

    kind: Kind
    text: str
    """Words of the claim, such as `red circle`."""
    verdict: Verdict
    reason: str
    """Finding in the drawing that the verdict rests on."""
    word: str
    """Word of the vocabulary that the claim uses, such as `red`, `circle` or `3`."""


def choose_best(verdicts: Iterable[Verdict]) -> Verdict:
    """Return `right` if one is right, else `cannot_tell` if one is so, else `wrong`."""
    found = set(verdicts)
    if "right" in found:
        return "right"
    return "cannot_tell" if "cannot_tell" in found else "wrong"


def judge_number(value: float, low: float, high: float) -> Verdict:
    """Return `right` from `high` up, `wrong` below `low`, and `cannot_tell` between."""
    if value >= high:
        return "right"
    return "cannot_tell" if value >= low else "wrong"
