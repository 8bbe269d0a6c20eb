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

from app.gemma.load import evaluation_mode
from app.training.parallel import TrainContext, all_reduce_sum, reshard_model
from data_pipeline.stream.encode import IGNORE_INDEX
from data_pipeline.stream.token_stream import Batch


@dataclass(frozen=True)
class StepTotals:
    """Sums over the micro-batches of all workers in one optimizer step."""

    targets: int
    tokens: int
    slots: int
    examples: int
    dropped: int
    truncated: int


def count_step_totals(micro_batches: Sequence[Batch], context: TrainContext) -> StepTotals:
    """Counted on the host before the forward pass, so that no device has to be waited for."""
    sums = [
        (
            int((batch["targets"] != IGNORE_INDEX).sum()), int(batch["num_tokens"].sum()), batch["input_ids"].size,
            int(batch["num_examples"].sum()), int(batch["num_dropped"].sum()), int(batch["num_truncated"].sum()),
        )
        for batch in micro_batches
    ]  # fmt: skip
    return StepTotals(
        *map(
            int, all_reduce_sum(torch.tensor(sums, dtype=torch.int64).sum(dim=0), context).tolist()
        )
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
    context: TrainContext,
    scale: float = 1.0,
) -> tuple[float, float]:
    """One optimizer step; returns (mean loss in nats per target, gradient norm before clipping). Where either is not
    finite, nothing is changed."""
    loss = accumulate_gradients(
        objective, micro_batches, num_targets=num_targets, seed=seed, context=context, scale=scale
    )
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = float(nn.utils.clip_grad_norm_(trained, max_grad_norm))
    if math.isfinite(loss) and math.isfinite(norm):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss, norm


def accumulate_gradients(
    objective: nn.Module,
    micro_batches: Sequence[Batch],
    *,
    num_targets: int,
    seed: tuple[int, int],
    context: TrainContext,
    scale: float,
) -> float:
    """Adds the gradients of one step; returns the mean loss in nats per target, of all workers.

    Dropout is a pure function of (seed, step, place of the micro-batch in the stream): the same for any number of
    workers, and after any restart, with no generator state to keep. The loss is multiplied with `scale` on its way
    backward, and the gradients are divided by it.
    """
    loss_sum = torch.zeros((), dtype=torch.float64, device=context.device)
    for i, batch in enumerate(micro_batches):
        torch.manual_seed(
            int(
                np.random.SeedSequence((*seed, i * context.size + context.rank)).generate_state(1)[
                    0
                ]
            )
        )
        summed_later = (
            isinstance(objective, nn.parallel.DistributedDataParallel)
            and i < len(micro_batches) - 1
        )
        with objective.no_sync() if summed_later else nullcontext():  # type: ignore[operator]
            part, _ = objective(**move_to_device(batch, context.device))
            # Gradients are averaged over workers; the loss is a mean over the targets of all of them.
            (part * (scale * context.size / num_targets)).backward()
        loss_sum += part.detach().double()
    if scale != 1.0:
        for parameter in objective.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(scale)
    return all_reduce_sum(loss_sum, context).item() / num_targets


def compute_mean_loss(
    objective: nn.Module, batches: Iterable[Batch], context: TrainContext
) -> float:
    """Mean loss (nats per target) over this worker's batches and those of all others."""
    inner = (
        objective.module
        if isinstance(objective, nn.parallel.DistributedDataParallel)
        else objective
    )
    sums = torch.zeros(2, dtype=torch.float64, device=context.device)
    with evaluation_mode(inner):
        for batch in batches:
            loss_sum, count = inner(**move_to_device(batch, context.device))
            sums += torch.stack([loss_sum.double(), count.double()])
    reshard_model(inner)
    loss_sum, count = all_reduce_sum(sums, context).tolist()
    return float(loss_sum / count)


def move_to_device(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """The objective's arguments, int64 on the device."""
    names = ("input_ids", "position_ids", "targets")
    return {
        name: torch.as_tensor(batch[name]).to(device, torch.int64, non_blocking=True)
        for name in names
    }
