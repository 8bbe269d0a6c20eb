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
from app.training.nonfinite import FIRST_SCALE, culprit, next_scale, not_finite
from app.training.optim import learning_rate
from app.training.parallel import World
from app.training.step import StepTotals, gradients, mean_loss, step_totals, train_step
from data_pipeline.stream.token_stream import Batch, Position


@dataclass
class State:
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
    num_left_out: int = 0
    num_truncated: int = 0
    num_tokens: int = 0
    num_skipped_steps: int = 0
    """Steps that changed nothing, because their loss or gradient was not finite."""
    num_skipped_examples: int = 0
    loss_scale: float = FIRST_SCALE
    """Of fp16: what the loss is multiplied with, so that small gradients are not rounded to 0."""
    good_steps: int = 0
    """Since the loss scale changed."""


def train(
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[tuple[Batch, Position]],
    validation: Sequence[Batch],
    *,
    config: TrainConfig,
    optim: OptimConfig,
    state: State,
    world: World,
    progress_of: Callable[[Position], float],
    after_step: Callable[[int, Sequence[Batch]], None] = lambda step, micro_batches: None,
) -> State:
    """Train until the stream ends, `max_steps` is reached, or the evaluation loss stops falling.

    `objective` maps (input_ids, position_ids, targets) to (loss sum, target count); it may be wrapped (parallel.wrap).
    Each batch comes with the stream's position after it, of which `progress_of` gives the share that is done.
    `after_step` is told what each step trained on.
    """
    if state.step == 0:
        evaluate(objective, validation, config=config, state=state, world=world, save=False)
    evaluated = state.step
    while not finished(state, config):
        waiting = time.monotonic()
        taken = list(itertools.islice(batches, config.accumulation))
        if not taken:
            break
        started = time.monotonic()
        micro_batches, state.position = [batch for batch, _ in taken], taken[-1][1]
        totals = step_totals(micro_batches, world)
        # The rate in the middle of the step: neither the first nor the last step is spent at 0.
        done = (
            (state.step + 1) / config.max_steps if config.max_steps else progress_of(state.position)
        )
        rate, state.progress = learning_rate(optim, (state.progress + done) / 2), done
        loss, norm, stepped = _step_or_skip(
            objective, optimizer, micro_batches, totals.targets, rate, config, optim, state, world
        )
        _count(state, totals, stepped)
        after_step(state.step, micro_batches if stepped else [])
        if world.rank == 0:
            seconds = time.monotonic() - started
            world.record(state.step, {
                "train/loss": loss, "train/perplexity": math.exp(min(loss, 80.0)),
                "train/learning_rate": rate, "train/log10_learning_rate": math.log10(max(rate, 1e-20)),
                "train/gradient_norm": norm, "train/progress": state.progress,
                "speed/tokens_per_second": totals.tokens / (seconds + started - waiting),
                "speed/step_seconds": seconds, "speed/data_wait_seconds": started - waiting,
                "data/padding_share": 1.0 - totals.tokens / totals.slots,
                "data/examples": state.num_examples, "data/left_out": state.num_left_out,
                "data/truncated": state.num_truncated, "train/skipped_steps": state.num_skipped_steps,
                "memory/peak_mib": peak_memory_mib(world.device),
            })  # fmt: skip
        if state.step % config.evaluate_every_steps == 0:
            save = config.save_every_steps is not None and state.step % config.save_every_steps == 0
            evaluate(objective, validation, config=config, state=state, world=world, save=save)
            evaluated = state.step
    if evaluated != state.step:
        save = config.save_every_steps is not None
        evaluate(objective, validation, config=config, state=state, world=world, save=save)
    return state


def _count(state: State, totals: StepTotals, stepped: bool) -> None:
    state.step += 1
    state.num_left_out += totals.left_out
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
    state: State,
    world: World,
) -> tuple[float, float, bool]:
    """(loss, gradient norm, whether the step was taken). Raises TrainingDiverged for a step that may not be skipped:
    fp16's overflows may, until the loss scale is 1."""
    fp16, scale = config.precision == "fp16", state.loss_scale
    same: dict[str, Any] = {
        "num_targets": num_targets, "seed": (config.seed, state.step), "world": world, "scale": scale if fp16 else 1.0,
    }  # fmt: skip
    loss, norm = train_step(
        objective, optimizer, micro_batches, rate=rate, max_grad_norm=optim.max_grad_norm, **same
    )
    stepped = math.isfinite(loss) and math.isfinite(norm)
    if fp16:
        state.loss_scale, state.good_steps = next_scale(scale, state.good_steps, finite=stepped)
    if not stepped:
        where = culprit(
            objective, functools.partial(gradients, micro_batches=micro_batches, **same), world
        )
        optimizer.zero_grad(set_to_none=True)
        overflow = state.loss_scale < scale and math.isfinite(loss)
        not_finite(
            state.step + 1, f"loss {loss}, gradient norm {norm}; first in {where}",
            stop=config.non_finite == "stop" and not overflow, world=world,
            fate="the step is skipped" + (f" and the loss scale {scale:.0f} halved" if overflow else ""),
        )  # fmt: skip
    return loss, norm, stepped


def finished(state: State, config: TrainConfig) -> bool:
    """Enough steps, or enough evaluations without a gain."""
    if config.max_steps is not None and state.step >= config.max_steps:
        return True
    patience = config.early_stopping_patience
    return patience is not None and state.stale_evaluations >= patience


def evaluate(
    objective: nn.Module,
    validation: Sequence[Batch],
    *,
    config: TrainConfig,
    state: State,
    world: World,
    save: bool,
) -> float:
    """Evaluation loss of the current weights: recorded, reported, and counted for early stopping."""
    loss = mean_loss(objective, validation, world)
    if not math.isfinite(loss):
        where = culprit(
            objective, functools.partial(mean_loss, batches=validation, world=world), world
        )
        not_finite(
            state.step, f"evaluation loss {loss}; first in {where}", world=world, fate="it is no checkpoint",
            stop=config.non_finite == "stop" and state.step > 0,  # before any step, the first one will say it
        )  # fmt: skip
    if loss < state.best_loss - config.early_stopping_threshold:
        state.best_loss, state.stale_evaluations = loss, 0
    else:
        state.stale_evaluations += 1
    if world.rank == 0:
        world.record(state.step, {"eval/loss": loss, "eval/perplexity": math.exp(min(loss, 80.0))})
    world.report(state, loss, save=save and math.isfinite(loss))
    return loss


def peak_memory_mib(device: torch.device) -> float:
    """Peak of the allocator on a GPU, of the process's resident memory on a CPU (MiB)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def as_json(state: State) -> dict[str, Any]:
    """For a checkpoint; `from_json` reads it back."""
    return dataclasses.asdict(state)


def from_json(value: Mapping[str, Any]) -> State:
    """The state that `as_json` wrote."""
    return State(**{**value, "position": Position(**value["position"])})
