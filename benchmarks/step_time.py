"""Compare the predicted seconds of a training step with measured ones, on one CPU thread.

    python -m benchmarks.step_time --json outputs/bench/step_time.json

It calibrates this CPU first. The models are the shipped tiny one, and four layers with the 9B's
proportions (benchmarks.step). A micro-batch has one sequence of 1,024 tokens in documents of 256,
of which every tenth token has a label. Times are CPU seconds: the median of four steps after one.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from app.config import load_config
from app.gemma.activation_checkpoint import apply_memory_config
from app.gemma.flops import Workload, count_pairs
from app.gemma.load import DTYPES, CaptionLoss, add_lora, load_base_model
from app.gemma.published import load_model_config_offline
from app.jobs.plan import get_step_settings
from app.speed_plan.calibration import Calibration, calibrate
from app.speed_plan.roofline import predict_step_seconds
from app.training.optim import build_optimizer
from app.training.parallel import LocalContext
from app.training.step import StepInput, train_step
from benchmarks.measure import one_thread
from benchmarks.step import save_model
from data_pipeline.stream.encode import IGNORE_INDEX

CPU, PRECISION = torch.device("cpu"), "fp32"
TOKENS, DOCUMENT = 1024, 256


def compare(name: str, overrides: list[str], calibration: Calibration) -> dict[str, float]:
    """Return predicted and measured seconds of a step, and the share by which the first errs."""
    settings = [f"model.name={name}", f"train.precision={PRECISION}", *overrides]
    config = load_config("demo", [*settings, "train.gradient_accumulation_steps=1"])
    shape = load_model_config_offline(config.model)

    # the batch
    ids = np.random.default_rng(0).integers(3, shape.vocab_size, (1, TOKENS)).astype(np.int32)
    positions = np.tile(np.arange(DOCUMENT, dtype=np.int32), TOKENS // DOCUMENT)[None]
    targets = np.where(np.arange(TOKENS) % 10 == 0, ids, IGNORE_INDEX)
    num_targets = int((targets != IGNORE_INDEX).sum())
    batch = {"input_ids": ids, "position_ids": positions, "targets": targets}

    # predict
    num_tokens = np.array([TOKENS])
    pairs = (count_pairs(positions, num_tokens, limit) for limit in (None, shape.sliding_window))
    work = Workload(TOKENS, num_targets, *pairs)
    by_kind = predict_step_seconds(shape, get_step_settings(config), work, calibration)

    # measure
    dtype = DTYPES[PRECISION]
    base = load_base_model(config.model, config.quantization, device=CPU, dtype=dtype)
    objective = CaptionLoss(add_lora(base, config.lora, seed=0), dtype).train()
    apply_memory_config(base, config.memory)
    optimizer = build_optimizer(objective, config.optim)
    taken = []
    for step in range(5):
        started = time.process_time()
        step_input = StepInput([batch], num_targets=num_targets, seed=(0, step))
        train_step(
            objective,
            optimizer,
            step_input,
            learning_rate=1e-4,
            max_grad_norm=1.0,
            context=LocalContext(CPU),
        )
        taken.append(time.process_time() - started)

    predicted, measured = sum(by_kind.values()), statistics.median(taken[1:])
    found = {"predicted": predicted, "measured": measured, "error": predicted / measured - 1}
    print(name, overrides, found, by_kind, flush=True)
    return found


def main() -> None:
    """Compare each model with kept and with recomputed layers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()

    one_thread()
    calibration = calibrate(CPU, PRECISION)
    print(calibration, flush=True)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for model, name in (("tiny", "tiny"), ("9b_share", save_model(3072, Path(folder)))):
            for kept in ("true", "false"):
                overrides = [f"memory.gradient_checkpointing={kept}"]
                found[f"{model} recomputed={kept}"] = compare(name, overrides, calibration)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
