"""Tune the tiny base model with each combination of Gemma 2's two softcaps, side by side.

    python -m benchmarks.softcaps --json outputs/bench/softcaps.json

Each job starts from the same base model in fp32, which was trained with both softcaps, and takes
the same steps on scenes in a caption style that is new to it. Two seeds show the noise. The probes
measure the model before and after the tuning. The command also draws the loss curves, in an SVG
beside the JSON file.
"""

import argparse
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from app.evaluation.probes.model import list_metrics, probe_model
from app.gemma.config import LoraConfig, ModelConfig, QuantizationConfig
from app.gemma.load import CaptionLoss, add_lora, load_base_model
from app.training.config import OptimConfig
from app.training.optim import build_optimizer, compute_learning_rate
from app.training.parallel import LocalContext
from app.training.step import StepInput, compute_mean_loss, train_step
from benchmarks.measure import one_thread
from data_pipeline.sources.scenes import generate_scenes
from data_pipeline.stream.encode import IGNORE_INDEX, Example, PromptEncoder
from data_pipeline.stream.pack import pack_examples
from data_pipeline.stream.token_stream import Batch

COMBINATIONS = {
    "both": (True, True),
    "attention only": (True, False),
    "logits only": (False, True),
    "none": (False, False),
}
"""Softcap of (attention scores, output logits): on or off."""
SEEDS = (0, 1)
STEPS, EVAL_STEPS = 160, 20
SEQUENCE_TOKENS = 176
SCENES, HELD_OUT, PROBES = 160, 20, 4
OPTIM = OptimConfig(learning_rate=2e-3, schedule="cosine", warmup_ratio=0.05, max_grad_norm=1.0)
COLOURS = {
    "both": "#1b6e53",
    "attention only": "#c2571a",
    "logits only": "#2b5fa8",
    "none": "#8a2f6b",
}
CPU = LocalContext(torch.device("cpu"))


def make_batches(examples: Sequence[Example]) -> list[Batch]:
    """Return packed sequences, each as a micro-batch of one."""
    return [
        {
            "input_ids": _pad(sequence.input_ids, 0),
            "position_ids": _pad(sequence.position_ids, 0),
            "targets": _pad(sequence.targets, IGNORE_INDEX),
        }
        for sequence in pack_examples(examples, SEQUENCE_TOKENS)
    ]


def _pad(column: Any, value: int) -> Any:
    return np.pad(column, (0, SEQUENCE_TOKENS - len(column)), constant_values=value)[None]


def tune(
    softcaps: tuple[bool, bool], seed: int, train: Sequence[Batch], held_out: Sequence[Batch],
    probed: Sequence[Example],
) -> dict[str, Any]:  # fmt: skip
    """Tune the tiny model; return its loss curve, gradient norms and probes before and after."""
    model = ModelConfig(attention_softcap=softcaps[0], logit_softcap=softcaps[1])
    base_model = load_base_model(
        model, QuantizationConfig(kind="none"), device=CPU.device, dtype=torch.float32
    )
    adapted = add_lora(base_model, LoraConfig(rank=16, alpha=32), seed=seed)
    objective = CaptionLoss(adapted, torch.float32).train()
    optimizer = build_optimizer(objective, OPTIM)

    curve = {0: compute_mean_loss(objective, held_out, CPU)}
    grad_norms = []
    before = list_metrics(probe_model(objective, probed))
    order = np.random.default_rng(seed).permutation(len(train))
    for step in range(STEPS):
        batch = train[order[step % len(train)]]
        num_targets = int((batch["targets"] != IGNORE_INDEX).sum())
        outcome = train_step(
            objective,
            optimizer,
            StepInput([batch], num_targets, seed=(seed, step)),
            learning_rate=compute_learning_rate(OPTIM, (step + 0.5) / STEPS),
            max_grad_norm=OPTIM.max_grad_norm,
            context=CPU,
        )
        grad_norms.append(outcome.grad_norm)
        if (step + 1) % EVAL_STEPS == 0:
            curve[step + 1] = compute_mean_loss(objective, held_out, CPU)

    after = list_metrics(probe_model(objective, probed))
    return {
        "loss": curve,
        "largest_grad_norm": max(grad_norms),
        "probes_before": before,
        "probes_after": after,
    }


def average_curves(runs: dict[str, dict[int, dict[str, Any]]]) -> dict[str, dict[int, float]]:
    """Return the loss of each combination at each evaluated step, as the mean of its seeds."""
    return {
        name: {
            step: float(np.mean([run["loss"][step] for run in by_seed.values()]))
            for step in by_seed[SEEDS[0]]["loss"]
        }
        for name, by_seed in runs.items()
    }


def draw_curves(curves: dict[str, dict[int, float]]) -> str:
    """Return an SVG of the loss (log scale) over the steps: one line for each combination."""
    width, height, left, top = 640, 360, 56, 24
    values = [loss for curve in curves.values() for loss in curve.values()]
    low, high = np.log(min(values)), np.log(max(values))

    def place(step: int, loss: float) -> str:
        x = left + step / STEPS * (width - left - 24)
        y = top + (high - np.log(loss)) / (high - low) * (height - top - 48)
        return f"{x:.1f},{y:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="{left}" y="16">loss on held-out scenes (nats a token, log scale)</text>',
        f'<text x="{width - 24}" y="{height - 8}" text-anchor="end">{STEPS} steps</text>',
        f'<text x="{left}" y="{height - 8}" text-anchor="middle">0</text>',
    ]
    for loss in (min(values), max(values)):
        y = place(0, loss).split(",")[1]
        parts.append(f'<text x="{left - 8}" y="{y}" text-anchor="end">{loss:.3g}</text>')
        parts.append(f'<path d="M{left} {y}H{width - 24}" stroke="#ddd"/>')
    for i, (name, curve) in enumerate(curves.items()):
        points = " ".join(place(step, loss) for step, loss in curve.items())
        colour = COLOURS[name]
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        y = top + 28 + i * 18
        parts.append(f'<path d="M{width - 200} {y - 4}h24" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{width - 168}" y="{y}">softcaps: {name}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    """Run the study, and write its figures as JSON and its curves as SVG."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    one_thread()
    started = time.process_time()

    # data
    encoder = PromptEncoder("app/gemma/tiny", "Describe:")
    scenes = generate_scenes(SCENES + HELD_OUT, seed=77, style="list")
    examples = [encoder.encode(scene.svg, scene.caption) for scene in scenes]
    train, held_out = make_batches(examples[HELD_OUT:]), make_batches(examples[:HELD_OUT])

    # tune
    runs: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in COMBINATIONS}
    for seed, (name, softcaps) in itertools.product(SEEDS, COMBINATIONS.items()):
        run = tune(softcaps, seed, train, held_out, examples[:PROBES])
        runs[name][seed] = run
        loss = run["loss"]
        print(f"{name}, seed {seed}: loss {loss[0]:.4f} to {loss[STEPS]:.4f}", flush=True)

    # report
    curves = average_curves(runs)
    figures = {
        f"{when}_{name.replace(' ', '_')}": curve[step]
        for name, curve in curves.items()
        for when, step in (("loss_before", 0), ("loss_after", STEPS))
    }
    report = {"figures": figures, "runs": runs, "cpu_seconds": time.process_time() - started}
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    arguments.json.with_suffix(".svg").write_text(draw_curves(curves))
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
