"""Simulate the memory peak of one optimizer step, and find the longest sequence that fits.

The simulation runs the real step on fake tensors.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from transformers import Gemma2Config

from app.gemma.activation_checkpoint import apply_memory_config
from app.gemma.config import LoraConfig, MemoryConfig, ModelConfig, QuantizationConfig
from app.gemma.load import DTYPES, CaptionLoss, add_lora, unwrap_gemma
from app.gemma.published import load_model_config_offline
from app.memory_plan.extrapolate import PairOfLayers, extrapolate_layers, keep_highest
from app.memory_plan.simulate import (
    CATEGORIES,
    Bytes,
    MemoryTimeline,
    allocate_fake_storage,
    build_meta_model,
    list_frozen_tensors,
    mark_stages,
)
from app.memory_plan.simulated_attention import FUSED_ATTENTION
from app.training.config import OptimConfig, TrainConfig
from app.training.optim import build_optimizer
from app.training.parallel import LocalContext
from app.training.step import StepInput, train_step
from data_pipeline.stream.token_stream import Batch

FEW_LAYERS, MORE_LAYERS = 4, 6
"""Numbers of layers to simulate: the first two and the last two, and two more for the slope.

Layers come in pairs, because sliding and full attention alternate. Between recomputed layers and
more than two kept ones there is a third pair, the last recomputed layers.
"""
GRAIN = 64
"""The longest sequence is a multiple of it (tokens)."""
TRAINING_DEVICE = torch.device("cpu")
"""Device of the fake tensors that stand for those on the training device (see simulate)."""


@dataclass(frozen=True)
class StepSettings:
    """The settings of a job that decide the memory of one optimizer step on one worker."""

    model: ModelConfig
    quantization: QuantizationConfig
    lora: LoraConfig
    memory: MemoryConfig
    optim: OptimConfig
    train: TrainConfig
    num_workers: int
    sequence_tokens: int
    """Length of each packed sequence (tokens). One document fills it."""
    labelled_share: float = 1.0
    """Share of the tokens that have a label."""
    on_gpu: bool = True
    """Whether blockwise attention takes the memory of a GPU's fused kernel or of the CPU code."""

    @property
    def num_labels(self) -> int:
        """Number of labelled tokens in one micro-batch."""
        per_sequence = max(1, round(self.sequence_tokens * self.labelled_share))
        return per_sequence * self.train.micro_batch_size


@dataclass(frozen=True)
class MemoryPeak:
    """The moment of a step with the most live bytes."""

    by_category: dict[str, int]
    """Bytes of each category, which add up to the peak."""
    stage: str
    """Stage of the step: `forward i`, `loss`, `backward i` (layers from 0), `update`."""

    @property
    def num_bytes(self) -> int:
        return sum(self.by_category.values())


@functools.cache
def simulate_peak(settings: StepSettings) -> MemoryPeak:
    """Return the peak of a step in the middle of the job, on one of its workers.

    A process simulates equal settings once. Raises UserError for a model without a known config.
    """
    stages = _simulate_layers(settings, load_model_config_offline(settings.model))
    peaks = (_find_highest(stage, live) for stage, live in stages.items())
    return max(peaks, key=lambda peak: peak.num_bytes)


