"""Read the token stream in one process, without Ray, and keep its beginning packed in memory."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from data_pipeline.stream.token_stream import Batch, Position, Stream, slice_batch

_MAX_BYTES = 2**30


class PackedBlocks:
    """Shuffle blocks of one stream, for jobs that read it one after another in this process.

    A thread packs one block ahead. The blocks that are packed first stay in memory, up to 1 GiB:
    every job begins with them.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._kept: dict[int, Batch] = {}
        self._num_bytes = 0
        self._pool = ThreadPoolExecutor(1)

    def iterate(self, start: Position) -> Iterator[Batch]:
        """Yield the sequences of each shuffle block from `start` on."""
        numbers = range(start.shuffle_block, self._stream.num_shuffle_blocks)
        tasks = (self._pool.submit(self._pack, number) for number in numbers)
        ahead = next(tasks, None)
        while ahead is not None:
            packed, ahead = ahead, next(tasks, None)
            block = packed.result()
            is_first = int(block["shuffle_block"][0]) == start.shuffle_block
            yield slice_batch(block, slice(start.index, None)) if is_first else block

    def _pack(self, number: int) -> Batch:
        if number in self._kept:
            return self._kept[number]
        block = self._stream.pack_shuffle_block(number)
        num_bytes = sum(column.nbytes for column in block.values())
        if self._num_bytes + num_bytes <= _MAX_BYTES:
            self._kept[number] = block
            self._num_bytes += num_bytes
        return block
