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
        self._buffer = np.empty(_BUFFER_ROWS, self._type)
        self._num_buffered = 0
        self._num_rows = 0

    def __len__(self) -> int:
        return self._num_rows

    def add(self, columns: Any) -> None:
        """Add rows: a mapping of names to arrays, or a structured array. Other columns are ignored.

        An array has shape [num_rows].
        """
        num_rows = len(columns[self._columns[0]])
        start = 0
        while start < num_rows:
            if self._num_buffered == _BUFFER_ROWS:
                self._flush()
            stop = min(num_rows, start + _BUFFER_ROWS - self._num_buffered)
            rows = self._buffer[self._num_buffered : self._num_buffered + stop - start]
            for name in self._columns:
                rows[name] = columns[name][start:stop]
            self._num_buffered += len(rows)
            start = stop
        self._num_rows += num_rows

    def read(self) -> Iterator[Any]:
        """Yield each partition as a structured array of shape [num_rows]."""
        if self._num_rows == self._num_buffered:
            yield self._buffer[: self._num_rows].copy()
            return

        if self._num_buffered:
            self._flush()
        for path in sorted(self._folder.iterdir()):
            yield np.fromfile(path, self._type)

    def _flush(self) -> None:
        rows = self._buffer[: self._num_buffered]
        self._num_buffered = 0
        self._folder.mkdir(exist_ok=True)

        numbers = (rows[self._columns[0]] % np.uint64(_NUM_PARTITIONS)).astype(np.uint8)
        order = np.argsort(numbers, kind="stable")
        numbers, rows = numbers[order], rows[order]
        found, starts = np.unique(numbers, return_index=True)
        for number, part in zip(found, np.split(rows, starts[1:]), strict=True):
            with (self._folder / str(number)).open("ab") as file:
                part.tofile(file)
