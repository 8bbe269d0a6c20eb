"""Pack examples into sequences: several documents, one after another, up to a fixed length.

Pure numpy.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_pipeline.stream.encode import Example


@dataclass(frozen=True)
class PackedSequence:
    """A sequence of n ≤ sequence_tokens tokens; the positions of each document start at 0."""

    input_ids: npt.NDArray[np.int32]
    """[n]"""
    position_ids: npt.NDArray[np.int32]
    """[n]; a 0 marks the first token of a document."""
    targets: npt.NDArray[np.int32]
    """[n]; the last target of a document is IGNORE_INDEX, so that none crosses into the next."""
    members: tuple[int, ...]
    """Indices of the examples in this sequence, in order."""


def pack_examples(examples: Sequence[Example], sequence_tokens: int) -> list[PackedSequence]:
    """Pack by best-fit decreasing: longest example first, into the fullest sequence with room.

    No example may be longer than sequence_tokens. Sequences come in the order in which they were
    opened. Examples of equal length keep their order, so the result is a pure function of the
    arguments.
    """
    longest_first = sorted(range(len(examples)), key=lambda i: -len(examples[i].input_ids))
    sequences: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (free tokens, sequence), ascending

    for i in longest_first:
        length = len(examples[i].input_ids)
        assert length <= sequence_tokens, (length, sequence_tokens)

        fullest = bisect_left(free, (length, -1))
        if fullest < len(free):
            num_free, sequence = free.pop(fullest)
        else:
            num_free, sequence = sequence_tokens, len(sequences)
            sequences.append([])

        sequences[sequence].append(i)
        insort(free, (num_free - length, sequence))

    return [_concatenate(examples, members) for members in sequences]


def _concatenate(examples: Sequence[Example], members: list[int]) -> PackedSequence:
    documents = [examples[i] for i in members]
    positions = [np.arange(len(document.input_ids), dtype=np.int32) for document in documents]
    return PackedSequence(
        input_ids=np.concatenate([document.input_ids for document in documents]),
        position_ids=np.concatenate(positions),
        targets=np.concatenate([document.targets for document in documents]),
        members=tuple(members),
    )
