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

from app.config import Config
from app.gemma.activation_checkpoint import save_memory
from app.gemma.load import DTYPES, CaptionLoss, add_lora, gemma
from app.gemma.published import config_of
from app.memory_plan.simulate import (
    CATEGORIES,
    FUSED,
    Bytes,
    Timeline,
    materialise,
    meta_base,
    stored_in,
    watch,
)
from app.training.optim import adamw
from app.training.parallel import Alone
from app.training.step import train_step
from data_pipeline.stream.token_stream import Batch

FEW_LAYERS, MORE_LAYERS = 4, 6
"""Layers that are simulated: the first two, the last two, and two more for the slope of those in between. Layers come
in pairs, since windows alternate."""
GRAIN = 64
"""Longest rows are multiples of it (tokens)."""
HOST = torch.device("cpu")


@dataclass(frozen=True)
class Peak:
    """The moment of a step at which most is live."""

    by_category: dict[str, int]
    """Bytes; they add up to the peak."""
    stage: str
    """Where in the step: `forward i`, `loss`, `backward i` (layers from 0), `update`."""

    @property
    def num_bytes(self) -> int:
        return sum(self.by_category.values())


def peak(
    config: Config, *, row_tokens: int | None = None, labelled: float = 1.0, on_gpu: bool = True
) -> Peak:
    """The peak of a step in the middle of the job, on one of its workers.

    row_tokens: instead of data.max_row_tokens. labelled: share of the tokens that have a label. on_gpu: blockwise
    attention takes what a GPU's fused kernel takes; otherwise what it takes on a CPU. One document fills each row.
    Raises UserError for a model without a known config.
    """
    model = config_of(config.model)
    tokens = row_tokens or config.data.max_row_tokens
    num_labels = max(1, round(tokens * labelled)) * config.train.micro_batch_rows
    layers: int = model.num_hidden_layers
    alternating = _with_layers(model, layers).layer_types == model.layer_types
    unlike = layers % 2 or not alternating or config.memory.keep_layers > FEW_LAYERS // 2
    if layers <= MORE_LAYERS or unlike:
        stages = _step(config, model, tokens, num_labels, on_gpu)
    else:
        few, more = (
            _step(config, _with_layers(model, number), tokens, num_labels, on_gpu)
            for number in (FEW_LAYERS, MORE_LAYERS)
        )
        stages = _of_layers(layers, few, more)
    return max(
        (_highest(name, live) for name, live in stages.items()), key=lambda found: found.num_bytes
    )


def longest(
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


def _step(
    config: Config, model: Gemma2Config, tokens: int, num_labels: int, on_gpu: bool
) -> dict[str, Bytes]:
    """Live bytes [moments, len(CATEGORIES)] of each stage of a step, simulated."""
    dtype = DTYPES[config.train.precision]
    attention = FUSED if on_gpu and config.model.attention != "eager" else config.model.attention
    base = meta_base(model, config.quantization, attention=attention, dtype=dtype)
    with torch.device("meta"):
        adapted = add_lora(base, config.lora, seed=config.train.seed)
    with FakeTensorMode(), Timeline(num_labels, on_gpu=on_gpu) as timeline:
        materialise(adapted, dtype)
        save_memory(base, config.memory, where="meta" if on_gpu else "cpu")
        return traced(
            config, CaptionLoss(adapted, dtype).train(), timeline, _row(config, tokens), num_labels
        )


def traced(
    config: Config, objective: CaptionLoss, timeline: Timeline, batch: Batch, num_labels: int
) -> dict[str, Bytes]:
    """Live bytes [moments, len(CATEGORIES)] of each stage of a real or fake step, inside its timeline."""
    paged = config.optim.kind == "paged_adamw_8bit"  # counted as if all of them were on the GPU
    optimizer = adamw(
        objective, config.optim.model_copy(update={"kind": "adamw_8bit"}) if paged else config.optim
    )
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    gradients = in_the_middle(config, optimizer, trained)
    for parameter in trained:
        parameter.register_post_accumulate_grad_hook(
            lambda done: timeline.assign(done.grad, "gradients")
        )
    watch(timeline, gemma(objective.model))
    moments = [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    ]
    timeline.start(
        {
            "weights": stored_in(objective),
            "lora": trained,
            "optimizer": moments,
            "gradients": gradients,
        }
    )
    train_step(
        objective, optimizer, [batch], num_targets=num_labels, rate=config.optim.learning_rate,
        max_grad_norm=config.optim.max_grad_norm, seed=(0, 0), world=Alone(HOST),
    )  # fmt: skip
    return timeline.by_stage()


def in_the_middle(
    config: Config, optimizer: torch.optim.Optimizer, trained: list[Any]
) -> list[Tensor]:
    """Give the optimizer moments, as earlier steps would; returns the gradients that a micro-batch finds there."""
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    gradients = [parameter.grad for parameter in trained]
    if config.train.accumulation == 1:
        optimizer.zero_grad(set_to_none=True)
        gradients.clear()
    if config.scaling.num_workers > 1:  # DDP's buckets hold every gradient once more
        gradients += [torch.empty_like(parameter) for parameter in trained]
    return gradients


def _row(config: Config, tokens: int) -> Batch:
    shape = (config.train.micro_batch_rows, tokens)
    names = ("input_ids", "position_ids", "targets")
    return {name: np.zeros(shape, np.int32) for name in names}


def _of_layers(layers: int, few: dict[str, Bytes], more: dict[str, Bytes]) -> dict[str, Bytes]:
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


def _highest(stage: str, live: Bytes) -> Peak:
    moment = live[live.sum(axis=1).argmax()]
    return Peak({name: round(value) for name, value in zip(CATEGORIES, moment, strict=True)}, stage)
