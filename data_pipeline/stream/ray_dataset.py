"""The windows of packed rows as a Ray Data stream: the only file that builds Ray Data graphs.

Every worker is sent every packed row and keeps its own: a block per row would cost Ray Data tens of milliseconds
a row, and larger blocks cannot be dealt in advance, as no task knows how many rows came before.
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

from data_pipeline.stream.token_stream import Batch, Position, Stream, deal

_CHUNK_ROWS = 64  # packed rows that travel together; 6 MiB at 8,192 tokens


def dataset(stream: Stream, *, start: Position, num_workers: int) -> ray.data.Dataset:
    """The stream from `start` on, to be split among exactly `num_workers` and read by `batches`."""
    windows: ray.data.Dataset = ray.data.read_datasource(
        _Windows(stream, start, num_workers),
        num_cpus=stream.config.cpus_per_task,
        override_num_blocks=max(1, stream.num_windows - start.window),
    )
    windows.context.execution_options = ExecutionOptions(preserve_order=True)
    # Ray cuts a task's output as soon as it holds more bytes than this: after every row of the dataset, which
    # is a chunk of ours, so that chunks go round the workers in turn.
    windows.context.target_max_block_size = 1
    windows.context.enable_progress_bars = windows.context.print_on_execution_start = False
    windows.context.custom_execution_callback_classes = [_Breather]
    return windows


def data_config() -> ray.train.DataConfig:
    """What a trainer needs beside the dataset, whose own options Ray Train overwrites."""
    return ray.train.DataConfig(execution_options=ExecutionOptions(preserve_order=True))


def batches(
    shard: ray.data.DataIterator,
    *,
    micro_batch_rows: int,
    rank: int,
    num_workers: int,
    prefetch: int,
) -> Iterator[tuple[Batch, Position]]:
    """A worker's micro-batches, as `deal` gives them; about `prefetch` of them are held ready."""
    chunks = shard.iter_batches(
        batch_size=1,
        batch_format="numpy",
        prefetch_batches=math.ceil(prefetch * micro_batch_rows * num_workers / _CHUNK_ROWS),
    )
    windows = ({name: column[0] for name, column in chunk.items()} for chunk in chunks)
    return deal(windows, micro_batch_rows=micro_batch_rows, rank=rank, num_workers=num_workers)


class _Breather(ExecutionCallback):
    """Ray 2.60's scheduling loop spins while all tasks are done or held back: half a core, measured, on two.

    Nothing of ours has to be scheduled sooner than this.
    """

    def on_execution_step(self, executor: object) -> None:
        time.sleep(0.02)


class _Windows(Datasource):
    """A read task per window that is left: a single operator, which reserves CPUs once for all the work."""

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
        blocks = partial(_blocks, self._stream, self._start, self._num_workers)
        return [
            ReadTask(partial(blocks, number), unknown)
            for number in range(self._start.window, self._stream.num_windows)
        ]

    def estimate_inmemory_data_size(self) -> None:
        """Unknown before it is packed."""


def _blocks(stream: Stream, start: Position, num_copies: int, number: int) -> Iterator[Block]:
    window = stream.remaining(start, number)
    for row in range(0, len(window["index"]), _CHUNK_ROWS):
        chunk = {name: column[None, row : row + _CHUNK_ROWS] for name, column in window.items()}
        block = BlockAccessor.batch_to_block(chunk)
        for _ in range(num_copies):
            yield block
