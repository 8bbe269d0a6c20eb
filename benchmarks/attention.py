"""Forward and backward of one attention layer: ours against transformers' eager, in CPU seconds and resident memory.

    python -m benchmarks.attention --json outputs/bench/attention.json

fp32, softcap 50. 4,096 tokens, 8 heads of 64 over 4 key heads; and the demo's rows: 768 tokens, 4 heads over 2.
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
    documents: tuple[int, ...]
    """Lengths (tokens)."""
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
    """One forward and backward pass, with everything that layers share already there."""
    torch.manual_seed(0)
    length = sum(case.documents)
    query, key, value = (
        torch.randn(1, length, heads, WIDTH).transpose(1, 2).requires_grad_()
        for heads in (case.heads, case.kv_heads, case.kv_heads)
    )
    upstream = torch.randn(1, length, case.heads, WIDTH)
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
            upstream,
        )
    layer: Any = nn.Module()
    layer.num_key_value_groups = case.heads // case.kv_heads
    back = torch.arange(length)[:, None] - torch.arange(length)
    seen = (
        (back >= 0)
        & (back < (case.window or length))
        & (document_ids[0][:, None] == document_ids[0])
    )
    mask = torch.zeros(1, 1, length, length).masked_fill_(~seen, torch.finfo(torch.float32).min)
    return lambda: torch.autograd.grad(
        eager_attention_forward(layer, query, key, value, mask, scaling=scale, softcap=SOFTCAP)[0],
        (query, key, value),
        upstream,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    one_thread()
    figures, details = {}, {}
    for name, case in CASES.items():
        candidates = {"ours": step(case, "ours"), "eager": step(case, "eager")}
        error = max(
            float((ours - theirs).abs().max() / theirs.abs().max())
            for ours, theirs in zip(candidates["ours"](), candidates["eager"](), strict=True)
        )
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
