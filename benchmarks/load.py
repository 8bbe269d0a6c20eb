"""Compare loading a 4-bit base model from disk with quantising it while loading.

    python -m benchmarks.load --json outputs/bench/load.json

The model is a random Gemma 2 of 150 M parameters in bf16, a seventh of them in its embedding (the
9B: a tenth). Its files are in the page cache. The figures are CPU seconds and resident memory. If
`prequantised_speedup` is above 1, the 4-bit files load faster. `peak_bytes_over_final` is the peak
of resident memory while the 4-bit files load, over the memory that stays.
`peak_bytes_over_final_while_quantising` is the same for quantising while loading.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from app.gemma.base_model import hash_weights
from app.gemma.config import ModelConfig, QuantizationConfig
from app.gemma.load import count_parameters, load_base_model
from app.jobs.quantize import quantize_model
from benchmarks.measure import medians, one_thread, peak_and_final_bytes, write

PAGE = 4096  # bytes
NF4 = QuantizationConfig()
CONFIG = Gemma2Config(
    vocab_size=20_000,
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=128,
    query_pre_attn_scalar=128,
    dtype="bfloat16",
)


def loading(folder: str) -> Callable[[], Gemma2ForCausalLM]:
    """Return a function that loads the base model as a worker does, and reads every page.

    The weights are memory-mapped: the system reads a page on its first use.
    """

    def load() -> Gemma2ForCausalLM:
        base = load_base_model(
            ModelConfig(name=folder), NF4, device=torch.device("cpu"), dtype=torch.bfloat16
        )
        for parameter in base.parameters():
            parameter.detach().view(torch.uint8).flatten()[::PAGE].sum()
        return base

    return load


def main() -> None:
    """Run the benchmark and write its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()

    one_thread()
    with tempfile.TemporaryDirectory() as folder:
        full, small = f"{folder}/full", f"{folder}/small"
        torch.manual_seed(0)
        model = Gemma2ForCausalLM._from_config(CONFIG, dtype=torch.bfloat16)
        model.save_pretrained(full)
        num_bytes = quantize_model(ModelConfig(name=full), NF4, Path(small))["bytes"]

        # measure
        candidates: dict[str, Callable[[], Any]] = {
            "prequantised": loading(small),
            "quantised_while_loading": loading(full),
            "hash_of_prequantised": lambda: hash_weights(ModelConfig(name=small)),
        }
        seconds = medians(candidates)
        memory = {
            name: peak_and_final_bytes(loading, path)
            for name, path in (("small", small), ("full", full))
        }

    write(
        {
            "figures": {
                "prequantised_speedup": seconds["quantised_while_loading"]
                / seconds["prequantised"],
                "peak_bytes_over_final": memory["small"][0] / memory["small"][1],
                "peak_bytes_over_final_while_quantising": memory["full"][0] / memory["full"][1],
            },
            "parameters": count_parameters(model)[1],
            "bytes_on_disk": num_bytes,
            "seconds": seconds,
            "peak_and_final_bytes": memory,
        },
        arguments.json,
    )


if __name__ == "__main__":
    main()
