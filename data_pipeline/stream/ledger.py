"""Which rows each step trained on, in Parquet files that a person can query. Knows no Ray and no trainer.

ledger/00000020-1.parquet   epoch, step, rank, record_id: what rank 1 trained on in the steps up to the 20th that no
                            earlier file of its holds. Step 20 may be a checkpoint, the steps between are not.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from data_pipeline.filesystem import open_filesystem
from data_pipeline.stream.token_stream import Batch, Stream

_SCHEMA = pa.schema(
    [("epoch", pa.int32()), ("step", pa.int32()), ("rank", pa.int32()), ("record_id", pa.string())]
)


class Ledger:
    """One worker's. In memory are the row numbers of the steps since the last `write`."""

    def __init__(self, folder: str, stream: Stream, *, rank: int) -> None:
        self._fs, self._path = open_filesystem(folder)
        self._stream, self._rank = stream, rank
        self._pending: list[npt.NDArray[np.int32]] = []

    def forget_after(self, step: int) -> None:
        """Remove all workers' entries of later steps: the job goes on from the checkpoint of this one.

        For one worker to call, before any other writes. Since files are written before their checkpoint is
        reported, and none reaches over one, what remains is what the checkpoint has seen.
        """
        selector = pyarrow.fs.FileSelector(self._path, allow_not_found=True)
        for info in self._fs.get_file_info(selector):
            last_step = info.base_name.partition("-")[0]
            if (
                not last_step.isdigit() or int(last_step) > step
            ):  # not a number: left by a killed writer
                self._fs.delete_file(info.path)

    def add(self, step: int, micro_batches: Sequence[Batch]) -> None:
        """This worker's micro-batches of a step."""
        for batch in micro_batches:
            sequence, place = np.nonzero(batch["example_numbers"] >= 0)
            epochs = batch["shuffle_block"][sequence] // self._stream.num_shuffle_blocks_per_epoch
            rows = batch["example_numbers"][sequence, place]
            self._pending.append(np.stack([epochs, np.full_like(rows, step), rows]))

    def write(self, last_step: int) -> None:
        """Write what was added since the last time, before the checkpoint of this step is reported."""
        if not self._pending:
            return
        (epochs, steps, rows), self._pending = np.concatenate(self._pending, axis=1), []
        ranks = np.full_like(rows, self._rank)
        table = pa.table(
            [epochs, steps, ranks, self._stream.record_ids(rows.tolist())], schema=_SCHEMA
        )
        name = f"{last_step:08d}-{self._rank}.parquet"
        self._fs.create_dir(self._path, recursive=True)
        pq.write_table(table, f"{self._path}/.{name}", filesystem=self._fs)
        self._fs.move(f"{self._path}/.{name}", f"{self._path}/{name}")
