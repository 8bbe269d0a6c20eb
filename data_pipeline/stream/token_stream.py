"""All epochs as windows of packed rows, and how they are dealt to workers. Knows no Ray, no model, no trainer.

A window of examples is shuffled, encoded and packed by a pure function of its number, so a position is a few
integers, and packed row n is the same whatever the number of workers.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from data_pipeline.config import DataConfig
from data_pipeline.errors import DataError
from data_pipeline.shards import ShardRow, open_shards
from data_pipeline.stream.cache import encode_cached
from data_pipeline.stream.encode import IGNORED, Example, PromptEncoder
from data_pipeline.stream.pack import PackedRow, pack

Column = npt.NDArray[np.int32]
Batch = dict[str, Column]
"""Columns of packed rows. `input_ids`, `position_ids`, `targets` [rows, max_row_tokens], padded with the pad
id, 0 and IGNORED. The rest are [rows]: `window`, `index`, `window_rows` say where a row stands (Position),
`num_examples`, `num_tokens` what it holds; on the first row of a window, `left_out` and `truncated` count its
examples that were longer than a packed row. Only with `ledger`: `rows` [rows, n] numbers the examples of each packed
row in their split, padded with -1."""

_Numbered = tuple[int, Example]
"""An example and the number of its row in the split."""


@dataclass(frozen=True, order=True)
class Position:
    """The packed row that comes next; later positions are greater."""

    window: int = 0
    """Windows finished, counted through all epochs."""
    index: int = 0
    """Packed rows of the next window already consumed."""
    window_rows: int = 1
    """Packed rows in that window; of no meaning while index is 0."""


def progress(position: Position, num_windows: int) -> float:
    """Share of all epochs that is done, from 0 to 1, where an epoch's windows count alike."""
    return (position.window + position.index / position.window_rows) / num_windows


