"""Split packed sequences among workers, as micro-batches."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence

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
_MIN_ROUND_SEQUENCES, _MIN_SHARE_SEQUENCES = 64, 4


def split_among_workers(
    blocks: Iterable[Batch], *, micro_batch_size: int, rank: int, num_workers: int
) -> Iterator[tuple[Batch, Position]]:
    """Yield one worker's micro-batches, each with the position of the whole job after it.

    With B = micro_batch_size and W = num_workers, all workers together take sequences
    [kBW, (k+1)BW) as their k-th micro-batches. Worker `rank` takes the rank-th B of them. The
    position after a micro-batch counts the k-th micro-batches of all workers. Filler sequences
    complete the last micro-batches: IGNORE_INDEX targets, no tokens, no examples.
    """
    dealer = Dealer(micro_batch_size=micro_batch_size, num_workers=num_workers)
    for block in blocks:
        for shares in dealer.add(block):
            yield from split_share(shares[rank])
    for shares in dealer.finish():
        yield from split_share(shares[rank])


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


class Dealer:
    """Deal the sequences of a stream in rounds: one share for each worker.

    A share is {name: [micro-batches, micro_batch_size, …]}. Its column `position_after`
    [micro-batches, 3] holds the position of the whole job after each micro-batch.
    """

    def __init__(
        self, *, micro_batch_size: int, num_workers: int, start: Position | None = None
    ) -> None:
        """Expect `start` as the position of the first sequence; None: any position."""
        self._expected = start
        self._micro_batch_size, self._num_workers = micro_batch_size, num_workers
        self._group_size = micro_batch_size * num_workers
        self._round_size = self._group_size * count_share_batches(micro_batch_size, num_workers)
        self._pending: list[Batch] = []

    def add(self, sequences: Batch) -> list[list[Batch]]:
        """Add the next sequences of the stream; return the rounds that are now complete."""
        # check that no sequence is missing or repeated
        first = int(sequences["shuffle_block"][0]), int(sequences["index"][0])
        if self._expected is not None:
            expected = self._expected.shuffle_block, self._expected.index
            assert first == expected, (first, expected)
        self._expected = _position_after(sequences)

        self._pending.append(sequences)
        num_pending = sum(len(part["index"]) for part in self._pending)
        num_dealt = num_pending - num_pending % self._round_size
        if not num_dealt:
            return []

        pending = _concatenate(self._pending)
        self._pending = [slice_batch(pending, slice(num_dealt, None))]
        return [
            self._deal(slice_batch(pending, slice(first, first + self._round_size)))
            for first in range(0, num_dealt, self._round_size)
        ]

    def finish(self) -> list[list[Batch]]:
        """Return the last round, completed by filler; there is none if no sequence is left."""
        pending = _concatenate(self._pending) if self._pending else {}
        if not pending or not len(pending["index"]):
            return []
        filler = _make_filler(pending, -len(pending["index"]) % self._group_size)
        return [self._deal(_concatenate([pending, filler]))]

    def _deal(self, sequences: Batch) -> list[Batch]:
        """Return the share of each worker in whole groups of sequences."""
        shape = (-1, self._num_workers, self._micro_batch_size)
        dealt = {
            name: column.reshape(*shape, *column.shape[1:]) for name, column in sequences.items()
        }
        lasts = range(self._group_size - 1, len(sequences["index"]), self._group_size)
        positions = [
            dataclasses.astuple(_position_after(slice_batch(sequences, slice(last + 1))))
            for last in lasts
        ]
        position_after = np.array(positions, np.int32)
        return [
            {name: column[:, rank] for name, column in dealt.items()}
            | {"position_after": position_after}
            for rank in range(self._num_workers)
        ]


def count_share_batches(micro_batch_size: int, num_workers: int) -> int:
    """Return the number of micro-batches in a share of a whole round.

    A round has at least 64 sequences, and a share at least 4: Ray Data handles some tens of shares
    a second.
    """
    sequences_per_share = max(_MIN_SHARE_SEQUENCES, _MIN_ROUND_SEQUENCES / num_workers)
    return math.ceil(sequences_per_share / micro_batch_size)


def split_share(share: Batch) -> Iterator[tuple[Batch, Position]]:
    """Yield the micro-batches of a share, each with the position of the whole job after it."""
    columns = {name: column for name, column in share.items() if name != "position_after"}
    for i, position in enumerate(share["position_after"].tolist()):
        # Copy: Ray's arrays are read-only, and stay in its object store while a part is in use.
        yield {name: column[i].copy() for name, column in columns.items()}, Position(*position)


def _position_after(batch: Batch) -> Position:
    """Return the position after the last sequence of a batch."""
    shuffle_block, index, num_block_sequences = (
        int(batch[name][-1]) for name in ("shuffle_block", "index", "num_block_sequences")
    )
    if index + 1 < num_block_sequences:
        return Position(shuffle_block, index + 1, num_block_sequences)
    return Position(shuffle_block + 1)


def _concatenate(parts: Sequence[Batch]) -> Batch:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _make_filler(batch: Batch, num_sequences: int) -> Batch:
    """Return copies of the batch's last sequence, with no target and with counts of 0."""
    filler = {name: np.repeat(column[-1:], num_sequences, axis=0) for name, column in batch.items()}
    for name in _FILLER_VALUES.keys() & filler.keys():
        filler[name][:] = _FILLER_VALUES[name]
    return filler
