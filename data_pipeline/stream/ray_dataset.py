"""Read the token stream through Ray Data. This is the only file that builds Ray Data graphs.

Every worker receives every packed sequence and keeps its own. One Ray Data block per sequence would
cost tens of milliseconds a sequence. Larger blocks cannot be split among workers in advance,
because a task has no count of the sequences before its own.
"""

import math
import time
from collections.abc import Iterator
from functools import partial

import ray.data
import ray.train
from ray.data import ExecutionOptions
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data.block import Block, BlockAccessor, BlockMetadata
from ray.data.context import DataContext
from ray.data.datasource import Datasource, ReadTask

from data_pipeline.stream.token_stream import Batch, Position, Stream
from data_pipeline.stream.worker_batches import split_among_workers

_CHUNK_SEQUENCES = 64  # packed sequences in one Ray Data block; 6 MiB at 8,192 tokens


def build_dataset(stream: Stream, *, start: Position, num_workers: int) -> ray.data.Dataset:
    """Return the stream from `start` on, for exactly `num_workers` readers (`iterate_batches`)."""
    dataset: ray.data.Dataset = ray.data.read_datasource(
        _ShuffleBlocks(stream, start, num_workers),
        num_cpus=stream.config.cpus_per_task,
        override_num_blocks=max(1, stream.num_shuffle_blocks - start.shuffle_block),
    )
    dataset.context.execution_options = ExecutionOptions(preserve_order=True)

    # Ray cuts the output of a task as soon as it has more bytes than this. With 1 byte it cuts
    # after every row of the dataset. A row is one chunk, so the workers receive chunks in turn.
    dataset.context.target_max_block_size = 1
    dataset.context.enable_progress_bars = dataset.context.print_on_execution_start = False
    dataset.context.custom_execution_callback_classes = [_SchedulerPause]
    return dataset


def build_data_config() -> ray.train.DataConfig:
    """Return the trainer's data options, with which Ray Train overwrites those of the dataset."""
    return ray.train.DataConfig(execution_options=ExecutionOptions(preserve_order=True))


def iterate_batches(
    shard: ray.data.DataIterator,
    *,
    micro_batch_size: int,
    rank: int,
    num_workers: int,
    prefetch: int,
) -> Iterator[tuple[Batch, Position]]:
    """Yield a worker's micro-batches as `split_among_workers` does.

    Ray Data prefetches about `prefetch` micro-batches.
    """
    num_prefetched = prefetch * micro_batch_size * num_workers  # sequences
    rows = shard.iter_batches(
        batch_size=1,
        batch_format="numpy",
        prefetch_batches=math.ceil(num_prefetched / _CHUNK_SEQUENCES),
    )
    chunks = ({name: column[0] for name, column in row.items()} for row in rows)
    return split_among_workers(
        chunks, micro_batch_size=micro_batch_size, rank=rank, num_workers=num_workers
    )


class _SchedulerPause(ExecutionCallback):
    """Pause Ray Data's scheduling loop for 20 ms a turn.

    The loop of Ray 2.60 spins while all tasks are finished or held back. It used half a core,
    measured on a machine with two cores. None of our tasks needs to be scheduled sooner.
    """

    def on_execution_step(self, executor: object) -> None:
        time.sleep(0.02)


class _ShuffleBlocks(Datasource):
    """Source with one read task per remaining shuffle block.

    It is a single operator, so that Ray reserves CPUs once for all the work.
    """

    def __init__(self, stream: Stream, start: Position, num_workers: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._stream, self._start, self._num_workers = stream, start, num_workers

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: DataContext | None = None,
    ) -> list[ReadTask]:
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        read = partial(_read_chunks, self._stream, self._start, self._num_workers)
        numbers = range(self._start.shuffle_block, self._stream.num_shuffle_blocks)
        return [ReadTask(partial(read, number), unknown) for number in numbers]

    def estimate_inmemory_data_size(self) -> None:
        """Return None, because the size is unknown before the blocks are packed."""


def _read_chunks(stream: Stream, start: Position, num_copies: int, number: int) -> Iterator[Block]:
    """Yield the remaining sequences of one shuffle block in chunks, each `num_copies` times."""
    sequences = stream.pack_remaining_shuffle_block(start, number)
    for first in range(0, len(sequences["index"]), _CHUNK_SEQUENCES):
        part = slice(first, first + _CHUNK_SEQUENCES)
        # the new first axis makes the chunk one row of the dataset
        chunk = {name: column[None, part] for name, column in sequences.items()}
        block = BlockAccessor.batch_to_block(chunk)
        for _ in range(num_copies):
            yield block
