"""Compare our loss over Gemma 2's 256,000 words with the loss of all logits at once.

    python -m benchmarks.loss --json outputs/bench/loss.json

The figures are CPU seconds and resident memory of forward and backward: bf16, frozen head, hidden
size 512, softcap 30. If `time_vs_reference` is below 1, ours is faster.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from app.gemma.loss import BUDGET_BYTES, IGNORE_INDEX, apply_softcap, softcapped_cross_entropy
from benchmarks.measure import medians, one_thread, peak_bytes, write

WORDS, WIDTH, CAP = 256_000, 512, 30.0


def reference(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Compute the loss as Gemma2ForCausalLM does: all logits, softcapped in bf16, then fp32."""
    logits = apply_softcap(F.linear(hidden, weight), CAP).float()
    return F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")


def step(
    num_tokens: int, labelled: float, name: str, budget: int = BUDGET_BYTES
) -> Callable[[], Tensor]:
    """Return one forward and backward pass.

    `labelled` is the share of positions that have a label.
    """
    torch.manual_seed(0)
    hidden = torch.randn(num_tokens, WIDTH, dtype=torch.bfloat16).requires_grad_()
    weight = torch.randn(WORDS, WIDTH, dtype=torch.bfloat16) * 0.05
    labels = torch.randint(0, WORDS, (num_tokens,))
    labels[int(num_tokens * labelled) :] = IGNORE_INDEX

    if name == "reference":
        return lambda: torch.autograd.grad(reference(hidden, weight, labels), hidden)[0]
    return lambda: torch.autograd.grad(
        softcapped_cross_entropy(hidden, weight, labels, softcap=CAP, budget=budget)[0], hidden
    )[0]


def main() -> None:
    """Run the benchmark and write its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()

    one_thread()
    figures: dict[str, float] = {}
    details = {}
    for case, labelled in (("", 1.0), ("_captions_only", 0.08)):
        candidates = {name: step(512, labelled, name) for name in ("ours", "reference")}
        ours, theirs = (candidates[name]() for name in ("ours", "reference"))
        difference = (ours - theirs).abs().max() / theirs.abs().max()
        seconds = medians(candidates)
        extra = {name: peak_bytes(step, 512, labelled, name) for name in candidates}
        figures[f"time_vs_reference{case}"] = seconds["ours"] / seconds["reference"]
        figures[f"memory_vs_reference{case}"] = extra["ours"] / extra["reference"]
        details[f"512 tokens, {labelled:.0%} labelled"] = {
            "seconds": seconds,
            "extra_bytes": extra,
            "max_relative_gradient_difference": float(difference),
        }
        del candidates

    for name, budget in (
        ("extra_bytes_8192", BUDGET_BYTES),
        ("extra_bytes_8192_budget_64mib", 64 * 2**20),
    ):
        figures[name] = peak_bytes(step, 8192, 1.0, "ours", budget)
    write({"figures": figures, "cases": details}, arguments.json)


if __name__ == "__main__":
    main()