@dataclass(frozen=True)
class Stream:
    """All epochs of the train split, and the validation split, as windows of packed rows."""

    config: DataConfig
    tokenizer: str
    """Folder or hub name, as PromptEncoder takes it."""
    epochs: int

    @property
    def num_train_rows(self) -> int:
        """Examples in an epoch."""
        return self._num_rows("train", self.config.max_train_rows)

    @property
    def num_windows_per_epoch(self) -> int:
        return math.ceil(self.num_train_rows / self.config.window_rows)

    @property
    def num_windows(self) -> int:
        """Windows in all epochs: where the stream ends."""
        return self.epochs * self.num_windows_per_epoch

    def window(self, number: int) -> Batch:
        """Packed rows of a window, 0 ≤ number < num_windows: a pure function of shards, config and number."""
        epoch, turn = divmod(number, self.num_windows_per_epoch)
        seed = self.config.seed
        window = int(
            np.random.default_rng((seed, epoch)).permutation(self.num_windows_per_epoch)[turn]
        )
        # + 1: numpy seeds (seed, epoch, 0) and (seed, epoch) alike.
        order = np.random.default_rng((seed, epoch, window + 1))
        return self._pack(self._examples("train", window, self.num_train_rows), number, order)

    def remaining(self, start: Position, number: int) -> Batch:
        """What of a window, number ≥ start.window, is left at a position."""
        window = self.window(number)
        return _part(window, slice(start.index, None)) if number == start.window else window

    def row_ids(self, rows: Sequence[int]) -> list[str]:
        """Ids of rows of the train split, by their numbers."""
        found: dict[int, str] = {}
        for window in sorted({row // self.config.window_rows for row in rows}):
            first, read = self._read("train", window, self.num_train_rows)
            found |= {first + i: row.id for i, row in enumerate(read)}
        return [found[row] for row in rows]

    def validation_windows(self) -> Iterator[Batch]:
        """Packed rows of the validation split, in the order of the shards."""
        num_rows = self._num_rows("validation", self.config.max_validation_rows)
        for window in range(math.ceil(num_rows / self.config.window_rows)):
            yield self._pack(self._examples("validation", window, num_rows), window)

    def _num_rows(self, split: str, limit: int | None) -> int:
        num_rows = _shards(self.config.shards).num_rows(split)
        if not num_rows:
            raise DataError(
                f"the {split} split of {self.config.shards!r} is empty: "
                "prepare it from more rows, or with another --validation-share"
            )
        return num_rows if limit is None else min(num_rows, limit)

    def _read(self, split: str, window: int, num_rows: int) -> tuple[int, list[ShardRow]]:
        """Number of the window's first row in the split, and its rows."""
        start = window * self.config.window_rows
        return start, _shards(self.config.shards).read(
            split, start, min(start + self.config.window_rows, num_rows)
        )

    def _examples(self, split: str, window: int, num_rows: int) -> list[_Numbered]:
        first, rows = self._read(split, window, num_rows)
        encoder = _encoder(self.tokenizer, self.config.system)
        pairs = [(row.svg, row.caption) for row in rows]
        cache = self.config.cache
        examples = (
            encoder.encode_batch(pairs) if cache is None else encode_cached(encoder, pairs, cache)
        )
        return [*enumerate(examples, first)]

    def _pack(
        self, examples: Sequence[_Numbered], number: int, order: np.random.Generator | None = None
    ) -> Batch:
        length = self.config.max_row_tokens
        encoder = _encoder(self.tokenizer, self.config.system)
        if order is not None:
            examples = [examples[i] for i in order.permutation(len(examples))]
        fitting, num_truncated = self._fitted(encoder, examples)
        packed = pack([example for _, example in fitting], length)
        packed = packed or [_NOTHING]  # to carry the counts
        if order is not None:
            order.shuffle(packed)  # pack() puts the rows with the longest examples first
        num_rows = len(packed)
        columns = {
            "input_ids": _padded([row.input_ids for row in packed], length, encoder.pad_id),
            "position_ids": _padded([row.position_ids for row in packed], length, 0),
            "targets": _padded([row.targets for row in packed], length, IGNORED),
            "window": np.full(num_rows, number, np.int32),
            "index": np.arange(num_rows, dtype=np.int32),
            "window_rows": np.full(num_rows, num_rows, np.int32),
            "num_examples": np.array([len(row.members) for row in packed], np.int32),
            "num_tokens": np.array([len(row.input_ids) for row in packed], np.int32),
            "left_out": np.array([len(examples) - len(fitting)] + [0] * (num_rows - 1), np.int32),
            "truncated": np.array([num_truncated] + [0] * (num_rows - 1), np.int32),
        }
        if self.config.ledger:
            rows = [np.array([fitting[i][0] for i in row.members], np.int32) for row in packed]
            columns["rows"] = _padded(rows, max(1, length // encoder.min_tokens), -1)
        return columns

    def _fitted(
        self, encoder: PromptEncoder, examples: Sequence[_Numbered]
    ) -> tuple[list[_Numbered], int]:
        """The examples that fit into a packed row, and how many of them had to be truncated for it."""
        fitting: list[_Numbered] = []
        num_truncated = 0
        for row, example in examples:
            fitted: Example | None = example
            if len(example.input_ids) > self.config.max_row_tokens:
                refuse = self.config.too_long == "refuse"
                fitted = None if refuse else encoder.truncated(example, self.config.max_row_tokens)
                num_truncated += fitted is not None
            if fitted is not None:
                fitting.append((row, fitted))
        return fitting, num_truncated


_NO_TOKENS = np.zeros(0, np.int32)
_NOTHING = PackedRow(_NO_TOKENS, _NO_TOKENS, _NO_TOKENS, members=())


def _padded(rows: Sequence[Column], length: int, fill: int) -> Column:
    padded = np.full((len(rows), length), fill, np.int32)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded


def deal(
    windows: Iterable[Batch], *, micro_batch_rows: int, rank: int, num_workers: int
) -> Iterator[tuple[Batch, Position]]:
    """One worker's micro-batches, each with the position of the whole job after all workers' micro-batches.

    With B = micro_batch_rows and W = num_workers, the workers together take rows [kBW, (k+1)BW) as their k-th
    micro-batches, this one the rank-th B of them. The last are filled up with rows that are not trained on:
    IGNORED targets, no tokens, no examples.
    """
    own = slice(rank * micro_batch_rows, (rank + 1) * micro_batch_rows)
    for rows in _groups(windows, micro_batch_rows * num_workers):
        # Copied, since what Ray hands out is read-only and stays in its object store while a part is in use.
        yield {name: column[own].copy() for name, column in rows.items()}, _after(rows)


def _groups(windows: Iterable[Batch], num_rows: int) -> Iterator[Batch]:
    """The windows' rows, cut anew every num_rows; the last group is filled up."""
    pending: Batch = {}
    expected: Position | None = None
    for window in windows:
        first = int(window["window"][0]), int(window["index"][0])
        assert expected is None or first == (expected.window, expected.index), (first, expected)
        expected = _after(window)
        pending = _concatenate(pending, window) if pending else window
        while len(pending["index"]) >= num_rows:
            yield _part(pending, slice(num_rows))
            pending = _part(pending, slice(num_rows, None))
    if pending and len(pending["index"]):
        yield _concatenate(pending, _filler(pending, num_rows - len(pending["index"])))


def _after(rows: Batch) -> Position:
    """The position after the last of these rows."""
    window, index, window_rows = (
        int(rows[name][-1]) for name in ("window", "index", "window_rows")
    )
    return (
        Position(window, index + 1, window_rows)
        if index + 1 < window_rows
        else Position(window + 1)
    )


def _part(rows: Batch, part: slice) -> Batch:
    return {name: column[part] for name, column in rows.items()}


def _concatenate(head: Batch, tail: Batch) -> Batch:
    return {name: np.concatenate([head[name], tail[name]]) for name in head}


def _filler(rows: Batch, num_rows: int) -> Batch:
    """The last row again and again, with nothing to learn and nothing to count in it."""
    filler = {name: np.repeat(column[-1:], num_rows, axis=0) for name, column in rows.items()}
    nothing = {
        "targets": IGNORED,
        "num_examples": 0,
        "num_tokens": 0,
        "left_out": 0,
        "truncated": 0,
        "rows": -1,
    }
    for name in nothing.keys() & filler.keys():
        filler[name][:] = nothing[name]
    return filler


def validation_batches(
    stream: Stream, *, micro_batch_rows: int, rank: int, num_workers: int
) -> list[Batch]:
    """This worker's share of the validation split, without Ray; all workers get as many batches."""
    windows = stream.validation_windows()
    dealt = deal(windows, micro_batch_rows=micro_batch_rows, rank=rank, num_workers=num_workers)
    return [batch for batch, _ in dealt]


_shards = cache(open_shards)
_encoder = cache(PromptEncoder)
