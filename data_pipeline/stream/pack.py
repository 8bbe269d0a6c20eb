"""Examples → packed rows: several documents one behind the other in a row of bounded length. Pure numpy."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_pipeline.stream.encode import Example


@dataclass(frozen=True)
class PackedSequence:
    """One row of n ≤ sequence_tokens tokens; each document's positions start at 0 again."""

    input_ids: npt.NDArray[np.int32]
    """[n]"""
    position_ids: npt.NDArray[np.int32]
    """[n]; a 0 marks the first token of a document."""
    targets: npt.NDArray[np.int32]
    """[n]; never crosses a document, since an example's last target is IGNORED."""
    members: tuple[int, ...]
    """Indices of the examples in this row, in order."""


def pack_examples(examples: Sequence[Example], sequence_tokens: int) -> list[PackedSequence]:
    """Best-fit decreasing: longest example first, each into the fullest row that still has room for it.

    Examples longer than sequence_tokens must have been taken out before. Rows come in the order in which they
    were opened; equal lengths keep their order, so the result is a pure function of the arguments.
    """
    order = sorted(range(len(examples)), key=lambda i: -len(examples[i].input_ids))
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (free tokens, row), ascending
    for i in order:
        length = len(examples[i].input_ids)
        assert length <= sequence_tokens, (length, sequence_tokens)
        at = bisect_left(open_rows, (length, -1))
        if at < len(open_rows):
            free, row = open_rows.pop(at)
        else:
            free, row = sequence_tokens, len(rows)
            rows.append([])
        rows[row].append(i)
        insort(open_rows, (free - length, row))
    return [_concatenate(examples, members) for members in rows]


def _concatenate(examples: Sequence[Example], members: list[int]) -> PackedSequence:
    parts = [examples[i] for i in members]
    return PackedSequence(
        input_ids=np.concatenate([part.input_ids for part in parts]),
        position_ids=np.concatenate(
            [np.arange(len(part.input_ids), dtype=np.int32) for part in parts]
        ),
        targets=np.concatenate([part.targets for part in parts]),
        members=tuple(members),
    )
