"""Read the token stream through Ray Data. This is the only file that builds Ray Data graphs.

One read task deals the packed sequences to the workers in their order. It starts the tasks that
read and pack shuffle blocks, some blocks ahead. It must see all sequences, because a task that
packs a block has no count of the sequences before its own. It copies 12 bytes a token, which is
25 MB a second for 512 workers at 4,000 tokens a second.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial

import ray
import ray.data
import ray.exceptions
import ray.train
from ray.data import ExecutionOptions
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data.block import Block, BlockAccessor, BlockMetadata
from ray.data.context import DataContext
from ray.data.datasource import Datasource, ReadTask

from data_pipeline.stream.token_stream import Batch, Position, Stream
from data_pipeline.stream.worker_batches import Dealer, count_share_batches, split_share

_NUM_BLOCKS_AHEAD = 4
"""Shuffle blocks that are packed while earlier ones are dealt.

A core packs about 0.9 million tokens a second, and 512 workers train on 2 million.
"""


def build_dataset(
    stream: Stream, *, start: Position, micro_batch_size: int, num_workers: int
) -> ray.data.Dataset:
    """Return the stream from `start` on, for exactly `num_workers` readers (`iterate_batches`).

    A row of the dataset is one share of a `Dealer`. The shares of the workers take turns.
    """
    return build_ordered_dataset(
        partial(_deal_shares, stream, start, micro_batch_size, num_workers)
    )


def build_ordered_dataset(
    read: Callable[[], Iterator[Block]], *, on_this_node: bool = False
) -> ray.data.Dataset:
    """Return the rows that one read task yields, each in a block of its own, in their order.

    The task takes no CPU: it waits for other tasks. `on_this_node` keeps it on the node of this
    process.
    """
    dataset: ray.data.Dataset = ray.data.read_datasource(
        _OneTask(read, on_this_node), num_cpus=0, override_num_blocks=1
    )
    dataset.context.execution_options = ExecutionOptions(preserve_order=True)

    # Ray cuts the output of a task as soon as it has more bytes than this. With 1 byte it cuts
    # after every row of the dataset, so the readers receive rows in turn.
    dataset.context.target_max_block_size = 1
    dataset.context.enable_progress_bars = dataset.context.print_on_execution_start = False
    dataset.context.custom_execution_callback_classes = [SchedulerPause]
    return dataset


def build_data_config() -> ray.train.DataConfig:
    """Return the trainer's data options, with which Ray Train overwrites those of the dataset."""
    return ray.train.DataConfig(execution_options=ExecutionOptions(preserve_order=True))


def iterate_batches(
    shard: ray.data.DataIterator, *, micro_batch_size: int, num_workers: int, prefetch: int
) -> Iterator[tuple[Batch, Position]]:
    """Yield a worker's micro-batches as `split_among_workers` does.

    Ray Data prefetches about `prefetch` micro-batches.
    """
    num_prefetched = math.ceil(prefetch / count_share_batches(micro_batch_size, num_workers))
    rows = shard.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=num_prefetched)
    for row in rows:
        yield from split_share({name: column[0] for name, column in row.items()})


class SchedulerPause(ExecutionCallback):
    """Pause Ray Data's scheduling loop for 20 ms a turn.

    The loop of Ray 2.60 spins while all tasks are finished or held back. It used half a core,
    measured on a machine with two cores. None of our tasks needs to be scheduled sooner.
    """

    def on_execution_step(self, executor: object) -> None:
        time.sleep(0.02)


class _OneTask(Datasource):
    """Source with one read task."""

    def __init__(self, read: Callable[[], Iterator[Block]], on_this_node: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._read = read
        self._on_this_node = on_this_node

    @property
    def supports_distributed_reads(self) -> bool:
        return not self._on_this_node

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: DataContext | None = None,
    ) -> list[ReadTask]:
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(self._read, unknown)]

    def estimate_inmemory_data_size(self) -> None:
        """Return None, because the size is unknown before the task has read all."""


def _deal_shares(
    stream: Stream, start: Position, micro_batch_size: int, num_workers: int
) -> Iterator[Block]:
    """Yield one share for each worker in turn. This is a pure function of its arguments."""
    dealer = Dealer(micro_batch_size=micro_batch_size, num_workers=num_workers, start=start)
    for sequences in _pack_ahead(stream, start):
        for shares in dealer.add(sequences):
            yield from map(_make_row, shares)
    for shares in dealer.finish():
        yield from map(_make_row, shares)


def _pack_ahead(stream: Stream, start: Position) -> Iterator[Batch]:
    """Yield the sequences of each shuffle block from `start` on, packed by other tasks."""
    pack = _pack_block.options(num_cpus=stream.config.cpus_per_task)
    stream_ref = ray.put(stream)
    tasks: deque[ray.ObjectRef[Batch]] = deque()
    for number in range(start.shuffle_block, stream.num_shuffle_blocks):
        tasks.append(pack.remote(stream_ref, start, number))
        if len(tasks) > _NUM_BLOCKS_AHEAD:
            yield _get_block(tasks.popleft())
    while tasks:
        yield _get_block(tasks.popleft())


def _get_block(task: "ray.ObjectRef[Batch]") -> Batch:
    """Return the result of a task. Raise the error of the task itself, such as a DataError."""
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


@ray.remote
def _pack_block(stream: Stream, start: Position, number: int) -> Batch:
    """Return the remaining sequences of one shuffle block."""
    return stream.pack_remaining_shuffle_block(start, number)


def _make_row(share: Batch) -> Block:
    """Return the share as one row of the dataset, by a new first axis."""
    return BlockAccessor.batch_to_block({name: column[None] for name, column in share.items()})
