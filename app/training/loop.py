"""The training loop: when to step, evaluate, report and stop; step.py holds one step."""

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from app.training.config import OptimConfig, TrainConfig
from app.training.horizon import compute_progress, is_finished, is_gain
from app.training.nonfinite import (
    INITIAL_LOSS_SCALE,
    find_nonfinite,
    handle_nonfinite,
    update_loss_scale,
)
from app.training.optim import compute_learning_rate
from app.training.parallel import TrainContext
from app.training.speed import SpeedMeter, measure_speed
from app.training.step import (
    StepInput,
    StepOutcome,
    StepTotals,
    accumulate_gradients,
    compute_mean_loss,
    count_step_totals,
    measure_peak_memory_mib,
    train_step,
)
from data_pipeline.stream.token_stream import Batch, Position


@dataclass
class TrainState:
    """Progress of a job, saved in a checkpoint besides weights and optimizer moments."""

    step: int = 0
    """Number of optimizer steps taken."""
    position: Position = field(default_factory=Position)
    """Position of the next packed sequence of the stream."""
    progress: float = 0.0
    """Share of the job that is done, in [0, 1]."""
    best_loss: float = math.inf
    """Last evaluation loss that counted as a gain (nats per token)."""
    num_stale_evaluations: int = 0
    """Number of evaluations since that one."""
    num_examples: int = 0
    num_dropped: int = 0
    num_truncated: int = 0
    num_tokens: int = 0
    num_skipped_steps: int = 0
    """Number of steps that changed nothing, because their loss or gradient was not finite."""
    num_skipped_examples: int = 0
    loss_scale: float = INITIAL_LOSS_SCALE
    """Factor of the loss in the fp16 backward pass. It keeps small gradients from rounding to 0."""
    num_good_steps: int = 0
    """Number of steps since the loss scale changed."""


@dataclass(frozen=True)
class TrainSetup:
    """Parts of a job that stay the same in every step."""

    objective: nn.Module
    """Maps (input_ids, position_ids, targets) to (loss sum, target count); it may be wrapped."""
    optimizer: torch.optim.Optimizer
    validation: Sequence[Batch]
    """This worker's micro-batches of the validation split."""
    config: TrainConfig
    optim: OptimConfig
    context: TrainContext
    compute_progress: Callable[[Position], float]
    """Returns the finished share of the data at a position of the stream, in [0, 1]."""
    after_step: Callable[[int, Sequence[Batch]], None] = lambda step, micro_batches: None
    """Called after each step with the micro-batches it trained on (none if it was skipped)."""
    watch_model: Callable[[int], Mapping[str, float]] = lambda step: {}
    """Called on all workers at each evaluation of a finite loss; returns more metrics of it."""
    speed: SpeedMeter | None = None
    """Counts the operations of a step; None: they are not counted."""


def train_model(
    setup: TrainSetup, batches: Iterator[tuple[Batch, Position]], state: TrainState
) -> TrainState:
    """Train until the stream ends, `max_steps` is reached, or the evaluation loss stops falling.

    Each batch comes with the position of the stream after it. `state` is updated in place.
    """
    for _ in iterate_evaluations(setup, batches, state):
        pass
    return state


def iterate_evaluations(
    setup: TrainSetup, batches: Iterator[tuple[Batch, Position]], state: TrainState
) -> Iterator[float]:
    """Train as `train_model` does. Yield the loss of each evaluation after its report."""
    config, context = setup.config, setup.context
    window = None if setup.speed is None else setup.speed.window

    if state.step == 0:
        yield evaluate_model(setup, state, save=False)
    evaluated_step = state.step

    while not is_finished(state.step, state.num_stale_evaluations, config):
        # next micro-batches
        wait_started = time.monotonic()
        taken = list(itertools.islice(batches, config.gradient_accumulation_steps))
        if not taken:
            break
        step_started = time.monotonic()
        micro_batches = [batch for batch, _ in taken]
        previous = compute_progress(state.step, setup.compute_progress(state.position), config)
        state.position = taken[-1][1]
        totals = count_step_totals(micro_batches, context, window)
        if not totals.num_targets:  # all examples were dropped: there is nothing to step on
            _add_dropped(state, totals)
            continue

        # learning rate in the middle of the step: neither the first nor the last step is at 0
        data_share = setup.compute_progress(state.position)
        state.progress = compute_progress(state.step + 1, data_share, config)
        learning_rate = compute_learning_rate(setup.optim, (previous + state.progress) / 2)

        # one step
        outcome = _step_or_skip(setup, state, micro_batches, totals.num_targets, learning_rate)
        _update_counts(state, totals, is_skipped=not outcome.is_finite)
        setup.after_step(state.step, micro_batches if outcome.is_finite else [])

        # record
        if context.rank == 0:
            speed = measure_speed(
                setup.speed,
                totals,
                wait_seconds=step_started - wait_started,
                step_seconds=time.monotonic() - step_started,
            )
            metrics = _compute_metrics(state, totals, outcome, learning_rate, context.device)
            context.record(state.step, metrics | speed)

        # evaluate and save
        if state.step % config.eval_steps == 0:
            save = config.save_steps is not None and state.step % config.save_steps == 0
            yield evaluate_model(setup, state, save=save)
            evaluated_step = state.step

    if evaluated_step != state.step:
        yield evaluate_model(setup, state, save=config.save_steps is not None)


