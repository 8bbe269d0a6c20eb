"""What one optimizer step of a job takes in memory, and the longest row that fits: the real step on fake tensors.

Knows torch; never Ray, never MLflow.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from transformers import Gemma2Config

from app.gemma.activation_checkpoint import apply_memory_config
from app.gemma.config import LoraConfig, MemoryConfig, ModelConfig, QuantizationConfig
from app.gemma.load import DTYPES, CaptionLoss, add_lora, unwrap_gemma
from app.gemma.published import find_model_config
from app.memory_plan.simulate import (
    CATEGORIES,
    FUSED_ATTENTION,
    Bytes,
    MemoryTimeline,
    allocate_fake_storage,
    build_meta_model,
    list_frozen_tensors,
    mark_stages,
)
from app.training.config import OptimConfig, TrainConfig
from app.training.optim import build_optimizer
from app.training.parallel import LocalContext
from app.training.step import StepInput, train_step
from data_pipeline.stream.token_stream import Batch

FEW_LAYERS, MORE_LAYERS = 4, 6
"""Layers that are simulated: the first two, the last two, and two more for the slope of those in between. Layers come
in pairs, since windows alternate."""
GRAIN = 64
"""Longest rows are multiples of it (tokens)."""
HOST = torch.device("cpu")


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
    """Blockwise attention takes the memory of a GPU's fused kernel; otherwise that of the CPU code."""

    @property
    def num_labels(self) -> int:
        """Number of labelled tokens in one micro-batch."""
        per_sequence = max(1, round(self.sequence_tokens * self.labelled_share))
        return per_sequence * self.train.micro_batch_size


@dataclass(frozen=True)
class MemoryPeak:
    """The moment of a step at which most is live."""

    by_category: dict[str, int]
    """Bytes; they add up to the peak."""
    stage: str
    """Where in the step: `forward i`, `loss`, `backward i` (layers from 0), `update`."""

    @property
    def num_bytes(self) -> int:
        return sum(self.by_category.values())


def simulate_peak(settings: StepSettings) -> MemoryPeak:
    """Return the peak of a step in the middle of the job, on one of its workers.

    Raises UserError for a model without a known config.
    """
    model = find_model_config(settings.model)
    num_layers: int = model.num_hidden_layers
    alternating = _with_layers(model, num_layers).layer_types == model.layer_types
    unlike = num_layers % 2 or not alternating or settings.memory.keep_layers > FEW_LAYERS // 2

    if num_layers <= MORE_LAYERS or unlike:
        stages = _simulate_step(settings, model)
    else:
        few = _simulate_step(settings, _with_layers(model, FEW_LAYERS))
        more = _simulate_step(settings, _with_layers(model, MORE_LAYERS))
        stages = _extrapolate_layers(num_layers, few, more)

    peaks = (_find_highest(stage, live) for stage, live in stages.items())
    return max(peaks, key=lambda peak: peak.num_bytes)


