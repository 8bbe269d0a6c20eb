"""Predict the seconds of one optimizer step from counted work and the measured speeds of a device.

Each kind of work takes its amount divided by its measured speed, and the kinds follow each other:
products, attention, dequantising, and the memory traffic of operations on single elements. The time
in which a GPU waits for the host is not predicted, nor is communication between workers.
"""

from dataclasses import replace

from transformers import Gemma2Config

from app.gemma.flops import Workload, count_step_flops, get_linear_shapes
from app.gemma.load import DTYPES
from app.memory_plan.peak import StepSettings
from app.speed_plan.calibration import Calibration

_LOGIT_PASSES = 12
"""Times that a logit is read or written in fp32: softcap, log-softmax and their gradients."""
_ADAM_BYTES = 28
"""Memory traffic of AdamW for one trained weight: reads of 4 numbers, and writes of 3, in fp32."""


def predict_step_seconds(
    model: Gemma2Config, settings: StepSettings, work: Workload, calibration: Calibration
) -> dict[str, float]:
    """Return the seconds of a step of one worker by kind of work.

    `work` is that of one micro-batch, whose padding counts as tokens.
    """
    memory = settings.memory.settings
    num_layers: int = model.num_hidden_layers
    num_recomputed = max(0, num_layers - memory.keep_layers) if memory.gradient_checkpointing else 0
    recomputed_share = num_recomputed / num_layers
    flops = count_step_flops(model, settings.lora, work)
    # half of the base products and a third of LoRA's and attention's are forward
    recomputed = recomputed_share * (flops.base / 2 + flops.lora / 3)

    micro_batch = {
        "products": (flops.base + flops.lora + flops.loss + recomputed) / calibration.matmul_flops,
        "attention": flops.attention * (1 + recomputed_share / 3) / calibration.attention_flops,
        "dequantising": _count_dequantised_bytes(model, settings, work, recomputed_share)
        / calibration.dequantise_bytes,
        "elements": _count_element_bytes(model, settings, work, recomputed_share)
        / calibration.memory_bytes,
    }
    seconds = {
        name: value * settings.train.gradient_accumulation_steps
        for name, value in micro_batch.items()
    }
    num_trained = _count_trained(model, settings)
    return {**seconds, "optimizer": _ADAM_BYTES * num_trained / calibration.memory_bytes}


def scale_workload(work: Workload, factor: float) -> Workload:
    """Return the workload times a factor, rounded."""
    scaled = {name: round(value * factor) for name, value in vars(work).items()}
    return replace(work, **scaled)


def _count_dequantised_bytes(
    model: Gemma2Config, settings: StepSettings, work: Workload, recomputed_share: float
) -> float:
    """Return the bytes of all dequantised weights of one micro-batch.

    Each pass dequantises each weight once. A recomputed layer dequantises the weights of its MLP
    once for each tile of tokens.
    """
    if settings.quantization.kind == "none":
        return 0.0
    tiles = -(-work.num_tokens // settings.memory.settings.tile_tokens)
    size = DTYPES[settings.train.precision].itemsize
    num_bytes = 0.0
    for name, (width_in, width_out) in get_linear_shapes(model).items():
        is_tiled = name in ("gate_proj", "up_proj", "down_proj")
        recomputing = 3 * (tiles if is_tiled else 1)  # forward, recomputed and backward
        passes = 2 + (recomputing - 2) * recomputed_share
        num_bytes += passes * width_in * width_out * size
    return num_bytes * model.num_hidden_layers


def _count_element_bytes(
    model: Gemma2Config, settings: StepSettings, work: Workload, recomputed_share: float
) -> float:
    """Return the memory traffic of the operations on single elements of one micro-batch.

    In the forward pass of a layer, numbers are read and written: 14 of the hidden width in four
    norms and two sums, 8 of queries and keys in rope, 5 of the inner width in GeGLU, and 2 of each
    output in the sum of base product and LoRA. The backward pass counts twice.
    """
    shapes = get_linear_shapes(model)
    rotated = shapes["q_proj"][1] + shapes["k_proj"][1]
    outputs = sum(shapes[name][1] for name in settings.lora.target_modules)
    numbers = 14 * model.hidden_size + 8 * rotated + 5 * model.intermediate_size + 2 * outputs

    size = DTYPES[settings.train.precision].itemsize
    layers = work.num_tokens * numbers * size * model.num_hidden_layers * (3 + recomputed_share)
    logits = work.num_targets * model.vocab_size * 4 * _LOGIT_PASSES
    return layers + logits


def _count_trained(model: Gemma2Config, settings: StepSettings) -> int:
    """Return the number of trained weights."""
    shapes, lora = get_linear_shapes(model), settings.lora
    factors = sum(sum(shapes[name]) for name in lora.target_modules) * lora.rank
    embedding = model.vocab_size * model.hidden_size if lora.train_embeddings else 0
    return int(factors * model.num_hidden_layers + embedding)
