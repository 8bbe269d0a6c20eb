"""The training loop. Knows torch and the stream's columns; never Ray, never MLflow.

When to step, evaluate, report and stop; what a step is stands in step.py.
"""

import dataclasses
import functools
import itertools
import math
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from app.training.config import OptimConfig, TrainConfig
from app.training.nonfinite import FIRST_SCALE, find_nonfinite, handle_nonfinite, update_loss_scale
from app.training.optim import compute_learning_rate
from app.training.parallel import TrainContext
from app.training.step import (
    StepTotals,
    accumulate_gradients,
    compute_mean_loss,
    count_step_totals,
    train_step,
)
from data_pipeline.stream.token_stream import Batch, Position


@dataclass
class TrainState:
    """What a checkpoint must hold besides weights and optimizer moments; a few bytes."""

    step: int = 0
    """Optimizer steps taken."""
    position: Position = field(default_factory=Position)
    """The next packed row of the stream."""
    progress: float = 0.0
    """Share of the job that is done, in [0, 1]."""
    best_loss: float = math.inf
    """Lowest evaluation loss that counted as a gain (nats per token)."""
    stale_evaluations: int = 0
    """Evaluations since then."""
    num_examples: int = 0
    num_dropped: int = 0
    num_truncated: int = 0
    num_tokens: int = 0
    num_skipped_steps: int = 0
    """Steps that changed nothing, because their loss or gradient was not finite."""
    num_skipped_examples: int = 0
    loss_scale: float = FIRST_SCALE
    """Of fp16: what the loss is multiplied with, so that small gradients are not rounded to 0."""
    good_steps: int = 0
    """Since the loss scale changed."""


def train_model(
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[tuple[Batch, Position]],
    validation: Sequence[Batch],
    *,
    config: TrainConfig,
    optim: OptimConfig,
    state: TrainState,
    context: TrainContext,
    progress_of: Callable[[Position], float],
    after_step: Callable[[int, Sequence[Batch]], None] = lambda step, micro_batches: None,
) -> TrainState:
    """Train until the stream ends, `max_steps` is reached, or the evaluation loss stops falling.

    `objective` maps (input_ids, position_ids, targets) to (loss sum, target count); it may be wrapped (parallel.wrap).
    Each batch comes with the stream's position after it, of which `progress_of` gives the share that is done.
    `after_step` is told what each step trained on.
    """
    if state.step == 0:
        evaluate_model(
            objective, validation, config=config, state=state, context=context, save=False
        )
    evaluated = state.step
    while not is_finished(state, config):
        waiting = time.monotonic()
        taken = list(itertools.islice(batches, config.gradient_accumulation_steps))
        if not taken:
            break
        started = time.monotonic()
        micro_batches, state.position = [batch for batch, _ in taken], taken[-1][1]
        totals = count_step_totals(micro_batches, context)
        # The rate in the middle of the step: neither the first nor the last step is spent at 0.
        done = (
            (state.step + 1) / config.max_steps if config.max_steps else progress_of(state.position)
        )
        rate, state.progress = compute_learning_rate(optim, (state.progress + done) / 2), done
        loss, norm, stepped = _step_or_skip(
            objective, optimizer, micro_batches, totals.targets, rate, config, optim, state, context
        )
        _count(state, totals, stepped)
        after_step(state.step, micro_batches if stepped else [])
        if context.rank == 0:
            seconds = time.monotonic() - started
            context.record(state.step, {
                "train/loss": loss, "train/perplexity": math.exp(min(loss, 80.0)),
                "train/learning_rate": rate, "train/log10_learning_rate": math.log10(max(rate, 1e-20)),
                "train/grad_norm": norm, "train/progress": state.progress,
                "speed/tokens_per_second": totals.tokens / (seconds + started - waiting),
                "speed/step_seconds": seconds, "speed/data_wait_seconds": started - waiting,
                "data/padding_share": 1.0 - totals.tokens / totals.slots,
                "data/examples": state.num_examples, "data/dropped": state.num_dropped,
                "data/truncated": state.num_truncated, "train/skipped_steps": state.num_skipped_steps,
                "memory/peak_mib": measure_peak_memory_mib(context.device),
            })  # fmt: skip
        if state.step % config.eval_steps == 0:
            save = config.save_steps is not None and state.step % config.save_steps == 0
            evaluate_model(
                objective, validation, config=config, state=state, context=context, save=save
            )
            evaluated = state.step
    if evaluated != state.step:
        save = config.save_steps is not None
        evaluate_model(
            objective, validation, config=config, state=state, context=context, save=save
        )
    return state