def _simulate_layers(settings: StepSettings, model: Gemma2Config) -> dict[str, Bytes]:
    """Return the live bytes of each stage of a step of all layers, from a few where possible."""
    num_layers: int = model.num_hidden_layers
    alternating = with_layers(model, num_layers).layer_types == model.layer_types
    kept = settings.memory.settings.keep_layers
    few = FEW_LAYERS if kept <= 2 else MORE_LAYERS  # recomputed layers and two kept ones
    num_added = num_layers - few - max(0, kept - 2)
    can_extrapolate = alternating and num_added > 0 and num_added % 2 == 0

    def simulate(number: int, kept: int) -> dict[str, Bytes]:
        memory = settings.memory.model_copy(update={"keep_layers": kept})
        return _simulate_step(replace(settings, memory=memory), with_layers(model, number))

    if not can_extrapolate or (kept > 2 and kept % 2):
        return _simulate_step(settings, model)
    if kept <= 2:
        more = PairOfLayers(simulate(few + 2, kept), 2, num_added // 2)
        return extrapolate_layers(simulate(few, kept), [more])
    more = PairOfLayers(simulate(few + 2, 2), 2, num_added // 2)
    more_kept = PairOfLayers(simulate(few + 2, 4), FEW_LAYERS, kept // 2 - 1)
    return extrapolate_layers(simulate(few, 2), [more, more_kept])


def find_longest_sequence(
    peak_bytes: Callable[[int], int],
    limit_bytes: float,
    known: dict[int, int],
    *,
    max_tokens: int = 2**20,
) -> int:
    """Return the longest sequence whose peak is within a limit, or 0 if none is.

    Lengths are in tokens, multiples of GRAIN, and at most `max_tokens`. The peak is the maximum of
    moments that each grow linearly with the length. It is therefore convex: it lies below its
    chords and above their extensions. Peaks are computed until both bounds agree on the answer to
    GRAIN tokens. `known` keeps them, {tokens: bytes}, for calls with other limits.
    """

    def fits(tokens: int) -> bool:
        if tokens not in known:
            known[tokens] = peak_bytes(tokens)
        return known[tokens] <= limit_bytes

    # find a length that does not fit
    if not fits(GRAIN):
        return 0
    high = 8192
    while fits(high):
        if high >= max_tokens:
            return max_tokens
        crossing = _find_crossing(known, GRAIN, high, limit_bytes)
        high = min(max_tokens, 2 * GRAIN + int(crossing) // GRAIN * GRAIN)

    # narrow down between the longest that fits and the shortest that does not
    while True:
        below = sorted(tokens for tokens in known if fits(tokens))[-2:]
        above = sorted(tokens for tokens in known if not fits(tokens))[:2]
        low, high = below[-1], above[0]
        crossing = _find_crossing(known, low, high, limit_bytes)
        safe = low + int((crossing - low) / GRAIN) * GRAIN  # fits: the peak is below its chord
        bounds = [
            _find_crossing(known, pair[0], pair[1], limit_bytes)
            for pair in (below, above)
            if len(pair) == 2
        ]
        if min([high - 1.0, *bounds]) < safe + GRAIN:
            return safe
        fits(safe if safe > low else (low + high) // 2 // GRAIN * GRAIN)


def _find_crossing(known: dict[int, int], left: int, right: int, limit_bytes: float) -> float:
    """Return the length at which the line through two known peaks crosses the limit (tokens)."""
    rise = known[right] - known[left]
    if not rise:
        return float(2**30)
    return left + (limit_bytes - known[left]) * (right - left) / rise


def with_layers(model: Gemma2Config, num_layers: int) -> Gemma2Config:
    """Return the config with another number of layers, which alternate."""
    changed = {"num_hidden_layers": num_layers, "layer_types": None}
    return Gemma2Config.from_dict({**model.to_dict(), **changed})


def _simulate_step(settings: StepSettings, model: Gemma2Config) -> dict[str, Bytes]:
    """Return the live bytes [moments, len(CATEGORIES)] of each stage of a simulated step."""
    with build_fake_objective(settings, model) as (objective, timeline):
        return trace_step(settings, objective.train(), timeline, make_fake_batch(settings))


@contextmanager
def build_fake_objective(
    settings: StepSettings, model: Gemma2Config
) -> Iterator[tuple[CaptionLoss, MemoryTimeline]]:
    """Yield the loss module on fake tensors, with its adapter, and a timeline that records them."""
    dtype = DTYPES[settings.train.precision]
    fused = settings.on_gpu and settings.model.attention != "eager"
    attention = FUSED_ATTENTION if fused else settings.model.attention
    base_model = build_meta_model(model, settings.quantization, attention=attention, dtype=dtype)
    with torch.device("meta"):
        adapted = add_lora(base_model, settings.lora, seed=settings.train.seed)

    timeline = MemoryTimeline(settings.num_labels, on_gpu=settings.on_gpu)
    with FakeTensorMode(), timeline:
        allocate_fake_storage(adapted, dtype)
        host_device = "meta" if settings.on_gpu else "cpu"
        apply_memory_config(base_model, settings.memory, host_device=host_device)
        yield CaptionLoss(adapted, dtype), timeline


def trace_step(
    settings: StepSettings, objective: CaptionLoss, timeline: MemoryTimeline, batch: Batch
) -> dict[str, Bytes]:
    """Return the live bytes [moments, len(CATEGORIES)] of each stage of a real or fake step.

    The caller enters the timeline first. Paged optimizer moments count as if all of them were on
    the GPU.
    """
    # optimizer
    optim = settings.optim
    if optim.kind == "paged_adamw_8bit":
        optim = optim.model_copy(update={"kind": "adamw_8bit"})
    optimizer = build_optimizer(objective, optim)
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    gradients = init_optimizer_state(settings, optimizer, trained)

    # owners of the tensors that exist before the step
    for parameter in trained:
        parameter.register_post_accumulate_grad_hook(
            lambda done: timeline.assign(done.grad, "gradients")
        )
    mark_stages(timeline, unwrap_gemma(objective.model))
    states = optimizer.state.values()
    moments = [value for state in states for value in state.values() if isinstance(value, Tensor)]
    timeline.start(
        {
            "weights": list_frozen_tensors(objective),
            "lora": trained,
            "optimizer": moments,
            "gradients": gradients,
        }
    )

    # the step
    train_step(
        objective,
        optimizer,
        StepInput([batch], num_targets=settings.num_labels, seed=(0, 0)),
        learning_rate=optim.learning_rate,
        max_grad_norm=optim.max_grad_norm,
        context=LocalContext(TRAINING_DEVICE),
    )
    return timeline.by_stage()


def init_optimizer_state(
    settings: StepSettings, optimizer: torch.optim.Optimizer, trained: list[Any]
) -> list[Tensor]:
    """Allocate the optimizer's moments, as earlier steps do.

    Return the gradients that are allocated before a micro-batch in the middle of the job.
    """
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    gradients = [parameter.grad for parameter in trained]

    if settings.train.gradient_accumulation_steps == 1:
        optimizer.zero_grad(set_to_none=True)
        gradients.clear()
    if settings.num_workers > 1:
        # DDP's buckets hold a copy of every gradient.
        gradients += [torch.empty_like(parameter) for parameter in trained]
    return gradients


def make_fake_batch(settings: StepSettings) -> Batch:
    """Return one micro-batch of zeros."""
    shape = (settings.train.micro_batch_size, settings.sequence_tokens)
    return {name: np.zeros(shape, np.int32) for name in ("input_ids", "position_ids", "targets")}


def _find_highest(stage: str, live: Bytes) -> MemoryPeak:
    pairs = zip(CATEGORIES, keep_highest(live)[0], strict=True)
    by_category: dict[str, int] = {name: round(value) for name, value in pairs}
    return MemoryPeak(by_category, stage)
