"""Compare one attention layer with transformers' eager attention, forward and backward.

    python -m benchmarks.attention --json outputs/bench/attention.json

The figures are CPU seconds and resident memory. All cases have fp32 and softcap 50. They have 4,096
tokens and 8 heads of 64 over 4 key heads. `demo_row` is a sequence of the demo: 768 tokens, 4 heads
over 2.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

from app.gemma.attention import softcapped_attention
from benchmarks.measure import medians, one_thread, peak_bytes, write

WIDTH, SOFTCAP = 64, 50.0


@dataclass(frozen=True)
class Case:
    """One sequence, and the heads of the layer."""

    documents: tuple[int, ...]
    """Lengths of the documents (tokens)."""
    window: int | None
    heads: int = 8
    kv_heads: int = 4


CASES = {
    "causal": Case((4096,), None),
    "window1024": Case((4096,), 1024),
    "packed8": Case((512,) * 8, None),
    "demo_row": Case((60, 90, 75, 110, 64, 77, 52, 130, 70, 40), 256, heads=4, kv_heads=2),
}


def step(case: Case, name: str) -> Callable[[], tuple[Tensor, ...]]:
    """Return one forward and backward pass; tensors that layers share are computed before it."""
    torch.manual_seed(0)
    length = sum(case.documents)
    query, key, value = (
        torch.randn(1, length, heads, WIDTH).transpose(1, 2).requires_grad_()
        for heads in (case.heads, case.kv_heads, case.kv_heads)
    )
    grad_output = torch.randn(1, length, case.heads, WIDTH)
    document_ids = torch.repeat_interleave(torch.tensor(case.documents))[None]
    scale = WIDTH**-0.5

    if name == "ours":
        return lambda: torch.autograd.grad(
            softcapped_attention(
                query,
                key,
                value,
                scale=scale,
                softcap=SOFTCAP,
                window=case.window,
                document_ids=document_ids,
            ).transpose(1, 2),
            (query, key, value),
            grad_output,
        )

    # transformers takes a mask of all pairs
    layer: Any = nn.Module()
    layer.num_key_value_groups = case.heads // case.kv_heads
    distance = torch.arange(length)[:, None] - torch.arange(length)
    visible = (
        (distance >= 0)
        & (distance < (case.window or length))
        & (document_ids[0][:, None] == document_ids[0])
    )
    mask = torch.zeros(1, 1, length, length).masked_fill_(~visible, torch.finfo(torch.float32).min)
    return lambda: torch.autograd.grad(
        eager_attention_forward(layer, query, key, value, mask, scaling=scale, softcap=SOFTCAP)[0],
        (query, key, value),
        grad_output,
    )


def main() -> None:
    """Run the benchmark and write its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()

    one_thread()
    figures, details = {}, {}
    for name, case in CASES.items():
        candidates = {"ours": step(case, "ours"), "eager": step(case, "eager")}

        # compare gradients
        error = max(
            float((ours - theirs).abs().max() / theirs.abs().max())
            for ours, theirs in zip(candidates["ours"](), candidates["eager"](), strict=True)
        )

        # measure
        seconds = medians(candidates)
        extra = {candidate: peak_bytes(step, case, candidate) for candidate in candidates}
        figures[f"speedup_{name}"] = seconds["eager"] / seconds["ours"]
        figures[f"memory_ratio_{name}"] = extra["ours"] / extra["eager"]
        details[name] = {
            "seconds": seconds,
            "extra_bytes": extra,
            "max_relative_gradient_error": error,
        }

    write({"figures": figures, "cases": details}, arguments.json)


if __name__ == "__main__":
    main()
