"""The memory of all layers from simulations of a few.

Sliding and full attention alternate, so layers are added in pairs.
"""

from dataclasses import dataclass

from app.memory_plan.simulate import Bytes


@dataclass(frozen=True)
class PairOfLayers:
    """A simulation with two layers more, and how many such pairs the real model has more."""

    stages: dict[str, Bytes]
    position: int
    """Index of the layer before which the two are inserted."""
    number: int


def extrapolate_layers(few: dict[str, Bytes], pairs: list[PairOfLayers]) -> dict[str, Bytes]:
    """Return the stages of all layers from those of a few, and of the same with two more.

    Each further pair of layers in the middle adds the same bytes to every moment of the layers
    around it. The moments of the middle layers lie between theirs, so they cannot be the peak. This
    is exact, not a fit (tests/test_memory_plan.py).
    """
    stages = {}
    for name, live in few.items():
        # The update is a loop over more weights: take its highest moment.
        base = keep_highest(live) if name == "update" else live
        total, renamed = base, name
        for pair in pairs:
            other = pair.stages[_move_stage(name, pair.position, 2)]
            other = keep_highest(other) if name == "update" else other
            total = total + (other - base) * pair.number
        for pair in sorted(pairs, key=lambda pair: -pair.position):
            renamed = _move_stage(renamed, pair.position, 2 * pair.number)
        stages[renamed] = total
    return stages


def _move_stage(name: str, position: int, num_layers: int) -> str:
    """Return the name of a stage after `num_layers` layers are inserted before a layer."""
    kind, _, number = name.partition(" ")
    is_moved = number and int(number) >= position
    return f"{kind} {int(number) + num_layers}" if is_moved else name


def keep_highest(live: Bytes) -> Bytes:
    """Return the moment with the most live bytes [1, len(CATEGORIES)]."""
    highest: Bytes = live[live.sum(axis=1).argmax()][None]
    return highest
