"""Parallelism of the workers: the context of the loop, sharding, and sums over torch.distributed.

With one worker no process group is needed.
"""

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
    """Interface between the training loop and the job that runs it.

    The loop reads `rank`, `size` and `device`, and calls `record` and `report`. The job implements
    them: with Ray Train and MLflow in production, with lists in tests.
    """

    rank: int
    """Index of this worker, from 0 to size - 1."""
    size: int
    """Number of workers."""
    device: torch.device
    """Device of this worker's model, batches and reductions."""

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Track the metrics of one step. The loop calls it on rank 0 only."""

    def report(self, state: Any, eval_loss: float, *, save: bool) -> None:
        """Report an evaluation, and save a checkpoint if `save`. The loop calls it on every rank.

        `state` is the loop's TrainState, and `eval_loss` is in nats per token.
        """


def wrap_model(
    objective: CaptionLoss, strategy: Strategy, *, size: int, device: torch.device
) -> nn.Module:
    """Return the module that a training step calls. Build the optimizer over it, afterwards.

    `ddp`: every worker holds the whole model.
    `zero2`: the trained weights, their gradients and moments are sharded over the workers (ZeRO,
    Rajbhandari et al. 2020, arXiv:1910.02054). The weights are gathered once a micro-batch, and the
    gradients are reduce-scattered in each, so that no worker accumulates whole gradients. The
    frozen base model stays whole.
    `fsdp`: the packed 4-bit weights and the embedding of the base model are sharded as well, and
    gathered a layer at a time. The constants of the 4-bit weights (3 % of their bytes) stay whole.

    With one worker: return the objective itself.
    """
    if size == 1:
        return objective
    if strategy == "ddp":
        devices = [device] if device.type == "cuda" else None
        return DistributedDataParallel(objective, device_ids=devices, forward_sync_buffers=False)

    mesh = init_device_mesh(device.type, (size,))
    frozen = {parameter for parameter in objective.parameters() if not parameter.requires_grad}

    # PEFT keeps the embedding that a trained one replaces. In a group of its own it is sharded and
    # never gathered.
    replaced = [
        module.original_module
        for module in objective.modules()
        if isinstance(module, ModulesToSaveWrapper)
    ]
    groups: list[Any] = list(unwrap_gemma(objective.model).model.layers)
    if replaced:
        groups.append(replaced)
    groups.append(objective)

    for group in groups:
        fully_shard(
            group,
            mesh=mesh,
            # None: reshard all groups but the outermost
            reshard_after_forward=False if strategy == "zero2" else None,
            ignored_params=frozen if strategy == "zero2" else None,
        )
    return objective


def unwrap_ddp(objective: nn.Module) -> nn.Module:
    """Return the module inside DistributedDataParallel, or the objective itself."""
    return objective.module if isinstance(objective, DistributedDataParallel) else objective


def choose_loading_device(strategy: Strategy, *, size: int, device: torch.device) -> torch.device:
    """Return the device to load the base model on.

    `fsdp` loads into host memory, from which `wrap_model` moves and shards one layer after another.
    """
    return torch.device("cpu") if strategy == "fsdp" and size > 1 else device


def reshard_model(objective: nn.Module) -> None:
    """Free the weights that a forward pass without a backward pass has gathered."""
    for module in objective.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def all_reduce_sum(values: Tensor, context: TrainContext) -> Tensor:
    """Return the sum over all workers, on the host."""
    if context.size > 1:
        values = values.to(context.device)
        dist.all_reduce(values)
    return values.cpu()


def gather_objects(value: Any, context: TrainContext) -> list[Any]:
    """Return the small values of all workers in the order of their ranks, on every worker."""
    values = [value] * context.size
    if context.size > 1:
        dist.all_gather_object(values, value)
    return values


class LocalContext:
    """TrainContext of a single process that records nothing, for evaluations outside a job."""

    rank, size = 0, 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def record(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def report(self, state: Any, eval_loss: float, *, save: bool) -> None: ...
