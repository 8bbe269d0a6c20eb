"""Decide which records to keep and in which split, once all are known. Works on hashes only."""

from array import array
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from data_pipeline.sources.record import stable_hash


@dataclass
class Fingerprints:
    """Hashes and flags of all cleaned records, in reading order: 26 bytes a record."""

    content_hashes: "array[int]" = field(default_factory=lambda: array("Q"))
    drawing_hashes: "array[int]" = field(default_factory=lambda: array("Q"))
    concept_hashes: "array[int]" = field(default_factory=lambda: array("Q"))
    validation: "array[int]" = field(default_factory=lambda: array("b"))
    leaks: "array[int]" = field(default_factory=lambda: array("b"))

    def __len__(self) -> int:
        return len(self.content_hashes)


@dataclass(frozen=True)
class SplitDecision:
    """Boolean arrays of shape [num_records], in reading order."""

    kept: Any
    validation: Any
    num_moved: int
    """Number of records moved to training, because a drawing ties their concept to training."""


def decide_splits(fingerprints: Fingerprints) -> SplitDecision:
    """Keep the first of equal contents, and put no concept and no drawing into both splits.

    A validation concept moves to training as a whole if one of its drawings is also in a training
    concept. The move is repeated for concepts that share a drawing with a moved one. No record is
    lost, and a drawing that many concepts share cannot pull them into validation.
    """
    content_hashes = np.frombuffer(fingerprints.content_hashes, np.uint64)
    drawing_hashes = np.frombuffer(fingerprints.drawing_hashes, np.uint64)
    concept_hashes = np.frombuffer(fingerprints.concept_hashes, np.uint64)
    validation = np.frombuffer(fingerprints.validation, np.bool_).copy()

    # keep first occurrences
    kept = np.zeros(len(content_hashes), np.bool_)
    kept[np.unique(content_hashes, return_index=True)[1]] = True

    # move tied concepts
    held_out = np.flatnonzero(kept & validation)
    train_drawings = drawing_hashes[kept & ~validation]
    while len(train_drawings) and len(held_out):
        tied = concept_hashes[held_out[np.isin(drawing_hashes[held_out], train_drawings)]]
        moves = np.isin(concept_hashes[held_out], tied)
        train_drawings, held_out = drawing_hashes[held_out[moves]], held_out[~moves]

    num_moved = int((kept & validation).sum()) - len(held_out)
    validation[:] = False
    validation[held_out] = True
    return SplitDecision(kept, validation, num_moved)


def choose_split(
    concept: str, *, seed: int, validation_share: float
) -> Literal["train", "validation"]:
    """Return the split of all records of a concept.

    The split is a pure function of the arguments, so it is the same for all sources and runs.
    """
    return "validation" if stable_hash(seed, concept) < validation_share * 2**64 else "train"