def _count(state: TrainState, totals: StepTotals, stepped: bool) -> None:
    state.step += 1
    state.num_dropped += totals.dropped
    state.num_truncated += totals.truncated
    if stepped:
        state.num_examples += totals.examples
        state.num_tokens += totals.tokens
    else:
        state.num_skipped_steps += 1
        state.num_skipped_examples += totals.examples


def _step_or_skip(
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[Batch],
    num_targets: int,
    rate: float,
    config: TrainConfig,
    optim: OptimConfig,
    state: TrainState,
    context: TrainContext,
) -> tuple[float, float, bool]:
    """(loss, gradient norm, whether the step was taken). Raises TrainingDiverged for a step that may not be skipped:
    fp16's overflows may, until the loss scale is 1."""
    fp16, scale = config.precision == "fp16", state.loss_scale
    same: dict[str, Any] = {
        "num_targets": num_targets, "seed": (config.seed, state.step), "context": context, "scale": scale if fp16 else 1.0,
    }  # fmt: skip
    loss, norm = train_step(
        objective, optimizer, micro_batches, rate=rate, max_grad_norm=optim.max_grad_norm, **same
    )
    stepped = math.isfinite(loss) and math.isfinite(norm)
    if fp16:
        state.loss_scale, state.good_steps = update_loss_scale(
            scale, state.good_steps, finite=stepped
        )
    if not stepped:
        where = find_nonfinite(
            objective,
            functools.partial(accumulate_gradients, micro_batches=micro_batches, **same),
            context,
        )
        optimizer.zero_grad(set_to_none=True)
        overflow = state.loss_scale < scale and math.isfinite(loss)
        handle_nonfinite(
            state.step + 1, f"loss {loss}, gradient norm {norm}; first in {where}",
            stop=config.on_nonfinite == "stop" and not overflow, context=context,
            fate="the step is skipped" + (f" and the loss scale {scale:.0f} halved" if overflow else ""),
        )  # fmt: skip
    return loss, norm, stepped


def is_finished(state: TrainState, config: TrainConfig) -> bool:
    """Enough steps, or enough evaluations without a gain."""
    if config.max_steps is not None and state.step >= config.max_steps:
        return True
    patience = config.early_stopping_patience
    return patience is not None and state.stale_evaluations >= patience


def evaluate_model(
    objective: nn.Module,
    validation: Sequence[Batch],
    *,
    config: TrainConfig,
    state: TrainState,
    context: TrainContext,
    save: bool,
) -> float:
    """Evaluation loss of the current weights: recorded, reported, and counted for early stopping."""
    loss = compute_mean_loss(objective, validation, context)
    if not math.isfinite(loss):
        where = find_nonfinite(
            objective,
            functools.partial(compute_mean_loss, batches=validation, context=context),
            context,
        )
        handle_nonfinite(
            state.step, f"evaluation loss {loss}; first in {where}", context=context, fate="it is no checkpoint",
            stop=config.on_nonfinite == "stop" and state.step > 0,  # before any step, the first one will say it
        )  # fmt: skip
    if loss < state.best_loss - config.early_stopping_threshold:
        state.best_loss, state.stale_evaluations = loss, 0
    else:
        state.stale_evaluations += 1
    if context.rank == 0:
        context.record(
            state.step, {"eval/loss": loss, "eval/perplexity": math.exp(min(loss, 80.0))}
        )
    context.report(state, loss, save=save and math.isfinite(loss))
    return loss


def measure_peak_memory_mib(device: torch.device) -> float:
    """Peak of the allocator on a GPU, of the process's resident memory on a CPU (MiB)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def state_to_json(state: TrainState) -> dict[str, Any]:
    """For a checkpoint; `from_json` reads it back."""
    return dataclasses.asdict(state)


def state_from_json(value: Mapping[str, Any]) -> TrainState:
    """The state that `as_json` wrote."""
    return TrainState(**{**value, "position": Position(**value["position"])})