def find_longest_sequence(
    peak_bytes: Callable[[int], int],
    limit_bytes: float,
    known: dict[int, int],
    *,
    most: int = 2**20,
) -> int:
    """The longest row (tokens, a multiple of GRAIN) whose peak is within a limit, 0 if none is.

    The peak is the highest of moments that each grow evenly with the row, hence convex: below its chords, above its
    chords' extensions. Rows are computed until both agree on the answer to GRAIN tokens. `known` keeps what was
    computed, {tokens: bytes}, for other limits.
    """

    def fits(tokens: int) -> bool:
        if tokens not in known:
            known[tokens] = peak_bytes(tokens)
        return known[tokens] <= limit_bytes

    if not fits(GRAIN):
        return 0
    high = 8192
    while fits(high):
        if high >= most:
            return most
        high = min(most, 2 * GRAIN + int(_meets(known, GRAIN, high, limit_bytes)) // GRAIN * GRAIN)
    while True:
        below = sorted(tokens for tokens in known if fits(tokens))[-2:]
        above = sorted(tokens for tokens in known if not fits(tokens))[:2]
        low, high = below[-1], above[0]
        surely = low + int((_meets(known, low, high, limit_bytes) - low) / GRAIN) * GRAIN
        ends = [
            _meets(known, pair[0], pair[1], limit_bytes)
            for pair in (below, above)
            if len(pair) == 2
        ]
        if min([high - 1.0, *ends]) < surely + GRAIN:
            return surely
        fits(surely if surely > low else (low + high) // 2 // GRAIN * GRAIN)


def _meets(known: dict[int, int], left: int, right: int, limit_bytes: float) -> float:
    """Where the line through two rows' peaks meets the limit (tokens)."""
    risen = known[right] - known[left]
    return left + (limit_bytes - known[left]) * (right - left) / risen if risen else float(2**30)


def _with_layers(model: Gemma2Config, number: int) -> Gemma2Config:
    return Gemma2Config.from_dict(
        {**model.to_dict(), "num_hidden_layers": number, "layer_types": None}
    )


def _simulate_step(settings: StepSettings, model: Gemma2Config) -> dict[str, Bytes]:
    """Return the live bytes [moments, len(CATEGORIES)] of each stage of a simulated step."""
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
        apply_memory_config(base_model, settings.memory, where=host_device)
        objective = CaptionLoss(adapted, dtype).train()
        return trace_step(settings, objective, timeline, _make_batch(settings))


def trace_step(
    settings: StepSettings, objective: CaptionLoss, timeline: MemoryTimeline, batch: Batch
) -> dict[str, Bytes]:
    """Return the live bytes [moments, len(CATEGORIES)] of each stage of a real or fake step.

    The caller has entered the timeline.
    """
    # optimizer; paged moments count as if all of them were on the GPU
    optim = settings.optim
    if optim.kind == "paged_adamw_8bit":
        optim = optim.model_copy(update={"kind": "adamw_8bit"})
    optimizer = build_optimizer(objective, optim)
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    gradients = init_optimizer_state(settings, optimizer, trained)

    # owners of all that lives before the step
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
        context=LocalContext(HOST),
    )
    return timeline.by_stage()


def init_optimizer_state(
    settings: StepSettings, optimizer: torch.optim.Optimizer, trained: list[Any]
) -> list[Tensor]:
    """Give the optimizer moments, as earlier steps would.

    Return the gradients that a micro-batch in the middle of the job finds already allocated.
    """
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    gradients = [parameter.grad for parameter in trained]

    if settings.train.gradient_accumulation_steps == 1:
        optimizer.zero_grad(set_to_none=True)
        gradients.clear()
    if settings.num_workers > 1:  # DDP's buckets hold every gradient once more
        gradients += [torch.empty_like(parameter) for parameter in trained]
    return gradients


def _make_batch(settings: StepSettings) -> Batch:
    shape = (settings.train.micro_batch_size, settings.sequence_tokens)
    names = ("input_ids", "position_ids", "targets")
    return {name: np.zeros(shape, np.int32) for name in names}


def _extrapolate_layers(
    layers: int, few: dict[str, Bytes], more: dict[str, Bytes]
) -> dict[str, Bytes]:
    """The stages of `layers` layers from those of FEW_LAYERS and MORE_LAYERS.

    Every moment of the first two and last two layers takes so much more with each pair of layers between them, and
    the moments of those between lie between theirs: this is exact, not a fit (tests/test_plan.py).
    """
    added, times = MORE_LAYERS - FEW_LAYERS, (layers - FEW_LAYERS) / (MORE_LAYERS - FEW_LAYERS)
    stages = {}
    for name, live in few.items():
        kind, _, number = name.partition(" ")
        back = number and int(number) >= FEW_LAYERS // 2  # counted from the last layer
        other = more[f"{kind} {int(number) + added}" if back else name]
        if kind == "update":  # a loop over the weights, of which there are more: its highest moment
            live, other = (stage[stage.sum(axis=1).argmax()][None] for stage in (live, other))
        renamed = f"{kind} {int(number) + layers - FEW_LAYERS}" if back else name
        stages[renamed] = live + (other - live) * times
    return stages


def _find_highest(stage: str, live: Bytes) -> MemoryPeak:
    moment = live[live.sum(axis=1).argmax()]
    return MemoryPeak(
        {name: round(value) for name, value in zip(CATEGORIES, moment, strict=True)}, stage
    )
