"""Compare memory and time of real Gemma 2 steps on a GPU with the plan; measure attention alone.

    python -m benchmarks.gpu --json outputs/bench/gpu.json [--only NAME …]

The models have the published shapes and random weights, drawn and quantised on the GPU. Memory is
the allocator's peak over one optimizer step in the middle of a job. The allocator is capped at the
size of the card that the plan was made for.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from torch import Tensor, nn
from transformers import Gemma2Config
from transformers.models.gemma2.modeling_gemma2 import (
    Gemma2RotaryEmbedding,
    eager_attention_forward,
)

from app.config import Config, load_config
from app.gemma.activation_checkpoint import apply_memory_config
from app.gemma.attention import softcapped_attention
from app.gemma.load import DTYPES, CaptionLoss, add_lora
from app.gemma.published import load_model_config_offline
from app.jobs.gpu_share import NON_ALLOCATOR_GIB
from app.jobs.plan import get_step_settings
from app.memory_plan.peak import init_optimizer_state, simulate_peak
from app.memory_plan.simulate import build_meta_model
from app.training.optim import build_optimizer
from app.training.parallel import LocalContext
from app.training.step import StepInput, train_step
from data_pipeline.stream.token_stream import Batch

CUDA, GIB = torch.device("cuda", 0), 2**30
OURS = (
    "model.attention=blockwise",
    "memory.offload=true",
    "lora.rank=32",
    "lora.dropout=0",
    "train.gradient_accumulation_steps=1",
    "scaling.num_workers=1",
)
SMALL = (*OURS, "optim.kind=adamw_8bit", "memory.embedding=host")


@dataclass(frozen=True)
class Job:
    """One row of the table in docs/planning.md."""

    model: str
    tokens: int
    card_gib: float
    overrides: tuple[str, ...]


JOBS = {
    "9b shipped": Job("gemma2-9b", 4096, 80, ("train.compile=false",)),
    "9b ours 8k": Job("gemma2-9b", 8192, 12, OURS),
    "9b small 8 GB": Job("gemma2-9b", 14_912, 8, SMALL),
    "9b ours 12 GB": Job("gemma2-9b", 32_704, 12, OURS),
    "9b ours 24 GB": Job("gemma2-9b", 159_552, 24, OURS),
    "27b ours 24 GB": Job("gemma2-27b", 25_088, 24, OURS),
}


def build_random_base_model(config: Config) -> Any:
    """Return the model of `load_base_model`, with random weights and without reading a file."""
    shape, dtype = load_model_config_offline(config.model), DTYPES[config.train.precision]
    attention = config.model.attention
    base = build_meta_model(shape, config.quantization, attention=attention, dtype=dtype)

    torch.manual_seed(0)
    fill_weights(base, dtype, shape)
    base.model.rotary_emb = Gemma2RotaryEmbedding(shape)
    base.model.embed_tokens.embed_scale = torch.tensor(shape.hidden_size**0.5)
    assert not [name for name, buffer in base.named_buffers() if buffer.is_meta]
    return base.to(CUDA)


def fill_weights(base: nn.Module, dtype: torch.dtype, shape: Gemma2Config) -> None:
    """Draw the weights as Gemma 2's initialisation does, which sets norms to 0."""
    given: dict[nn.Parameter, nn.Parameter] = {}  # tied weights stay tied
    for module in base.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in given:
                drawn = torch.zeros(parameter.shape, dtype=dtype, device=CUDA)
                if drawn.ndim == 2:
                    drawn.normal_(std=shape.initializer_range)
                given[parameter] = nn.Parameter(drawn, requires_grad=False)
                if isinstance(module, Linear4bit):
                    given[parameter] = quantize_on_gpu(drawn, parameter, module)
            module._parameters[name] = given[parameter]


def quantize_on_gpu(drawn: Tensor, like: Any, module: Linear4bit) -> Params4bit:
    """Return drawn weights in 4 bits, with the quantisation options of `like`."""
    options = {"quant_type": like.quant_type, "compress_statistics": like.compress_statistics}
    return Params4bit(drawn, requires_grad=False, module=module, **options).to(CUDA)


def one_step(config: Config, objective: nn.Module) -> Callable[[int], tuple[float, float]]:
    """Return a function that trains one optimizer step on one document with all tokens labelled.

    It takes the number of tokens and returns (loss, seconds).
    """
    optimizer = build_optimizer(objective, config.optim)
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    kept: list[Tensor] = []  # the optimizer state that a job has by then

    def run(tokens: int) -> tuple[float, float]:
        ids = np.random.default_rng(0).integers(3, 250_000, (1, tokens))
        batch: Batch = {"input_ids": ids, "targets": ids, "position_ids": np.arange(tokens)[None]}
        kept[:] = init_optimizer_state(get_step_settings(config), optimizer, trained)

        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()

        started = time.perf_counter()
        loss, norm = train_step(
            objective,
            optimizer,
            StepInput([batch], num_targets=tokens, seed=(0, 0)),
            learning_rate=1e-5,
            max_grad_norm=1.0,
            context=LocalContext(CUDA),
        )
        torch.cuda.synchronize()
        assert np.isfinite([loss, norm]).all(), (loss, norm)
        return loss, time.perf_counter() - started

    return run


