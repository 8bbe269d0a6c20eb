"""Iterate over tiles: computing tile by tile saves memory."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from torch import Tensor
from torch._subclasses import FakeTensor

T = TypeVar("T")


def iterate_tiles(tiles: Sequence[T], tensor: Tensor) -> Sequence[T]:
    """Return all tiles, or only the first two if `tensor` is fake.

    Fake tensors simulate the memory of a step. The later tiles do not raise its peak.
    """
    return tiles[:2] if isinstance(tensor, FakeTensor) else tiles


def split_rows(tensors: Iterable[Tensor], num_rows: int) -> list[tuple[Tensor, ...]]:
    """Return the tiles [num_rows, ..] of tensors of equal length; the first two of fake ones."""
    kept = (
        tensor[: 2 * num_rows] if isinstance(tensor, FakeTensor) else tensor for tensor in tensors
    )
    return [*zip(*(tensor.split(num_rows) for tensor in kept), strict=True)]
