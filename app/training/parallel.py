"""How workers share a step: who holds what, and sums over torch.distributed; nothing at all with one worker."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
import torch.distributed as dist
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from app.gemma.load import CaptionLoss, unwrap_gemma
from app.training.config import Strategy


class TrainContext(Protocol):
    """What the loop needs of the job around it."""

    rank: int
    size: int
    device: torch.device

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Track the metrics of one step (called on rank 0 only)."""

    def report(self, state: Any, eval_loss: float, *, save: bool) -> None:
        """Tell the job of an evaluation, and save a checkpoint (called on every rank)."""


def wrap_model(
    objective: CaptionLoss, strategy: Strategy, *, size: int, device: torch.device
) -> nn.Module:
    """What a step calls; build the optimizer after it, over what this worker then holds.

    `ddp`: every worker holds the whole model. `zero2`: the trained weights, their gradients and moments are cut over
    the workers (ZeRO, Rajbhandari et al. 2020, arXiv:1910.02054); the weights are gathered once a micro-batch, and
    gradients are summed into shards in each, so that no worker accumulates whole ones. The frozen base stays whole.
    `fsdp`: the base's packed 4-bit weights and embedding are cut as well, and gathered a layer at a time. The
    constants of the 4-bit weights (3 % of their bytes) stay whole. With one worker: the module itself.
    """
    if size == 1:
        return objective
    if strategy == "ddp":
        devices = [device] if device.type == "cuda" else None
        return DistributedDataParallel(objective, device_ids=devices, forward_sync_buffers=False)
    mesh = init_device_mesh(device.type, (size,))
    frozen = {parameter for parameter in objective.parameters() if not parameter.requires_grad}
    # PEFT keeps the embedding that a trained one replaces: in a group of its own it is cut and never gathered.
    replaced = [
        m.original_module for m in objective.modules() if isinstance(m, ModulesToSaveWrapper)
    ]
    for group in [
        *unwrap_gemma(objective.model).model.layers,
        *([replaced] if replaced else []),
        objective,
    ]:
        fully_shard(
            group, mesh=mesh,
            reshard_after_forward=False if strategy == "zero2" else None,  # None: all but the outermost group
            ignored_params=frozen if strategy == "zero2" else None,
        )  # fmt: skip
    return objective


def choose_loading_device(strategy: Strategy, *, size: int, device: torch.device) -> torch.device:
    """Where the base is loaded: for `fsdp` in host memory, from which `wrap` moves and cuts one layer after another."""
    return torch.device("cpu") if strategy == "fsdp" and size > 1 else device


def reshard_model(objective: nn.Module) -> None:
    """Drop what a forward pass without a backward pass has gathered."""
    for module in objective.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def all_reduce_sum(values: Tensor, context: TrainContext) -> Tensor:
    """Sum over workers, on the host."""
    if context.size > 1:
        values = values.to(context.device)
        dist.all_reduce(values)
    return values.cpu()


def gather_objects(value: Any, context: TrainContext) -> list[Any]:
    """Every worker's small value, by rank, on all of them."""
    values = [value] * context.size
    if context.size > 1:
        dist.all_gather_object(values, value)
    return values


class LocalContext:
    """One process, nothing recorded: for evaluations outside a job."""

    rank, size = 0, 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def record(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def report(self, state: Any, eval_loss: float, *, save: bool) -> None: ...
