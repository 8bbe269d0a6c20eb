"""Measure if the learning rate found at LoRA rank 8 also suits rank 64, by the rule of the scale.

    python -m benchmarks.rank_transfer --json outputs/bench/rank_transfer.json

Each rule gives rank 8 the scale 2. At rank 64 the scale differs by rule. The tiny model is trained
at each rank with each learning rate. A rule transfers the rate if, at rank 64, the best rate of
rank 8 gives at most 1 % more validation loss than the best rate of rank 64.
"""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path

from app.gemma.config import LoraConfig
from app.training.config import OptimConfig
from benchmarks.curves import Task, build_task, record_curve
from benchmarks.measure import one_thread

LOW, HIGH = 8, 64
RATES = [1e-3 * 2**k for k in range(6)]
NUM_STEPS = 40
RULES = {
    "alpha_constant": LoraConfig(rank=HIGH, alpha=2.0 * LOW),
    "alpha_twice_rank": LoraConfig(rank=HIGH, alpha=2.0 * HIGH),
    "rslora": LoraConfig(rank=HIGH, alpha=2.0 * math.sqrt(LOW), use_rslora=True),
}
"""The adapter of rank 64 by rule: scale 0.25, 2 and 0.71."""


def measure_losses(task: Task, lora: LoraConfig) -> dict[float, float]:
    """Return the last validation loss (nats per target) by learning rate."""
    losses = {}
    for rate in RATES:
        optim = OptimConfig(learning_rate=rate, schedule="cosine", warmup_ratio=0.1)
        losses[rate] = record_curve(task, lora, optim, eval_steps=NUM_STEPS)[-1][1]
        print(f"rank {lora.rank}, scale {lora.scale:.2f}, rate {rate:g}: {losses[rate]:.4f}")
    return losses


def main() -> None:
    """Run the benchmark and write its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    one_thread()
    started = time.process_time()

    # measure
    with tempfile.TemporaryDirectory() as folder:
        task = build_task(Path(folder), num_steps=NUM_STEPS, num_validation=8)
    low = measure_losses(task, LoraConfig(rank=LOW, alpha=2.0 * LOW))
    high = {rule: measure_losses(task, lora) for rule, lora in RULES.items()}

    # compare
    found = min(low, key=lambda rate: low[rate])
    gaps = {rule: losses[found] / min(losses.values()) - 1 for rule, losses in high.items()}
    report = {
        "figures": {f"loss_gap_{rule}": gap for rule, gap in gaps.items()},
        "rate_found": found,
        "losses_of_rank_8": {f"{rate:g}": loss for rate, loss in low.items()},
        "losses_of_rank_64": {
            rule: {f"{rate:g}": loss for rate, loss in losses.items()}
            for rule, losses in high.items()
        },
        "cpu_seconds": round(time.process_time() - started, 1),
    }
    arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