def _step_or_skip(
    setup: TrainSetup,
    state: TrainState,
    micro_batches: Sequence[Batch],
    num_targets: int,
    learning_rate: float,
) -> StepOutcome:
    """Run one step, and skip it if its loss or gradient norm is not finite.

    Raises TrainingDiverged for a step that may not be skipped. An overflow of fp16 may always be
    skipped, until the loss scale is 1.
    """
    config, context = setup.config, setup.context
    is_fp16, scale = config.precision == "fp16", state.loss_scale

    # step
    step_input = StepInput(
        micro_batches=micro_batches,
        num_targets=num_targets,
        seed=(config.seed, state.step),
        loss_scale=scale if is_fp16 else 1.0,
    )
    outcome = train_step(
        setup.objective,
        setup.optimizer,
        step_input,
        learning_rate=learning_rate,
        max_grad_norm=setup.optim.max_grad_norm,
        context=context,
    )
    if is_fp16:
        state.loss_scale, state.num_good_steps = update_loss_scale(
            scale, state.num_good_steps, finite=outcome.is_finite
        )
    if outcome.is_finite:
        return outcome

    # find the layer
    run = functools.partial(accumulate_gradients, step_input=step_input, context=context)
    place = find_nonfinite(setup.objective, run, context)
    setup.optimizer.zero_grad(set_to_none=True)

    # stop or skip
    is_overflow = state.loss_scale < scale and math.isfinite(outcome.loss)
    halved = f" and the loss scale {scale:.0f} halved" if is_overflow else ""
    handle_nonfinite(
        state.step + 1,
        f"loss {outcome.loss}, gradient norm {outcome.grad_norm}; first in {place}",
        stop=config.on_nonfinite == "stop" and not is_overflow,
        consequence=f"the step is skipped{halved}",
        context=context,
    )
    return outcome


def _add_dropped(state: TrainState, totals: StepTotals) -> None:
    state.num_dropped += totals.num_dropped
    state.num_truncated += totals.num_truncated


def _update_counts(state: TrainState, totals: StepTotals, *, is_skipped: bool) -> None:
    state.step += 1
    _add_dropped(state, totals)
    if is_skipped:
        state.num_skipped_steps += 1
        state.num_skipped_examples += totals.num_examples
    else:
        state.num_examples += totals.num_examples
        state.num_tokens += totals.num_tokens


def _compute_metrics(
    state: TrainState,
    totals: StepTotals,
    outcome: StepOutcome,
    learning_rate: float,
    device: torch.device,
) -> dict[str, float]:
    """Return the metrics of one step, as MLflow shows them, except its speed."""
    return {
        "train/loss": outcome.loss,
        "train/perplexity": math.exp(min(outcome.loss, 80.0)),
        "train/learning_rate": learning_rate,
        "train/log10_learning_rate": math.log10(max(learning_rate, 1e-20)),
        "train/grad_norm": outcome.grad_norm,
        "train/progress": state.progress,
        "data/padding_share": 1.0 - totals.num_tokens / totals.num_slots,
        "data/examples": state.num_examples,
        "data/dropped": state.num_dropped,
        "data/truncated": state.num_truncated,
        "train/skipped_steps": state.num_skipped_steps,
        "memory/peak_mib": measure_peak_memory_mib(device),
    }


def evaluate_model(setup: TrainSetup, state: TrainState, *, save: bool) -> float:
    """Compute, record and report the evaluation loss, and count it for early stopping.

    Raises TrainingDiverged if the loss is not finite and `on_nonfinite` is "stop".
    """
    config, context = setup.config, setup.context

    # evaluate
    loss = compute_mean_loss(setup.objective, setup.validation, context)
    if not math.isfinite(loss):
        run = functools.partial(compute_mean_loss, batches=setup.validation, context=context)
        place = find_nonfinite(setup.objective, run, context)
        handle_nonfinite(
            state.step,
            f"evaluation loss {loss}; first in {place}",
            # before the first step: continue, the first step raises the error
            stop=config.on_nonfinite == "stop" and state.step > 0,
            consequence="no checkpoint is saved",
            context=context,
        )

    # early stopping
    if is_gain(loss, state.best_loss, config):
        state.best_loss, state.num_stale_evaluations = loss, 0
    else:
        state.num_stale_evaluations += 1

    # record, report and save
    watched = setup.watch_model(state.step) if math.isfinite(loss) else {}
    if context.rank == 0:
        perplexity = math.exp(min(loss, 80.0))
        metrics = {"eval/loss": loss, "eval/perplexity": perplexity, **watched}
        context.record(state.step, metrics)
    context.report(state, loss, save=save and math.isfinite(loss))
    return loss


def state_to_json(state: TrainState) -> dict[str, Any]:
    """Return the state as JSON types, for a checkpoint."""
    return dataclasses.asdict(state)


def state_from_json(value: Mapping[str, Any]) -> TrainState:
    """Return the state that `state_to_json` wrote."""
    return TrainState(**{**value, "position": Position(**value["position"])})
