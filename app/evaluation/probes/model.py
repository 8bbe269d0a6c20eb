"""Run a model on a fixed set of examples, and measure attention and softcaps while it computes."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Gemma2ForCausalLM

from app.evaluation.probes.attention import (
    AttentionSums,
    ScoreSums,
    cap_and_measure,
    measure_attention,
)
from app.gemma.load import CaptionLoss, evaluation_mode, unwrap_gemma
from data_pipeline.stream.encode import IGNORE_INDEX, Example

TILE_TOKENS, TILE_WORDS = 256, 16_384
"""Size of a tile of logits: 16 MiB in fp32."""


@dataclass(frozen=True)
class LayerProbe:
    """Statistics of one layer; each list has a value for each query head."""

    window: int | None
    """Window of the layer (tokens); None: the layer is global."""
    entropy: list[float]
    """Mean entropy of the attention of a query (nats); 0: it attends to one key."""
    window_mass: list[float]
    """Share of the attention inside the window of the model (1 in a layer with that window)."""
    bent_share: list[float]
    """Share of the scores beyond half of the softcap."""
    gradient_lost: list[float]
    """1 - mean derivative of the softcap over the scores."""
    largest_score: list[float]
    """Largest absolute score before the softcap."""
    skipped_share: float
    """Share of the blocks of full attention that the window makes unnecessary."""


@dataclass(frozen=True)
class ModelProbe:
    """Statistics of a model on a set of examples."""

    layers: list[LayerProbe]
    logit_bent_share: float
    """Share of the logits of the targets' positions beyond half of the softcap."""
    logit_gradient_lost: float
    largest_logit: float


def probe_model(objective: CaptionLoss, examples: Sequence[Example]) -> ModelProbe:
    """Return the statistics of a model over all tokens of the examples, each a sequence of its own.

    The model runs in evaluation mode, without gradients. Its attention is computed by `blockwise`,
    whatever it is configured to be. Under FSDP every worker has to call this function.
    """
    collector = _Collector()
    gemma = unwrap_gemma(objective.model)
    device = gemma.device

    with evaluation_mode(objective), _observe(gemma, collector):
        for example in examples:
            ids, targets = (
                torch.from_numpy(column)[None].to(device, torch.int64) for column in example
            )
            collector.targets = targets[0]
            objective(ids, torch.arange(ids.shape[1], device=device)[None], targets)

    return _summarise(collector, gemma)


@dataclass
class _Collector:
    """Sums over the examples so far."""

    layers: dict[int, AttentionSums] = field(default_factory=dict)
    logits: ScoreSums | None = None
    targets: Tensor = field(default_factory=lambda: torch.empty(0))
    """Targets of the current example [S]."""

    def add_attention(self, layer: int, sums: AttentionSums) -> None:
        earlier = self.layers.get(layer)
        self.layers[layer] = sums if earlier is None else earlier + sums

    def add_logits(self, gemma: Gemma2ForCausalLM, hidden: Tensor) -> None:
        """Measure the logits of the labelled positions of hidden [S, H], tile by tile."""
        labelled = hidden[self.targets != IGNORE_INDEX]
        softcap = gemma.config.final_logit_softcapping
        for part in gemma.lm_head.weight.split(TILE_WORDS):
            words = part.to(hidden, non_blocking=True)
            for tile in labelled.split(TILE_TOKENS):
                logits = tile @ words.T
                logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
                sums = cap_and_measure(logits, softcap)
                self.logits = sums if self.logits is None else self.logits + sums


_current: ContextVar[_Collector] = ContextVar("collector of the forward passes")


