"""Ledger of the records that each step trained on, as Parquet files.

ledger/00000020-1.parquet has the columns epoch, step, rank and record_id. It lists the records that
rank 1 trained on in the steps up to step 20, from the step after the last one of its previous file.
A checkpoint can only be the last step of a file.
"""

import hashlib
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
    """Ledger of one worker.

    It keeps the example numbers of the steps since the last `write` in memory.
    """

    def __init__(self, folder: str, stream: Stream, *, rank: int) -> None:
        self._fs, self._path = open_filesystem(folder)
        self._stream, self._rank = stream, rank
        self._pending: list[npt.NDArray[np.int32]] = []
        self._digests: dict[str, str] = {}  # of each file, which never changes

    def delete_entries_after(self, step: int) -> None:
        """Remove the entries of all workers after `step`, the checkpoint that the job resumes from.

        One worker calls this before any other worker writes. Every worker writes its file before a
        checkpoint is reported, and no file spans a checkpoint. The remaining files therefore list
        exactly the examples before the checkpoint.
        """
        selector = pyarrow.fs.FileSelector(self._path, allow_not_found=True)
        for info in self._fs.get_file_info(selector):
            last_step = info.base_name.partition("-")[0]
            is_partial = not last_step.isdigit()  # a killed writer left it
            if is_partial or int(last_step) > step:
                self._fs.delete_file(info.path)

    def compute_digest(self) -> str:
        """Return the hash of the files of all workers, as `sha256sum *.parquet | sha256sum` does.

        Each worker has written its last file before. A file is read once.
        """
        selector = pyarrow.fs.FileSelector(self._path, allow_not_found=True)
        for info in self._fs.get_file_info(selector):
            if info.base_name[0].isdigit() and info.base_name not in self._digests:
                with self._fs.open_input_stream(info.path) as stream:
                    digest = hashlib.sha256(stream.read()).hexdigest()
                self._digests[info.base_name] = digest
        lines = [f"{digest}  {name}\n" for name, digest in sorted(self._digests.items())]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def add(self, step: int, micro_batches: Sequence[Batch]) -> None:
        """Add the micro-batches that this worker trained on in a step."""
        for batch in micro_batches:
            numbers = batch["example_numbers"]
            sequences, places = np.nonzero(numbers >= 0)  # -1 is padding
            shuffle_blocks = batch["shuffle_block"][sequences]

            example_numbers = numbers[sequences, places]
            epochs = shuffle_blocks // self._stream.num_shuffle_blocks_per_epoch
            steps = np.full_like(example_numbers, step)
            self._pending.append(np.stack([epochs, steps, example_numbers]))

    def write(self, last_step: int) -> None:
        """Write the entries added since the last call.

        The caller does so before it reports the checkpoint of step `last_step`.
        """
        if not self._pending:
            return

        # build the table
        epochs, steps, example_numbers = np.concatenate(self._pending, axis=1)
        self._pending = []
        ranks = np.full_like(example_numbers, self._rank)
        record_ids = self._stream.read_record_ids(example_numbers.tolist())
        table = pa.table([epochs, steps, ranks, record_ids], schema=_SCHEMA)

        # write it under a hidden name, then rename it: readers see only whole files
        name = f"{last_step:08d}-{self._rank}.parquet"
        self._fs.create_dir(self._path, recursive=True)
        pq.write_table(table, f"{self._path}/.{name}", filesystem=self._fs)
        self._fs.move(f"{self._path}/.{name}", f"{self._path}/{name}")
