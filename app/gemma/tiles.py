"""Iterate over tiles: computing tile by tile saves memory."""

from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor
from torch._subclasses import FakeTensor

T = TypeVar("T")


def iterate_tiles(tiles: Sequence[T], tensor: Tensor) -> Sequence[T]:
    """Return all tiles, or only the first two if `tensor` is fake.

    Fake tensors simulate the memory of a step. The later tiles do not raise its peak.
    """
    return tiles[:2] if isinstance(tensor, FakeTensor) else tiles
