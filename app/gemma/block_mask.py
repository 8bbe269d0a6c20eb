"""Which keys each block of queries needs: from documents and window, once a batch. Knows no scores and no model."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

MAX_QUERIES = 128
"""Most queries in one block (tokens): short documents share a block, longer ones are cut evenly."""
MAX_KEYS = 512
"""Most keys in one tile (tokens). Scores of 8 heads, 128 queries and 512 keys are 2 MiB in fp32: cache, not memory."""

Ints = npt.NDArray[np.int64]
T = TypeVar("T")
Masks = dict[tuple[bytes, int, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Tile:
    """Keys [first, last) that some query of a block sees."""

    first: int
    last: int
    bias: Tensor | None
    """[queries, 1, keys] to add to scores: 0 where seen, -inf where not; None where every query sees every key."""
    seen: Tensor | None
    """[queries, 1, keys] to multiply weights by: 1 and 0."""


@dataclass(frozen=True)
class Block:
    """Queries [first, last) of one row, and their tiles: every query sees a key in the first one, its own."""

    first: int
    last: int
    tiles: tuple[Tile, ...]


BlockPlan = tuple[tuple[Block, ...], ...]
"""The blocks of every row. What is in no tile is never computed."""


def plan_blocks(
    document_ids: Tensor | None, batch: int, length: int, window: int | None
) -> BlockPlan:
    """The plan of [batch, length] tokens on the host.

    document_ids [batch, length]: a document is a run of equal ids, None: one document a row. A query sees itself
    and the keys of its own document before it, of which the last `window` - 1 (None: all):

    >>> [(block.first, block.last, block.tiles[0].first) for block in plan_blocks(None, 1, 600, 128)[0]]
    [(0, 120, 0), (120, 240, 0), (240, 360, 113), (360, 480, 233), (480, 600, 353)]
    """
    masks: Masks = {}
    if document_ids is None:
        return (_blocks(np.zeros(1, np.int64), length, window, masks),) * batch
    ids = document_ids.numpy()
    return tuple(
        _blocks(np.flatnonzero(np.diff(row, prepend=row[0] - 1)), length, window, masks)
        for row in ids
    )


def _blocks(documents: Ints, length: int, window: int | None, masks: Masks) -> tuple[Block, ...]:
    """The blocks of one row, whose documents begin at `documents`."""
    starts = np.repeat(
        documents, np.diff(documents, append=length)
    )  # [length] first key that each query sees
    if window is not None:
        starts = np.maximum(starts, np.arange(length) - (window - 1))
    blocks = []
    for first, last in _cuts(documents.tolist(), length):
        low = int(starts[first])  # starts never fall: no later query of the block sees further back
        num_tiles = -(-(last - low) // MAX_KEYS)
        edges = [last - (last - low) * i // num_tiles for i in range(num_tiles + 1)]
        tiles = tuple(
            Tile(left, right, *_masks(starts[first:last], first, left, right, masks))
            for right, left in itertools.pairwise(edges)
        )
        blocks.append(Block(first, last, tiles))
    return tuple(blocks)


def _cuts(documents: list[int], length: int) -> list[tuple[int, int]]:
    """Blocks of at most QUERIES tokens: whole short documents together, a long one alone and in even parts."""
    cuts = [0]
    for start, end in zip(documents, [*documents[1:], length], strict=True):
        if end - cuts[-1] <= MAX_QUERIES:
            continue  # it may share a block with those before it
        if cuts[-1] != start:
            cuts.append(start)
        parts = -(-(end - start) // MAX_QUERIES)
        if parts > 1:
            cuts += [start + (end - start) * i // parts for i in range(1, parts + 1)]
    return list(zip(cuts, [*cuts[1:], length], strict=True))[: len(cuts) - (cuts[-1] == length)]


def _masks(
    starts: Ints, first: int, left: int, right: int, masks: Masks
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Bias and seen of the tile of keys [left, right) for queries from `first` on, whose first keys are `starts`."""
    if right - 1 <= first and starts[-1] <= left:
        return None, None
    relative = np.clip(starts - left, 0, right - left)
    kind = (relative.tobytes(), first - left, right - left)
    if kind not in masks:  # the diagonals of a long document are all one
        keys = np.arange(right - left)
        seen = (keys >= relative[:, None]) & (
            keys <= np.arange(len(starts))[:, None] + (first - left)
        )
        masks[kind] = (
            torch.tensor(np.where(seen, np.float32(0), np.float32("-inf")))[:, None],
            torch.tensor(seen.astype(np.float32))[:, None],
        )
    return masks[kind]


_kept: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # tensor → (its version, {what: result})


def cache_per_tensor(tensor: Tensor, what: tuple[Any, ...], make: Callable[[], T]) -> T:
    """make(), computed once for this tensor in its present state: layers of one batch share it, the next does not."""
    version, results = _kept.get(tensor, (None, {}))
    if version != tensor._version:
        results = {}
        _kept[tensor] = (tensor._version, results)
    if what not in results:
        results[what] = make()
    result: T = results[what]
    return result
