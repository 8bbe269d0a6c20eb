"""Which rows are kept and on which side, decided once all are known. Knows hashes, no rows."""

from array import array
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from data_pipeline.sources.record import stable_hash


@dataclass
class Fingerprints:
    """What is remembered of each cleaned row, in reading order: 27 bytes."""

    content: "array[int]" = field(default_factory=lambda: array("Q"))
    drawing: "array[int]" = field(default_factory=lambda: array("Q"))
    concept: "array[int]" = field(default_factory=lambda: array("Q"))
    validation: "array[int]" = field(default_factory=lambda: array("b"))
    tells: "array[int]" = field(default_factory=lambda: array("b"))

    def __len__(self) -> int:
        return len(self.content)


@dataclass(frozen=True)
class SplitDecision:
    """bool [num_rows] each, in reading order."""

    kept: Any
    validation: Any
    num_moved: int  # rows whose concept was for validation, but is tied to training by a drawing


def decide_splits(rows: Fingerprints) -> SplitDecision:
    """Keep the first of equal contents, and let no concept and no drawing straddle the splits.

    A validation concept one of whose drawings also stands in a training concept moves to training as a whole,
    and so on from there: nothing is lost, and a drawing that everybody uses cannot pull its users into
    validation.
    """
    content, drawing, concept = (
        np.frombuffer(column, np.uint64) for column in (rows.content, rows.drawing, rows.concept)
    )
    validation = np.frombuffer(rows.validation, np.bool_).copy()
    kept = np.zeros(len(content), np.bool_)
    kept[np.unique(content, return_index=True)[1]] = True
    held = np.flatnonzero(kept & validation)
    released = drawing[kept & ~validation]
    while len(released) and len(held):
        touched = concept[held[np.isin(drawing[held], released)]]
        leaves = np.isin(concept[held], touched)
        released, held = drawing[held[leaves]], held[~leaves]
    num_moved = int((kept & validation).sum()) - len(held)
    validation[:] = False
    validation[held] = True
    return SplitDecision(kept, validation, num_moved)


def choose_split(
    concept: str, *, seed: int, validation_share: float
) -> Literal["train", "validation"]:
    """The split of every row of a concept: a pure function, so that it holds across sources and runs."""
    return "validation" if stable_hash(seed, concept) < validation_share * 2**64 else "train"
