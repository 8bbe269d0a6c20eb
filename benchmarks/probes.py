"""Compare the probes with the statistics of transformers' eager attention: values and memory.

    python -m benchmarks.probes --json outputs/bench/probes.json

The model is the shipped tiny one in fp32, with one document of 4,096 tokens. Tensor memory is the
peak of the live storages that the operations make. The ratio compares one layer: its statistics by
the probes, and eager attention without statistics. The whole forward passes are in the details; the
MLPs take most of their memory. Seconds are CPU seconds, measured once.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

from app.evaluation.probes.attention import BEND, measure_attention
from app.evaluation.probes.model import ModelProbe, probe_model
from app.gemma.config import LoraConfig, ModelConfig, QuantizationConfig
from app.gemma.load import CaptionLoss, add_lora, evaluation_mode, load_base_model, unwrap_gemma
from app.memory_plan.simulate import MemoryTimeline
from benchmarks.measure import one_thread
from data_pipeline.sources.scenes import generate_scenes
from data_pipeline.stream.encode import IGNORE_INDEX, Example, PromptEncoder

TOKENS = 4096
HEAD_STATISTICS = ("entropy", "window_mass", "bent_share", "gradient_lost", "largest_score")
LOGIT_STATISTICS = ("logit_bent_share", "logit_gradient_lost", "largest_logit")


def measure_eager(loss: CaptionLoss, examples: Sequence[Example]) -> dict[str, Tensor]:
    """Return the statistics of `ModelProbe` by their definition, from eager attention's weights.

    Head statistics are [layers, heads], logit statistics are single numbers; all fp64.
    """
    gemma = unwrap_gemma(loss.model)
    window, cap = gemma.config.sliding_window, gemma.config.attn_logit_softcapping
    num_layers, num_heads = gemma.config.num_hidden_layers, gemma.config.num_attention_heads
    sums = torch.zeros(len(HEAD_STATISTICS), num_layers, num_heads, dtype=torch.float64)
    num_queries, num_scores = torch.zeros(2, num_layers, 1, dtype=torch.float64)

    def attend(module: Any, query: Tensor, key: Tensor, *args: Any, **options: Any) -> Any:
        attended, weights = eager_attention_forward(module, query, key, *args, **options)
        distance = get_distances(query.shape[2])
        seen = (distance >= 0) & (distance < (options["sliding_window"] or query.shape[2]))
        groups, layer = query.shape[1] // key.shape[1], module.layer_idx
        num_queries[layer] += query.shape[2]
        num_scores[layer] += int(seen.sum())
        for head in range(query.shape[1]):
            attention = weights[0, head]
            scores = (query[0, head] @ key[0, head // groups].T * options["scaling"])[seen].abs_()
            entropy, inside, bent, lost, largest = sums[:, layer, head]
            entropy -= torch.special.xlogy(attention, attention).sum(dtype=torch.float64)
            inside += (attention * (distance < window)).sum(dtype=torch.float64)
            bent += (scores > BEND * cap).sum()
            largest.copy_(torch.maximum(largest, scores.max().double()))
            lost += scores.div_(cap).tanh_().square_().sum(dtype=torch.float64)
        return attended, None

    # run
    AttentionInterface.register("recorded", attend)
    logits = torch.cat([run_eager(loss, example, "recorded") for example in examples]).double()
    logit_cap = gemma.config.final_logit_softcapping
    entropy, inside, bent, lost, largest = sums
    return {
        "entropy": entropy / num_queries,
        "window_mass": inside / num_queries,
        "bent_share": bent / num_scores,
        "gradient_lost": lost / num_scores,
        "largest_score": largest,
        "logit_bent_share": (logits.abs() > BEND * logit_cap).double().mean(),
        "logit_gradient_lost": (torch.tanh(logits / logit_cap) ** 2).mean(),
        "largest_logit": logits.abs().max(),
    }


def run_eager(loss: CaptionLoss, example: Example, attention: str = "eager") -> Tensor:
    """Return the logits [targets, V] of a forward pass, before the softcap."""
    gemma = unwrap_gemma(loss.model)
    length = len(example.input_ids)
    distance = get_distances(length)
    masks = {
        kind: torch.zeros(1, 1, length, length, dtype=gemma.dtype).masked_fill_(
            (distance < 0) | (distance >= window), torch.finfo(gemma.dtype).min
        )
        for kind, window in (
            ("full_attention", length),
            ("sliding_attention", gemma.config.sliding_window),
        )
    }

    before = gemma.config._attn_implementation
    gemma.set_attn_implementation(attention)
    with evaluation_mode(loss), torch.no_grad():
        ids = torch.from_numpy(example.input_ids)[None].long()
        hidden = gemma.model(ids, attention_mask=masks, use_cache=False).last_hidden_state[0]
        logits = hidden[torch.from_numpy(example.targets != IGNORE_INDEX)] @ gemma.lm_head.weight.T
    gemma.set_attn_implementation(before)
    return logits


def run_plain(loss: CaptionLoss, example: Example) -> None:
    """Run the forward pass that the probes observe, without them."""
    ids, targets = (torch.from_numpy(column)[None].long() for column in example)
    with evaluation_mode(loss), torch.no_grad():
        loss(ids, torch.arange(ids.shape[1])[None], targets)


def get_distances(length: int) -> Tensor:
    """Return the number of tokens from each key to each query: [queries, keys]."""
    positions = torch.arange(length)
    return positions[:, None] - positions


def find_largest_difference(probe: ModelProbe, eager: dict[str, Tensor]) -> dict[str, float]:
    """Return the largest difference of each statistic.

    That of a largest value is relative to it, because the value has no bound.
    """
    differences = {}
    for name, expected in eager.items():
        if name in HEAD_STATISTICS:
            ours = torch.tensor(
                [getattr(layer, name) for layer in probe.layers], dtype=torch.float64
            )
        else:
            ours = torch.tensor(getattr(probe, name), dtype=torch.float64)
        difference = (ours - expected).abs()
        differences[name] = float(
            (difference / expected if "largest" in name else difference).max()
        )
    return differences


def measure_tensor_bytes(run: Callable[[], Any]) -> int:
    """Return the peak of the bytes of all tensors that `run` makes."""
    with MemoryTimeline(0) as timeline:
        timeline.start({})
        run()
    return int(max(live.sum(axis=1).max() for live in timeline.by_stage().values()))


def load_tiny() -> CaptionLoss:
    """Return the shipped model in fp32, with a new adapter."""
    base_model = load_base_model(
        ModelConfig(),
        QuantizationConfig(kind="none"),
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    return CaptionLoss(add_lora(base_model, LoraConfig(), seed=0), torch.float32)


def make_example(num_tokens: int) -> Example:
    """Return scenes and their captions as one document of `num_tokens` tokens."""
    encoder = PromptEncoder("app/gemma/tiny", "Describe:")
    scenes = [
        encoder.encode(scene.svg, scene.caption) for scene in generate_scenes(num_tokens // 90)
    ]
    ids, targets = (np.concatenate(column)[:num_tokens] for column in zip(*scenes, strict=True))
    assert len(ids) == num_tokens
    return Example(ids, targets)


def measure_layer_bytes(loss: CaptionLoss) -> dict[str, int]:
    """Return the peak of the tensors of one attention layer, by probe and by eager attention."""
    config = unwrap_gemma(loss.model).config
    options = {"scale": config.query_pre_attn_scalar**-0.5, "softcap": 50.0, "layer_window": None}
    query, key = (
        torch.randn(heads, TOKENS, config.head_dim)
        for heads in (config.num_attention_heads, config.num_key_value_heads)
    )
    layer = unwrap_gemma(loss.model).model.layers[1].self_attn
    mask = torch.zeros(1, 1, TOKENS, TOKENS).masked_fill_(
        get_distances(TOKENS) < 0, torch.finfo(torch.float32).min
    )

    return {
        "probe": measure_tensor_bytes(
            lambda: measure_attention(query, key, **options, model_window=config.sliding_window)
        ),
        "eager": measure_tensor_bytes(
            lambda: eager_attention_forward(
                layer, query[None], key[None], key[None], mask, scaling=0.125, softcap=50.0
            )
        ),
    }


def main() -> None:
    """Run the benchmark and write its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()

    one_thread()
    loss, example = load_tiny(), make_example(TOKENS)

    # values
    started = time.process_time()
    probe = probe_model(loss, [example])
    probe_seconds = time.process_time() - started
    differences = find_largest_difference(probe, measure_eager(loss, [example]))

    # memory
    layer_bytes = measure_layer_bytes(loss)
    started = time.process_time()
    run_eager(loss, example)
    eager_seconds = time.process_time() - started
    figures = {
        "largest_difference": max(differences.values()),
        "memory_ratio": layer_bytes["probe"] / layer_bytes["eager"],
        "seconds_ratio": probe_seconds / eager_seconds,
    }
    details = {
        "tokens": TOKENS,
        "differences": differences,
        "layer_bytes": layer_bytes,
        "forward_bytes": {
            "probe": measure_tensor_bytes(lambda: probe_model(loss, [example])),
            "plain": measure_tensor_bytes(lambda: run_plain(loss, example)),
            "eager": measure_tensor_bytes(lambda: run_eager(loss, example)),
        },
        "seconds": {"probe": probe_seconds, "eager": eager_seconds},
    }
    text = json.dumps({"figures": figures, **details}, indent=2)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
