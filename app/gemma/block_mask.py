"""Plan which keys each block of queries needs, from documents and window, once per batch.

It does not depend on scores or on the model.
"""

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
"""Most keys in one tile (tokens).

Scores of 8 heads, 128 queries and 512 keys take 2 MiB in fp32, so that they fit the cache.
"""

Ints = npt.NDArray[np.int64]
T = TypeVar("T")
Masks = dict[tuple[bytes, int, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Tile:
    """The keys [start, stop) that some query of a block sees."""

    start: int
    stop: int
    bias: Tensor | None
    """[queries, 1, keys] to add to scores: 0 where seen, -inf where not.

    None if every query sees every key.
    """
    seen: Tensor | None
    """[queries, 1, keys] to multiply weights by: 1 where seen, 0 where not. None as for `bias`."""


@dataclass(frozen=True)
class Block:
    """The queries [start, stop) of one sequence, and their tiles.

    Every query sees a key of the first tile: its own.
    """

    start: int
    stop: int
    tiles: tuple[Tile, ...]


BlockPlan = tuple[tuple[Block, ...], ...]
"""The blocks of every sequence. Scores outside all tiles are never computed."""


def plan_blocks(
    document_ids: Tensor | None, batch: int, length: int, window: int | None
) -> BlockPlan:
    """Plan the blocks of [batch, length] tokens on the host.

    document_ids is [batch, length]: a document is a run of equal ids; None means one document per
    sequence. A query sees itself and the keys before it in its own document, of which only the last
    `window` - 1 if there is a window.

    >>> blocks = plan_blocks(None, batch=1, length=600, window=128)[0]
    >>> [(block.start, block.stop, block.tiles[0].start) for block in blocks]
    [(0, 120, 0), (120, 240, 0), (240, 360, 113), (360, 480, 233), (480, 600, 353)]
    """
    masks: Masks = {}
    if document_ids is None:
        return (_plan_sequence(np.zeros(1, np.int64), length, window, masks),) * batch

    sequences = []
    for ids in document_ids.numpy():
        starts = np.flatnonzero(np.diff(ids, prepend=ids[0] - 1))
        sequences.append(_plan_sequence(starts, length, window, masks))
    return tuple(sequences)


def _plan_sequence(
    document_starts: Ints, length: int, window: int | None, masks: Masks
) -> tuple[Block, ...]:
    """Plan the blocks of one sequence."""
    # first key that each query sees [length]
    first_keys = np.repeat(document_starts, np.diff(document_starts, append=length))
    if window is not None:
        first_keys = np.maximum(first_keys, np.arange(length) - (window - 1))

    blocks = []
    for start, stop in _cut_into_blocks(document_starts.tolist(), length):
        # First keys never decrease: no later query of the block sees further back.
        low = int(first_keys[start])
        num_tiles = -(-(stop - low) // MAX_KEYS)
        edges = [stop - (stop - low) * i // num_tiles for i in range(num_tiles + 1)]
        tiles = tuple(
            Tile(left, right, *_mask_tile(first_keys[start:stop], start, left, right, masks))
            for right, left in itertools.pairwise(edges)
        )
        blocks.append(Block(start, stop, tiles))
    return tuple(blocks)


def _cut_into_blocks(document_starts: list[int], length: int) -> list[tuple[int, int]]:
    """Return blocks [start, stop) of at most MAX_QUERIES tokens.

    Whole short documents share a block; a long document is cut evenly into blocks of its own.
    """
    cuts = [0]
    for start, end in zip(document_starts, [*document_starts[1:], length], strict=True):
        if end - cuts[-1] <= MAX_QUERIES:
            continue  # it may share a block with those before it
        if cuts[-1] != start:
            cuts.append(start)
        num_parts = -(-(end - start) // MAX_QUERIES)
        if num_parts > 1:
            cuts += [start + (end - start) * i // num_parts for i in range(1, num_parts + 1)]

    if cuts[-1] != length:
        cuts.append(length)
    return list(itertools.pairwise(cuts))


def _mask_tile(
    first_keys: Ints, start: int, left: int, right: int, masks: Masks
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Return `bias` and `seen` of the tile of keys [left, right) for the queries from `start` on.

    `first_keys` holds the first key that each of these queries sees. Equal masks are made once and
    kept in `masks`: the diagonal tiles of a long document are all equal.
    """
    if right - 1 <= start and first_keys[-1] <= left:
        return None, None

    relative = np.clip(first_keys - left, 0, right - left)
    kind = (relative.tobytes(), start - left, right - left)
    if kind not in masks:
        keys = np.arange(right - left)
        queries = np.arange(len(first_keys)) + (start - left)
        seen = (keys >= relative[:, None]) & (keys <= queries[:, None])
        masks[kind] = (
            torch.tensor(np.where(seen, np.float32(0), np.float32("-inf")))[:, None],
            torch.tensor(seen.astype(np.float32))[:, None],
        )
    return masks[kind]


_kept: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # tensor → (its version, {key: result})


def cache_per_tensor(tensor: Tensor, key: tuple[Any, ...], make: Callable[[], T]) -> T:
    """Return make(), computed once per key for this tensor in its present version.

    All layers of a batch share the result. It is computed again for another tensor, and after an
    in-place change of this one.
    """
    version, results = _kept.get(tensor, (None, {}))
    if version != tensor._version:
        results = {}
        _kept[tensor] = (tensor._version, results)

    if key not in results:
        results[key] = make()
    result: T = results[key]
    return result
