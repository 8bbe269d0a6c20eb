"""Split packed sequences among workers, as micro-batches."""

from collections.abc import Iterable, Iterator

import numpy as np

from data_pipeline.stream.encode import IGNORE_INDEX
from data_pipeline.stream.token_stream import Batch, Position, Stream, slice_batch

_FILLER_VALUES = {
    "targets": IGNORE_INDEX,
    "num_examples": 0,
    "num_tokens": 0,
    "num_dropped": 0,
    "num_truncated": 0,
    "example_numbers": -1,
}


def split_among_workers(
    blocks: Iterable[Batch], *, micro_batch_size: int, rank: int, num_workers: int
) -> Iterator[tuple[Batch, Position]]:
    """Yield one worker's micro-batches, each with the position of the whole job after it.

    With B = micro_batch_size and W = num_workers, all workers together take sequences
    [kBW, (k+1)BW) as their k-th micro-batches. Worker `rank` takes the rank-th B of them. The
    position after a micro-batch counts the k-th micro-batches of all workers. Filler sequences
    complete the last micro-batches: IGNORE_INDEX targets, no tokens, no examples.
    """
    own = slice(rank * micro_batch_size, (rank + 1) * micro_batch_size)
    for group in _group_sequences(blocks, micro_batch_size * num_workers):
        # Copy: Ray's arrays are read-only, and stay in its object store while a part is in use.
        micro_batch = {name: column[own].copy() for name, column in group.items()}
        yield micro_batch, _position_after(group)


def read_validation_batches(
    stream: Stream, *, micro_batch_size: int, rank: int, num_workers: int
) -> list[Batch]:
    """Return this worker's micro-batches of the validation split, without Ray.

    All workers get the same number of micro-batches.
    """
    blocks = stream.iterate_validation_blocks()
    own = split_among_workers(
        blocks, micro_batch_size=micro_batch_size, rank=rank, num_workers=num_workers
    )
    return [batch for batch, _ in own]


def _group_sequences(blocks: Iterable[Batch], num_sequences: int) -> Iterator[Batch]:
    """Yield the sequences of all blocks in groups of `num_sequences`; filler completes the last."""
    pending: Batch = {}
    expected: Position | None = None
    for block in blocks:
        # check that no sequence is missing or repeated
        first = int(block["shuffle_block"][0]), int(block["index"][0])
        if expected is not None:
            assert first == (expected.shuffle_block, expected.index), (first, expected)
        expected = _position_after(block)

        pending = _concatenate(pending, block) if pending else block
        while len(pending["index"]) >= num_sequences:
            yield slice_batch(pending, slice(num_sequences))
            pending = slice_batch(pending, slice(num_sequences, None))

    if pending and len(pending["index"]):
        filler = _make_filler(pending, num_sequences - len(pending["index"]))
        yield _concatenate(pending, filler)


def _position_after(batch: Batch) -> Position:
    """Return the position after the last sequence of a batch."""
    shuffle_block, index, num_block_sequences = (
        int(batch[name][-1]) for name in ("shuffle_block", "index", "num_block_sequences")
    )
    if index + 1 < num_block_sequences:
        return Position(shuffle_block, index + 1, num_block_sequences)
    return Position(shuffle_block + 1)


def _concatenate(head: Batch, tail: Batch) -> Batch:
    return {name: np.concatenate([head[name], tail[name]]) for name in head}


def _make_filler(batch: Batch, num_sequences: int) -> Batch:
    """Return copies of the batch's last sequence, with no target and with counts of 0."""
    filler = {name: np.repeat(column[-1:], num_sequences, axis=0) for name, column in batch.items()}
    for name in _FILLER_VALUES.keys() & filler.keys():
        filler[name][:] = _FILLER_VALUES[name]
    return filler
