"""Decide which records to keep and in which split, once all are known. Works on hashes only.

The hashes are on disk. Memory holds one partition of them (about half a byte for each record), two
bits for each record, and 8 bytes for each concept that moves to training, and for each concept of
the records whose source or file gives them a held-out split.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.prepare.partitions import Partitions
from data_pipeline.shards import SPLITS
from data_pipeline.sources.record import stable_hash

FACTS = {
    "drawing": "u8",
    "content": "u8",
    "concept": "u8",
    "index": "u8",
    "split": "u1",
    "given": "?",
    "leaks": "?",
}
"""Columns of the facts of a cleaned record: hashes, index in reading order, number of the split in
SPLITS, and flags. `given`: a source or file gives the record this held-out split."""

EXCLUDED = len(SPLITS)
"""Stands for the split of an excluded record."""

_HELD_OUT = range(1, len(SPLITS))


@dataclass(frozen=True)
class SplitDecision:
    """Numbers of records, and the split of each."""

    num_kept: dict[str, int]
    """Number of records by split."""
    num_given: dict[str, int]
    """Number of the kept records whose source or file gives them a held-out split, by split."""
    num_duplicates: int
    num_excluded: int
    """Number of records that would be in a second split beside the given records."""
    num_moved: int
    """Number of records moved to training: a drawing ties their concept to another split."""
    num_leaked: int
    """Number of kept records whose drawing contains their caption."""
    duplicates: Any
    """One bit for each record in reading order: a record with an equal content is kept instead."""
    excluded: Any
    """One bit for each record in reading order: a given record of another split has its drawing or
    concept."""
    moved: Any
    """Sorted hashes of the concepts that moved, of shape [num_concepts]."""
    filled: list[int]
    """Splits that have only given records."""

    def is_duplicate(self, indices: Any) -> Any:
        """Return a boolean array: an equal record is kept instead of that with this index."""
        return _get_bits(self.duplicates, indices)

    def choose(self, rows: Any) -> Any:
        """Return the number of the split of each row, or EXCLUDED, of shape [num_rows].

        `rows` maps the names index, concept, split and given of FACTS to arrays.
        """
        names = ("index", "concept", "split", "given")
        index, concept, split, given = (np.asarray(rows[name]) for name in names)
        is_moved = np.isin(split, self.filled) | _is_in(concept, self.moved)
        chosen = np.where(is_moved & ~given, 0, split)
        return np.where(_get_bits(self.excluded, index), EXCLUDED, chosen)


def decide_splits(
    facts: Partitions, folder: Path, *, with_share: Collection[str] = ()
) -> SplitDecision:
    """Keep one of equal contents, and put no concept and no drawing into two splits.

    A given record stays in its split. Another record is excluded if a given record has its drawing
    or concept, and so is a given validation record for a given test record. A split with given
    records takes no share of the others, unless it is in `with_share`.

    A held-out concept moves to training as a whole if one of its drawings is also in a concept of
    another split. The move is repeated for concepts that share a drawing with a moved one. No
    record is lost, and a drawing that many concepts share cannot pull them out of training.

    `facts` has the columns FACTS; the working files go into the folder. Equal contents have equal
    drawings, so they are in one partition.
    """
    given = _find_given_concepts(facts)
    filled = [split for split in _HELD_OUT if len(given[split]) and SPLITS[split] not in with_share]
    num_kept, num_given = np.zeros((2, len(SPLITS)), np.int64)
    num_leaked = 0
    duplicates, excluded = np.zeros((2, -(-len(facts) // 8)), np.uint8)
    held_out = Partitions(folder / "held_out", {"drawing": "u8", "concept": "u8", "split": "u1"})
    tied = [np.zeros(0, np.uint64)]

    for rows in facts.read():
        rows["split"][~rows["given"] & np.isin(rows["split"], filled)] = 0

        # keep one of equal records, and exclude those of a second split
        kept, dropped = _keep_first(rows)
        _set_bits(duplicates, dropped["index"])
        is_excluded = _exclude(kept, given)
        _set_bits(excluded, kept["index"][is_excluded])
        kept = kept[~is_excluded]
        num_kept += _count_splits(kept)
        num_given += _count_splits(kept[kept["given"]])
        num_leaked += int(kept["leaks"].sum())

        # find ties to another split
        free = kept[~kept["given"]]
        tied += _find_tied(free)
        held_out.add(free[free["split"] > 0])

    moved, num_moved = _move_tied(held_out, np.unique(np.concatenate(tied)))
    num_kept -= num_moved
    num_kept[0] += num_moved.sum()
    return SplitDecision(
        num_kept=_name_splits(num_kept),
        num_given=_name_splits(num_given),
        num_duplicates=_count_bits(duplicates),
        num_excluded=_count_bits(excluded),
        num_moved=int(num_moved.sum()),
        num_leaked=num_leaked,
        duplicates=duplicates,
        excluded=excluded,
        moved=moved,
        filled=filled,
    )


def _find_given_concepts(facts: Partitions) -> list[Any]:
    """Return the sorted hashes of the concepts of the given records, for each split."""
    found: list[list[Any]] = [[np.zeros(0, np.uint64)] for _ in SPLITS]
    for rows in facts.read():
        for split in _HELD_OUT:
            is_given = rows["given"] & (rows["split"] == split)
            found[split].append(np.unique(rows["concept"][is_given]))
    return [np.unique(np.concatenate(concepts)) for concepts in found]


def _keep_first(rows: Any) -> tuple[Any, Any]:
    """Return the kept and the dropped rows: of equal contents the given one, or else the first."""
    rows = rows[np.lexsort((rows["index"], -_rank(rows), rows["content"]))]
    is_first = np.ones(len(rows), np.bool_)
    is_first[1:] = rows["content"][1:] != rows["content"][:-1]
    return rows[is_first], rows[~is_first]


def _exclude(rows: Any, given: list[Any]) -> Any:
    """Return a boolean array: a given record of a later split has the row's drawing or concept."""
    rank = _rank(rows)
    is_excluded = np.zeros(len(rows), np.bool_)
    for split in _HELD_OUT:
        has_drawing = np.isin(rows["drawing"], rows["drawing"][rank == split])
        is_excluded |= (rank < split) & (has_drawing | _is_in(rows["concept"], given[split]))
    return is_excluded


