"""Caption windows of drawings on a Ray cluster: one task reads them, and actors caption them.

The task runs on the node of this process, so the other nodes need no access to local inputs. They
need the base model and the adapter.
"""

import os
import pickle
import socket
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import chdir, closing
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from app.errors import UserError
from app.gemma.base_model import load_model_config
from app.jobs.caption_journal import CaptionedDrawing
from app.jobs.caption_windows import (
    BATCHES_PER_WINDOW,
    caption_window,
    read_drawings,
    split_into_windows,
)
from app.jobs.cluster import is_ray_private
from app.jobs.evaluation_actors import Row, map_by_actors
from app.jobs.job import connect_workers
from app.jobs.open_captioner import CaptionEngine, open_engine
from app.jobs.trained_model import TrainedModel
from data_pipeline.config import DrawingsConfig
from data_pipeline.errors import DataError
from data_pipeline.stream.ray_dataset import build_ordered_dataset

COLUMN = "pickled"
"""Column of the rows between the processes: a window, its captions, or the error of the user."""


def caption_on_ray(
    inputs: Sequence[str],
    drawings: DrawingsConfig,
    model: TrainedModel,
    num_read: int,
    missed: Collection[int],
    write: Callable[[list[CaptionedDrawing]], None],
) -> None:
    """Write the captions of each window of drawings.

    Captions those after the first `num_read`, and before them those with a number in `missed`.
    Connects to Ray (see `connect_workers`) until the last window. There are at most
    `scaling.num_workers` actors; each takes the resources of a training worker. Ray restarts an
    actor that dies, and repeats its windows.

    Raises UserError or DataError if an input or the model cannot be read, or if there is no room.
    """
    if is_ray_private():
        load_model_config(model.config.model)  # raises UserError before Ray starts
    with connect_workers(model.config, 1, with_data_task=False):
        captions = _caption_windows(inputs, drawings, model, num_read, missed)
        with closing(captions):
            for captioned in captions:
                write(captioned)


def _caption_windows(
    inputs: Sequence[str],
    drawings: DrawingsConfig,
    model: TrainedModel,
    num_read: int,
    missed: Collection[int],
) -> Generator[list[CaptionedDrawing]]:
    """Yield the captions of each window. Needs a connected Ray."""
    size = BATCHES_PER_WINDOW * model.config.evaluate.generation_batch_size
    read = partial(_read_windows, os.getcwd(), inputs, drawings, num_read, missed, size)
    windows = build_ordered_dataset(read, on_this_node=True)
    with map_by_actors(windows, WindowCaptioner, (model,), model.config.scaling) as rows:
        for row in rows:
            captioned = pickle.loads(row[COLUMN])
            if isinstance(captioned, Exception):
                raise captioned
            yield captioned


def _read_windows(
    folder: str,
    inputs: Sequence[str],
    drawings: DrawingsConfig,
    num_read: int,
    missed: Collection[int],
    size: int,
) -> Iterator[pa.Table]:
    """Yield one row for each window of drawings; paths are relative to `folder`.

    An error of the user is a row, because Ray Data would repeat the task.
    """
    with chdir(folder):
        try:
            records = read_drawings(inputs, drawings)
            left = (each for each in records if each.number >= num_read or each.number in missed)
            for window in split_into_windows(left, size):
                yield pa.table({COLUMN: [pickle.dumps(window)]})
        except (UserError, DataError) as error:
            yield pa.table({COLUMN: [pickle.dumps(error)]})


class WindowCaptioner:
    """Callable class of Ray Data: a window of drawings → their captions."""

    def __init__(self, model: TrainedModel) -> None:
        self._model = model

    def __call__(self, row: Row) -> list[Row]:
        """Return the row with the captions, or with an error of the user."""
        window = pickle.loads(row[COLUMN])
        if isinstance(window, Exception):
            return [row]
        captioned: Any = []
        try:
            caption_window(self._captioner, window, self._model.config.data, captioned.extend)
        except (UserError, DataError) as error:
            captioned = error
        return [{COLUMN: pickle.dumps(captioned)}]

    @cached_property
    def _captioner(self) -> CaptionEngine:
        """The model; not in `__init__`, because Ray Data would start a failed actor for ever."""
        adapter = self._model.adapter
        if "://" not in adapter and not Path(adapter).is_dir():
            raise UserError(
                f"node {socket.gethostname()} has no folder {adapter}: put the model into a folder "
                "that all nodes share, or at a URI"
            )
        return open_engine(self._model.config, adapter)
