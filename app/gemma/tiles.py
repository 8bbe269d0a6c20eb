"""Work that is done tile by tile, for the sake of memory."""

from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor
from torch._subclasses import FakeTensor

T = TypeVar("T")


def iterate_tiles(tiles: Sequence[T], of: Tensor) -> Sequence[T]:
    """All of the tiles; where `of` is fake, in a simulation of memory, the first two: the others take no more."""
    return tiles[:2] if isinstance(of, FakeTensor) else tiles