def _rank(rows: Any) -> Any:
    """Return the number of the split of each given row, and 0 for the others."""
    return np.where(rows["given"], rows["split"], 0).astype(np.int8)


def _find_tied(rows: Any) -> Iterator[Any]:
    """Yield the hashes of the held-out concepts that share a drawing with another split."""
    for split in _HELD_OUT:
        is_own = rows["split"] == split
        held, others = rows[is_own], rows[~is_own]
        yield held["concept"][np.isin(held["drawing"], others["drawing"])]


def _move_tied(held_out: Partitions, moved: Any) -> tuple[Any, Any]:
    """Return the sorted hashes of all concepts that move, and the number of their records by split.

    Concepts that share a drawing with a moved concept move too, until none is left.
    """
    num_found = len(moved)
    num_moved = np.zeros(len(SPLITS), np.int64)
    while num_found:
        tied = [moved]
        num_moved[:] = 0
        for rows in held_out.read():
            is_moved = _is_in(rows["concept"], moved)
            is_tied = np.isin(rows["drawing"], rows["drawing"][is_moved])
            tied.append(rows["concept"][is_tied])
            num_moved += _count_splits(rows[is_moved])
        grown = np.unique(np.concatenate(tied))
        num_found, moved = len(grown) - len(moved), grown
    return moved, num_moved


def _is_in(values: Any, found: Any) -> Any:
    """Return a boolean array of shape [num_values]; `found` is sorted."""
    places = np.searchsorted(found, values)
    is_inside = places < len(found)
    is_inside[is_inside] = found[places[is_inside]] == values[is_inside]
    return is_inside


def _count_splits(rows: Any) -> Any:
    """Return the number of rows of each split, of shape [num_splits]."""
    return np.bincount(rows["split"], minlength=len(SPLITS))


def _name_splits(counts: Any) -> dict[str, int]:
    return dict(zip(SPLITS, counts.tolist(), strict=True))


def _set_bits(bits: Any, indices: Any) -> None:
    np.bitwise_or.at(bits, indices >> 3, np.left_shift(1, indices & 7).astype(np.uint8))


def _get_bits(bits: Any, indices: Any) -> Any:
    """Return a boolean array of shape [num_indices]."""
    return (bits[indices >> 3] >> (indices & 7) & 1).astype(np.bool_)


def _count_bits(bits: Any) -> int:
    return int(np.unpackbits(bits).sum())


def choose_split(
    concept: str, *, seed: int, validation_share: float, test_share: float = 0.0
) -> str:
    """Return the split of all records of a concept.

    The split is a pure function of the arguments, so it is the same for all sources and runs.
    Validation has the lowest hashes and test the highest: neither share changes the other split.
    """
    place = stable_hash(seed, concept)
    if place < validation_share * 2**64:
        return "validation"
    return "test" if place >= (1 - test_share) * 2**64 else "train"
