"""Compare the simulated peak memory of one optimizer step with the measured resident memory.

    python -m benchmarks.memory --json outputs/bench/memory.json

Each case is a separate process with a real NF4 base model (random weights) on the CPU. Resident
memory is VmHWM of a step in the middle of a job, less VmRSS before the model was loaded. The
allocator returns freed blocks of 64 KiB at once, and oneDNN keeps no primitives with their scratch
memory. One token in 16 has a label, as in real sequences.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from app.config import Config, load_config
from app.gemma.activation_checkpoint import apply_memory_config
from app.gemma.load import DTYPES, CaptionLoss, add_lora, load_base_model
from app.gemma.loss import IGNORE_INDEX
from app.jobs.plan import get_step_settings
from app.memory_plan.peak import init_optimizer_state, simulate_peak
from app.training.optim import build_optimizer
from app.training.parallel import LocalContext
from app.training.step import StepInput, train_step
from benchmarks.measure import one_thread, settled_bytes, status, write

WIDE = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "query_pre_attn_scalar": 128,
    "sliding_window": 512,
    "vocab_size": 16_000,
}
VOCABULARY = {
    **WIDE,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "vocab_size": 256_000,
}
CASES: dict[str, tuple[dict[str, int], list[str]]] = {
    "recomputed in tiles": (WIDE, ["memory.tile_tokens=256"]),
    "offloaded": (WIDE, ["memory.tile_tokens=256", "memory.offload=true"]),
    "kept": (WIDE, ["memory.gradient_checkpointing=false", "data.sequence_tokens=1024"]),
    "last two layers kept": (WIDE, ["memory.keep_layers=2"]),
    "eager attention": (WIDE, ["model.attention=eager", "data.sequence_tokens=1024"]),
    "8-bit moments, rank 128": (WIDE, ["optim.kind=adamw_8bit", "lora.rank=128"]),
    "16-bit base, accumulated": (
        WIDE,
        ["quantization.kind=none", "train.gradient_accumulation_steps=2"],
    ),
    "fp32, two rows": (
        WIDE,
        ["train.precision=fp32", "train.micro_batch_size=2", "data.sequence_tokens=512"],
    ),
    "256k words, on the host": (VOCABULARY, ["data.sequence_tokens=512", "memory.embedding=host"]),
}
LABELLED = 1 / 16
RETURNED_AT_ONCE = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_ARENA_MAX": "1",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0",
    "LRU_CACHE_CAPACITY": "1",
}
"""Environment in which freed memory goes back to the system at once."""


def config_of_case(case: str, folder: Path) -> Config:
    """Return the config of the case, for the model in the folder."""
    overrides = [
        f"model.name={folder}",
        "train.precision=bf16",
        "data.sequence_tokens=2048",
        "scaling.num_workers=1",
        "lora.rank=32",
    ]
    return load_config(None, [*overrides, *CASES[case][1]])


def save_model(shape: dict[str, int], folder: Path) -> Path:
    """Save a model of this shape with random weights, in bf16."""
    if not folder.exists():
        Gemma2ForCausalLM(Gemma2Config(**shape)).to(torch.bfloat16).save_pretrained(folder)
    return folder


def train_steps(config: Config, num_steps: int) -> Any:
    """Train some optimizer steps on random tokens; return the objects that keep their memory."""
    dtype = DTYPES[config.train.precision]
    base = load_base_model(
        config.model, config.quantization, device=torch.device("cpu"), dtype=dtype
    )

    # copy the weights out of the mapped file as a GPU would; its pages are then freed
    for parameter in base.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.clone()

    objective = CaptionLoss(add_lora(base, config.lora, seed=0), dtype).train()
    apply_memory_config(base, config.memory)
    optimizer = build_optimizer(objective, config.optim)
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]

    # one micro-batch
    shape = (config.train.micro_batch_size, config.data.sequence_tokens)
    ids = np.random.default_rng(0).integers(3, 900, shape)
    targets = np.where(np.arange(shape[1]) < shape[1] * LABELLED, ids, IGNORE_INDEX)
    batch = {
        "input_ids": ids,
        "targets": targets,
        "position_ids": np.broadcast_to(np.arange(shape[1]), shape).copy(),
    }

    num_targets = int((targets != IGNORE_INDEX).sum())
    for _ in range(num_steps):
        init_optimizer_state(get_step_settings(config), optimizer, trained)
        settled_bytes()
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
        train_step(
            objective,
            optimizer,
            StepInput([batch], num_targets=num_targets, seed=(0, 0)),
            learning_rate=1e-5,
            max_grad_norm=1.0,
            context=LocalContext(torch.device("cpu")),
        )
    return objective, optimizer


def resident(case: str, folder: Path) -> int:
    """Return the bytes that a step adds in this process, which must be a new one."""
    one_thread()
    config = config_of_case(case, folder)
    train_steps(config, 1)  # memory that libraries keep after their first use does not count
    before = settled_bytes()
    held = train_steps(config, 2)
    taken = status("VmHWM") - before
    del held
    return taken


def run_in_new_process(case: str, folder: Path) -> int:
    """Return `resident(case, folder)` of a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", "--case", case, str(folder)],
        env={**os.environ, **RETURNED_AT_ONCE},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return int(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Run the benchmark and write its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--case", nargs=2, metavar=("NAME", "FOLDER"), help="one case, in this process"
    )
    arguments = parser.parse_args()

    if arguments.case:
        print(resident(arguments.case[0], Path(arguments.case[1])))
        return

    cases, errors = {}, {}
    with tempfile.TemporaryDirectory() as root:
        for case, (shape, _) in CASES.items():
            folder = save_model(shape, Path(root) / f"{shape['hidden_size']}-{shape['vocab_size']}")
            measured = run_in_new_process(case, folder)
            settings = get_step_settings(config_of_case(case, folder), labelled_share=LABELLED)
            simulated = simulate_peak(dataclasses.replace(settings, on_gpu=False)).num_bytes
            errors[case] = simulated / measured - 1
            cases[case] = {
                "simulated_bytes": simulated,
                "resident_bytes": measured,
                "relative_error": errors[case],
            }
            print(
                f"{case}: simulated {simulated / 2**20:.0f} MiB, resident {measured / 2**20:.0f}",
                flush=True,
            )
    figures = {"max_relative_error": max(map(abs, errors.values())), "num_shapes": len(cases)}
    write({"figures": figures, "cases": cases}, arguments.json)


if __name__ == "__main__":
    main()
