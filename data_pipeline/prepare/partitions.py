"""Rows of numbers on disk, divided by a hash, for corpora whose hashes exceed the memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_NUM_PARTITIONS = 256
_BUFFER_ROWS = 1 << 14  # rows in memory before they are written


class Partitions:
    """Rows of named numbers, divided by the first column, which is a 64-bit hash.

    Rows with an equal hash are in one partition, in the order in which they were added. A few rows
    are one partition, which stays in memory.
    """

    def __init__(self, folder: Path, columns: dict[str, str]) -> None:
        """Write the partitions to `folder`; `columns` maps names to numpy's types."""
        self._folder = folder
        self._type = np.dtype([*columns.items()])
        self._columns = list(columns)
        self._buffer: list[tuple[int, ...]] = []
        self._num_rows = 0

    def __len__(self) -> int:
        return self._num_rows

    def add(self, *row: int) -> None:
        """Add one row of values in the order of the columns."""
        self._buffer.append(row)
        self._num_rows += 1
        if len(self._buffer) >= _BUFFER_ROWS:
            self._flush()

    def add_all(self, rows: Any) -> None:
        """Add the rows of a structured array of shape [num_rows], which may have more columns."""
        for row in rows[self._columns].tolist():
            self.add(*row)

    def read(self) -> Iterator[Any]:
        """Yield each partition as a structured array of shape [num_rows]."""
        if self._num_rows == len(self._buffer):
            yield np.array(self._buffer, self._type)
            return

        self._flush()
        for path in sorted(self._folder.iterdir()):
            yield np.fromfile(path, self._type)

    def _flush(self) -> None:
        rows = np.array(self._buffer, self._type)
        self._buffer = []
        self._folder.mkdir(exist_ok=True)

        numbers = rows[self._columns[0]] % np.uint64(_NUM_PARTITIONS)
        for number in np.unique(numbers):
            with (self._folder / str(number)).open("ab") as file:
                rows[numbers == number].tofile(file)
