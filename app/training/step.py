"""One optimizer step, and the mean loss of an evaluation: sums and counts over rows, micro-batches and workers, divided
once. Knows torch and the stream's columns; never Ray, never MLflow.
"""

import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from app.gemma.load import evaluating
from app.training.parallel import World, all_reduce, reshard
from data_pipeline.stream.encode import IGNORED
from data_pipeline.stream.token_stream import Batch


@dataclass(frozen=True)
class StepTotals:
    """Sums over the micro-batches of all workers in one optimizer step."""

    targets: int
    tokens: int
    slots: int
    examples: int
    left_out: int
    truncated: int


def step_totals(micro_batches: Sequence[Batch], world: World) -> StepTotals:
    """Counted on the host before the forward pass, so that no device has to be waited for."""
    sums = [
        (
            int((batch["targets"] != IGNORED).sum()), int(batch["num_tokens"].sum()), batch["input_ids"].size,
            int(batch["num_examples"].sum()), int(batch["left_out"].sum()), int(batch["truncated"].sum()),
        )
        for batch in micro_batches
    ]  # fmt: skip
    return StepTotals(
        *map(int, all_reduce(torch.tensor(sums, dtype=torch.int64).sum(dim=0), world).tolist())
    )


def train_step(
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[Batch],
    *,
    num_targets: int,
    rate: float,
    max_grad_norm: float,
    seed: tuple[int, int],
    world: World,
    scale: float = 1.0,
) -> tuple[float, float]:
    """One optimizer step; returns (mean loss in nats per target, gradient norm before clipping). Where either is not
    finite, nothing is changed."""
    loss = gradients(
        objective, micro_batches, num_targets=num_targets, seed=seed, world=world, scale=scale
    )
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = float(nn.utils.clip_grad_norm_(trained, max_grad_norm))
    if math.isfinite(loss) and math.isfinite(norm):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss, norm


def gradients(
    objective: nn.Module,
    micro_batches: Sequence[Batch],
    *,
    num_targets: int,
    seed: tuple[int, int],
    world: World,
    scale: float,
) -> float:
    """Adds the gradients of one step; returns the mean loss in nats per target, of all workers.

    Dropout is a pure function of (seed, step, place of the micro-batch in the stream): the same for any number of
    workers, and after any restart, with no generator state to keep. The loss is multiplied with `scale` on its way
    backward, and the gradients are divided by it.
    """
    loss_sum = torch.zeros((), dtype=torch.float64, device=world.device)
    for i, batch in enumerate(micro_batches):
        torch.manual_seed(
            int(np.random.SeedSequence((*seed, i * world.size + world.rank)).generate_state(1)[0])
        )
        summed_later = (
            isinstance(objective, nn.parallel.DistributedDataParallel)
            and i < len(micro_batches) - 1
        )
        with objective.no_sync() if summed_later else nullcontext():  # type: ignore[operator]
            part, _ = objective(**tensors(batch, world.device))
            # Gradients are averaged over workers; the loss is a mean over the targets of all of them.
            (part * (scale * world.size / num_targets)).backward()
        loss_sum += part.detach().double()
    if scale != 1.0:
        for parameter in objective.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(scale)
    return all_reduce(loss_sum, world).item() / num_targets


def mean_loss(objective: nn.Module, batches: Iterable[Batch], world: World) -> float:
    """Mean loss (nats per target) over this worker's batches and those of all others."""
    inner = (
        objective.module
        if isinstance(objective, nn.parallel.DistributedDataParallel)
        else objective
    )
    sums = torch.zeros(2, dtype=torch.float64, device=world.device)
    with evaluating(inner):
        for batch in batches:
            loss_sum, count = inner(**tensors(batch, world.device))
            sums += torch.stack([loss_sum.double(), count.double()])
    reshard(inner)
    loss_sum, count = all_reduce(sums, world).tolist()
    return float(loss_sum / count)


def tensors(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """The objective's arguments, int64 on the device."""
    names = ("input_ids", "position_ids", "targets")
    return {
        name: torch.as_tensor(batch[name]).to(device, torch.int64, non_blocking=True)
        for name in names
    }
