"""One optimizer step, and the mean loss of an evaluation.

Sums and counts are taken over sequences, micro-batches and workers, and divided once.
"""

import math
import resource
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from app.errors import UserError
from app.gemma.flops import count_pairs
from app.gemma.load import evaluation_mode
from app.training.parallel import TrainContext, all_reduce_sum, reshard_model, unwrap_ddp
from data_pipeline.stream.encode import IGNORE_INDEX
from data_pipeline.stream.token_stream import Batch


@dataclass(frozen=True)
class StepInput:
    """Data and random seed of one optimizer step of one worker."""

    micro_batches: Sequence[Batch]
    """Micro-batches of this worker."""
    num_targets: int
    """Number of labelled tokens in the micro-batches of all workers."""
    seed: tuple[int, int]
    """Seed of the job, and number of optimizer steps taken before this one."""
    loss_scale: float = 1.0
    """Factor of the loss in the backward pass. The gradients are divided by it afterwards."""


@dataclass(frozen=True)
class StepTotals:
    """Sums over the micro-batches of all workers in one optimizer step."""

    num_targets: int
    num_tokens: int
    num_slots: int
    """Number of token positions, padding included."""
    num_examples: int
    num_dropped: int
    num_truncated: int
    num_pairs: int
    """Number of (query, key) pairs of one head with full attention (see `count_pairs`)."""
    num_window_pairs: int
    """The same with sliding-window attention."""


class StepOutcome(NamedTuple):
    """Mean loss and gradient norm of one optimizer step, the same on all workers."""

    loss: float
    """Mean loss (nats per target)."""
    grad_norm: float
    """Norm of all gradients before clipping."""

    @property
    def is_finite(self) -> bool:
        """True if loss and gradient norm are finite; otherwise no weight changed."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def count_step_totals(
    micro_batches: Sequence[Batch], context: TrainContext, window: int | None = None
) -> StepTotals:
    """Count targets, tokens, examples and pairs on the host; `window` is that of the model.

    Call it before the forward pass: then the device has little queued work to wait for.
    """
    counts = [
        (
            int((batch["targets"] != IGNORE_INDEX).sum()),
            int(batch["num_tokens"].sum()),
            batch["input_ids"].size,
            int(batch["num_examples"].sum()),
            int(batch["num_dropped"].sum()),
            int(batch["num_truncated"].sum()),
            count_pairs(batch["position_ids"], batch["num_tokens"], None),
            count_pairs(batch["position_ids"], batch["num_tokens"], window),
        )
        for batch in micro_batches
    ]

    local_sums = torch.tensor(counts, dtype=torch.int64).sum(dim=0)
    sums = all_reduce_sum(local_sums, context).tolist()
    return StepTotals(*map(int, sums))


def train_step(
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    step_input: StepInput,
    *,
    learning_rate: float,
    max_grad_norm: float,
    context: TrainContext,
) -> StepOutcome:
    """Run one optimizer step.

    If the loss or the gradient norm is not finite, weights and moments stay unchanged.
    """
    loss = accumulate_gradients(objective, step_input, context)

    # clip
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    outcome = StepOutcome(loss, float(nn.utils.clip_grad_norm_(trained, max_grad_norm)))

    # update
    if outcome.is_finite:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()

    optimizer.zero_grad(set_to_none=True)
    return outcome


def accumulate_gradients(
    objective: nn.Module, step_input: StepInput, context: TrainContext
) -> float:
    """Add the gradients of one step, and return the mean loss of all workers in nats per target.

    Dropout is a pure function of (seed, step, place of the micro-batch in the stream). It is the
    same for any number of workers and after any restart, without generator state in a checkpoint.
    """
    micro_batches, loss_scale = step_input.micro_batches, step_input.loss_scale
    loss_sum = torch.zeros((), dtype=torch.float64, device=context.device)

    for i, batch in enumerate(micro_batches):
        # seed dropout
        place = i * context.size + context.rank
        seed = np.random.SeedSequence((*step_input.seed, place)).generate_state(1)[0]
        torch.manual_seed(int(seed))

        # DDP reduces gradients in the last micro-batch only
        is_last = i == len(micro_batches) - 1
        is_ddp = isinstance(objective, DistributedDataParallel)
        reduce_later = objective.no_sync() if is_ddp and not is_last else nullcontext()  # type: ignore[operator]

        with reduce_later:
            micro_loss_sum, _ = objective(**move_to_device(batch, context.device))
            # Gradients are averaged over workers; the loss is a mean over the targets of all.
            factor = loss_scale * context.size / step_input.num_targets
            (micro_loss_sum * factor).backward()
        loss_sum += micro_loss_sum.detach().double()

    if loss_scale != 1.0:
        for parameter in objective.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(loss_scale)

    return all_reduce_sum(loss_sum, context).item() / step_input.num_targets


def compute_mean_loss(
    objective: nn.Module, batches: Iterable[Batch], context: TrainContext
) -> float:
    """Return the mean loss (nats per target) over the batches of all workers.

    Raises UserError if no batch has a target: every example was dropped.
    """
    inner = unwrap_ddp(objective)
    sums = torch.zeros(2, dtype=torch.float64, device=context.device)

    with evaluation_mode(inner):
        for batch in batches:
            loss_sum, count = inner(**move_to_device(batch, context.device))
            sums += torch.stack([loss_sum.double(), count.double()])
    reshard_model(inner)

    loss_sum, count = all_reduce_sum(sums, context).tolist()
    if not count:
        raise UserError(
            "no example of the validation split fits into a sequence: raise data.sequence_tokens, "
            "or set data.too_long=truncate"
        )
    return float(loss_sum / count)


def move_to_device(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """Return the arguments of the objective as int64 tensors on the device."""
    names = ("input_ids", "position_ids", "targets")
    return {
        name: torch.as_tensor(batch[name]).to(device, torch.int64, non_blocking=True)
        for name in names
    }


def measure_peak_memory_mib(device: torch.device) -> float:
    """Return the peak in MiB: of the allocator on a GPU, of resident process memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
