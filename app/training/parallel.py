"""How workers share a step: sums and gathers over torch.distributed, or nothing at all with one worker."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn


class World(Protocol):
    """What the loop needs of the job around it."""

    rank: int
    size: int
    device: torch.device

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Track the metrics of one step (called on rank 0 only)."""

    def report(self, state: Any, eval_loss: float, *, save: bool) -> None:
        """Tell the job of an evaluation, and save a checkpoint (called on every rank)."""


def wrap(objective: nn.Module, world: World) -> nn.Module:
    """DDP over the trained parameters; with one worker the module itself."""
    if world.size == 1:
        return objective
    devices = [world.device] if world.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(objective, device_ids=devices, forward_sync_buffers=False)


def all_reduce(values: Tensor, world: World) -> Tensor:
    """Sum over workers, on the host."""
    if world.size > 1:
        values = values.to(world.device)
        dist.all_reduce(values)
    return values.cpu()


def gather(value: Any, world: World) -> list[Any]:
    """Every worker's small value, by rank, on all of them."""
    values = [value] * world.size
    if world.size > 1:
        dist.all_gather_object(values, value)
    return values


class Alone:
    """One process, nothing recorded: for evaluations outside a job."""

    rank, size = 0, 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def record(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def report(self, state: Any, eval_loss: float, *, save: bool) -> None: ...