def measure_memory(job: Job) -> dict[str, Any]:
    """Return the job's planned peak, and the allocator's peak under the cap."""
    config = load_config(job.model, [*job.overrides, f"data.sequence_tokens={job.tokens}"])
    planned = simulate_peak(get_step_settings(config))
    base = build_random_base_model(config)
    dtype = DTYPES[config.train.precision]
    objective = CaptionLoss(add_lora(base, config.lora, seed=0), dtype).to(CUDA).train()
    apply_memory_config(base, config.memory)
    run = one_step(config, objective)

    # cap the allocator, then train
    card = torch.cuda.get_device_properties(CUDA).total_memory
    torch.cuda.empty_cache()
    fraction = min(1.0, (job.card_gib - NON_ALLOCATOR_GIB) * GIB / card)
    torch.cuda.set_per_process_memory_fraction(fraction, CUDA)
    try:
        for tokens in (1024, 1536):  # compiles the kernels, the second time for any length
            run(tokens)
        loss, seconds = run(job.tokens)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, CUDA)

    free, total = torch.cuda.mem_get_info()
    return {
        "tokens": job.tokens,
        "planned_bytes": planned.num_bytes,
        "stage": planned.stage,
        "allocated_bytes": torch.cuda.max_memory_allocated(),
        "reserved_bytes": torch.cuda.max_memory_reserved(),
        "outside_allocator_bytes": total - free - torch.cuda.memory_reserved(),
        "relative_error": planned.num_bytes / torch.cuda.max_memory_allocated() - 1,
        "seconds": seconds,
        "tokens_per_second": job.tokens / seconds,
        "loss": loss,
    }


def milliseconds(run: Callable[[], Any], repeats: int = 10) -> float:
    """Return the median milliseconds of runs by CUDA events, after three warm-up runs."""
    taken = []
    for i in range(repeats + 3):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        if i >= 3:
            taken.append(begin.elapsed_time(end))
    return statistics.median(taken)


def extra_bytes(run: Callable[[], Any]) -> int:
    """Return the peak of one more run in allocated bytes, less the bytes allocated before it."""
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


ATTENTION = {
    "causal": ((8192,), None, 50.0),
    "window": ((8192,), 4096, 50.0),
    "packed": ((1024,) * 8, None, 50.0),
    "no softcap": ((8192,), None, None),
}
"""Lengths of the documents (tokens), sliding window (tokens), softcap."""


def measure_attention(
    documents: tuple[int, ...], window: int | None, softcap: float | None
) -> dict[str, Any]:
    """Measure forward and backward of one layer of the 9B (16 query, 8 key heads of 256), bf16."""
    length, options = sum(documents), {"device": CUDA, "dtype": torch.bfloat16}
    query, key, value = (
        torch.randn(1, length, heads, 256, **options).transpose(1, 2).requires_grad_()
        for heads in (16, 8, 8)
    )
    grad_output = torch.randn(1, length, 16, 256, **options).transpose(1, 2)
    ids = torch.repeat_interleave(torch.tensor(documents))[None].to(CUDA)
    places = torch.arange(length, device=CUDA)
    distance = places[:, None] - places
    visible = (distance >= 0) & (distance < (window or length)) & (ids[0][:, None] == ids[0])
    lowest = torch.finfo(torch.bfloat16).min
    mask = torch.zeros(1, 1, length, length, **options).masked_fill_(~visible, lowest)
    layer: Any = nn.Module()
    layer.num_key_value_groups = 2

    def gradients(out: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(out, (query, key, value), grad_output)

    def eager() -> Any:
        args = (layer, query, key, value, mask)
        out = eager_attention_forward(*args, scaling=1 / 16, softcap=softcap)[0]
        return gradients(out.transpose(1, 2))

    candidates: dict[str, Callable[[], Any]] = {
        "ours": lambda: gradients(
            softcapped_attention(
                query, key, value, scale=1 / 16, softcap=softcap, window=window, document_ids=ids
            )
        ),
        "eager": eager,
    }
    if softcap is None:
        candidates["flash"] = lambda: gradients(
            nn.functional.scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=1 / 16, enable_gqa=True
            )
        )

    # compare and measure
    pairs = zip(candidates["ours"](), eager(), strict=True)
    errors = [float((a - b).abs().max() / b.abs().max()) for a, b in pairs]
    flops = 3.5 * 4 * int(visible.sum()) * 16 * 256  # forward 2 products, backward 5
    taken = {each: milliseconds(run) for each, run in candidates.items()}
    return {
        "milliseconds": taken,
        "tflops": {each: flops / ms / 1e9 for each, ms in taken.items()},
        "extra_bytes": {each: extra_bytes(run) for each, run in candidates.items()},
        "max_relative_gradient_difference": max(errors),
    }


def main() -> None:
    """Run the benchmark and write its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[*ATTENTION, *JOBS], help="some of those")
    arguments = parser.parse_args()

    found: dict[str, Any] = {"device": torch.cuda.get_device_name(CUDA), "torch": torch.__version__}
    for name in arguments.only:
        try:
            found[name] = (
                measure_attention(*ATTENTION[name])
                if name in ATTENTION
                else measure_memory(JOBS[name])
            )
        except torch.cuda.OutOfMemoryError as error:
            found[name] = {"out_of_memory": str(error)[:600]}
        print(name, json.dumps(found[name]), file=sys.stderr, flush=True)
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