@contextmanager
def _observe(gemma: Gemma2ForCausalLM, collector: _Collector) -> Iterator[None]:
    """Measure each attention and the logits of each forward pass within the block."""

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def read_hidden(_module: nn.Module, _inputs: Any, output: Any) -> None:
        with torch.autocast(gemma.device.type, enabled=False):
            collector.add_logits(gemma, output.last_hidden_state[0])

    before = gemma.config._attn_implementation
    token = _current.set(collector)
    hook = gemma.model.register_forward_hook(read_hidden)
    try:
        gemma.set_attn_implementation("probed")
        yield
    finally:
        gemma.set_attn_implementation(before)
        hook.remove()
        _current.reset(token)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _measure_and_attend(
    module: Any, query: Tensor, key: Tensor, *args: Any, **options: Any
) -> tuple[Tensor, None]:
    """Implement transformers' attention interface: measure one document, then call `blockwise`."""
    with torch.autocast(query.device.type, enabled=False):
        sums = measure_attention(
            query[0],
            key[0],
            scale=options["scaling"],
            softcap=options["softcap"],
            layer_window=options["sliding_window"],
            model_window=module.config.sliding_window or query.shape[2],
        )
    _current.get().add_attention(module.layer_idx, sums)
    attended: tuple[Tensor, None] = AttentionInterface()["blockwise"](
        module, query, key, *args, **options
    )
    return attended


AttentionInterface.register("probed", _measure_and_attend)


def _summarise(collector: _Collector, gemma: Gemma2ForCausalLM) -> ModelProbe:
    layers = []
    for i, sums in sorted(collector.layers.items()):
        num_scores, num_queries = sums.scores.num_values, sums.num_queries
        layers.append(
            LayerProbe(
                window=gemma.model.layers[i].self_attn.sliding_window,
                entropy=_to_list(sums.entropy / num_queries),
                window_mass=_to_list(sums.inside / num_queries),
                bent_share=_to_list(sums.scores.num_bent / num_scores),
                gradient_lost=_to_list(sums.scores.lost / num_scores),
                largest_score=_to_list(sums.scores.largest),
                skipped_share=1 - sums.num_blocks / sums.num_full_blocks,
            )
        )

    logits = collector.logits
    assert logits is not None, "an example has targets"
    return ModelProbe(
        layers=layers,
        logit_bent_share=float(logits.num_bent) / logits.num_values,
        logit_gradient_lost=float(logits.lost) / logits.num_values,
        largest_logit=float(logits.largest),
    )


def _to_list(values_KG: Tensor) -> list[float]:
    return [float(value) for value in values_KG.flatten().tolist()]


def list_metrics(probe: ModelProbe) -> dict[str, float]:
    """Return the statistics by name: means over layers and heads, and over the heads of each layer.

    The largest score is the largest of all heads. The share inside the window is that of the global
    layers, the skipped share that of the layers with a window.
    """
    metrics = {
        "probe/logit_bent_share": probe.logit_bent_share,
        "probe/logit_gradient_lost": probe.logit_gradient_lost,
        "probe/largest_logit": probe.largest_logit,
        **_average(probe.layers, "probe"),
    }
    for i, layer in enumerate(probe.layers):
        metrics |= _average([layer], f"probe/layer_{i:02d}")
    return metrics


def _average(layers: Sequence[LayerProbe], name: str) -> dict[str, float]:
    def flatten(values: Iterable[list[float]]) -> list[float]:
        return list(itertools.chain.from_iterable(values))

    averages = {
        f"{name}/attention_entropy": mean(flatten(layer.entropy for layer in layers)),
        f"{name}/score_bent_share": mean(flatten(layer.bent_share for layer in layers)),
        f"{name}/score_gradient_lost": mean(flatten(layer.gradient_lost for layer in layers)),
        f"{name}/largest_score": max(flatten(layer.largest_score for layer in layers)),
    }
    global_mass = flatten(layer.window_mass for layer in layers if layer.window is None)
    skipped = [layer.skipped_share for layer in layers if layer.window is not None]
    if global_mass:
        averages[f"{name}/window_mass"] = mean(global_mass)
    if skipped:
        averages[f"{name}/skipped_share"] = mean(skipped)
    return averages
