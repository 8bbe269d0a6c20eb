"""Decide which records to keep and in which split, once all are known. Works on hashes only.

The hashes are on disk. Memory holds one partition of them (about half a byte for each record), one
bit for each record, and 8 bytes for each concept that moves to training.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_pipeline.prepare.partitions import Partitions
from data_pipeline.sources.record import stable_hash

FACTS = {
    "drawing": "u8",
    "content": "u8",
    "concept": "u8",
    "index": "u8",
    "validation": "?",
    "leaks": "?",
}
"""Columns of the facts of a cleaned record: hashes, index in reading order, flags."""


@dataclass(frozen=True)
class SplitDecision:
    """Numbers of records, and the split of each."""

    num_kept: int
    num_validation: int
    num_moved: int
    """Number of records moved to training, because a drawing ties their concept to training."""
    num_leaked: int
    """Number of kept records whose drawing contains their caption."""
    dropped: bytes
    """One bit for each record in reading order: a record with an equal content is before it."""
    moved: Any
    """Sorted hashes of the concepts that moved, of shape [num_concepts]."""

    def is_dropped(self, index: int) -> bool:
        """Return whether the record with this index in reading order is a duplicate."""
        return bool(self.dropped[index >> 3] >> (index & 7) & 1)

    def choose(self, held_out: int | None) -> Literal["train", "validation"]:
        """Return the split of a record; `held_out` is the hash of a concept held out at first."""
        if held_out is None or _is_in(np.array([held_out], np.uint64), self.moved)[0]:
            return "train"
        return "validation"


def decide_splits(facts: Partitions, folder: Path) -> SplitDecision:
    """Keep the first of equal contents, and put no concept and no drawing into both splits.

    A validation concept moves to training as a whole if one of its drawings is also in a training
    concept. The move is repeated for concepts that share a drawing with a moved one. No record is
    lost, and a drawing that many concepts share cannot pull them into validation.

    `facts` has the columns FACTS; the working files go into the folder. Equal contents have equal
    drawings, so they are in one partition.
    """
    num_kept = num_leaked = 0
    dropped = np.zeros(-(-len(facts) // 8), np.uint8)
    held_out = Partitions(folder / "held_out", {"drawing": "u8", "concept": "u8"})
    tied = [np.zeros(0, np.uint64)]

    for rows in facts.read():
        # keep first occurrences
        is_kept = np.zeros(len(rows), np.bool_)
        is_kept[np.unique(rows["content"], return_index=True)[1]] = True
        indices = rows["index"][~is_kept]
        bits = np.left_shift(1, indices & 7).astype(np.uint8)
        np.bitwise_or.at(dropped, indices >> 3, bits)

        # find ties to training
        kept = rows[is_kept]
        held = kept[kept["validation"]]
        train_drawings = kept["drawing"][~kept["validation"]]
        tied.append(held["concept"][np.isin(held["drawing"], train_drawings)])
        held_out.add_all(held)
        num_kept += len(kept)
        num_leaked += int(kept["leaks"].sum())

    moved, num_moved = _move_tied(held_out, np.unique(np.concatenate(tied)))
    num_validation = len(held_out) - num_moved
    return SplitDecision(num_kept, num_validation, num_moved, num_leaked, dropped.tobytes(), moved)


def _move_tied(held_out: Partitions, moved: Any) -> tuple[Any, int]:
    """Return the sorted hashes of all concepts that move, and the number of their records.

    Concepts that share a drawing with a moved concept move too, until none is left.
    """
    num_found = len(moved)
    num_moved = 0
    while num_found:
        tied, num_moved = [moved], 0
        for rows in held_out.read():
            is_moved = _is_in(rows["concept"], moved)
            is_tied = np.isin(rows["drawing"], rows["drawing"][is_moved])
            tied.append(rows["concept"][is_tied])
            num_moved += int(is_moved.sum())
        grown = np.unique(np.concatenate(tied))
        num_found, moved = len(grown) - len(moved), grown
    return moved, num_moved


def _is_in(values: Any, found: Any) -> Any:
    """Return a boolean array of shape [num_values]; `found` is sorted."""
    places = np.searchsorted(found, values)
    is_inside = places < len(found)
    is_inside[is_inside] = found[places[is_inside]] == values[is_inside]
    return is_inside


def choose_split(
    concept: str, *, seed: int, validation_share: float
) -> Literal["train", "validation"]:
    """Return the split of all records of a concept.

    The split is a pure function of the arguments, so it is the same for all sources and runs.
    """
    return "validation" if stable_hash(seed, concept) < validation_share * 2**64 else "train"
