"""Measure how fast a device computes, and keep the result in the user's cache folder."""

import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Params4bit

from app.gemma.attention import softcapped_attention
from app.gemma.flops import count_pairs
from app.gemma.load import DTYPES

_CACHE = "svgscribe/calibration"  # below $XDG_CACHE_HOME, which is ~/.cache if it is not set
_SECONDS = 2.0
"""Longest time of the repetitions of one measurement (seconds)."""
_MAX_REPEATS = 50
_LONG_ENOUGH = 0.02
"""A product of this duration shows the peak (seconds)."""


@dataclass(frozen=True)
class Calibration:
    """Measured speeds of one device in one precision."""

    device: str
    precision: str
    torch: str
    matmul_flops: float
    """Matrix products (operations a second)."""
    attention_flops: float
    """Attention, forward and backward, without the recomputed scores (operations a second)."""
    memory_bytes: float
    """Memory, read and written (bytes a second)."""
    dequantise_bytes: float
    """Results of dequantising NF4 with double quantisation (bytes a second)."""


def name_device(device: torch.device) -> str:
    """Return the name of the GPU, or of the CPU with the number of threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    return f"CPU ({name}, {os.cpu_count()} cores), {torch.get_num_threads()} of its threads"


def find_calibration_file(device: str, precision: str) -> Path:
    """Return the file of a device's calibration, which may not exist."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", _CACHE)
    slug = re.sub(r"[^A-Za-z0-9]+", "-", f"{device} {precision}").strip("-").lower()
    return cache / f"{slug}.json"


def read_calibration(device: str, precision: str) -> Calibration | None:
    """Return the stored calibration; None if there is none, or a file of another version."""
    try:
        text = find_calibration_file(device, precision).read_text(encoding="utf-8")
        return Calibration(**json.loads(text))
    except (OSError, ValueError, TypeError):
        return None


def describe_missing(device: str, precision: str) -> str:
    """Return the sentence that this device has no calibration, with the fix."""
    return (
        f"no calibration of {device} in {precision} ({find_calibration_file(device, precision)}): "
        "run python -m app plan CONFIG --calibrate on it"
    )


def calibrate(device: torch.device, precision: str) -> Calibration:
    """Measure the device, store the result and return it. It takes less than two minutes."""
    dtype = DTYPES[precision]
    file = find_calibration_file(name_device(device), precision)
    file.parent.mkdir(parents=True, exist_ok=True)  # before the minutes of the measurement

    calibration = Calibration(
        device=name_device(device),
        precision=precision,
        torch=torch.__version__,
        matmul_flops=_measure_matmul(device, dtype),
        attention_flops=_measure_attention(device, dtype),
        memory_bytes=_measure_memory(device),
        dequantise_bytes=_measure_dequantising(device, dtype),
    )
    file.write_text(json.dumps(asdict(calibration), indent=2) + "\n", encoding="utf-8")
    return calibration


def _measure_matmul(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations a second of square products, large enough to show the peak."""
    size = 512
    while True:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        seconds = _time(partial(torch.matmul, a, b), device)
        if seconds > _LONG_ENOUGH or size == 8192:
            return 2 * size**3 / seconds
        size *= 2


def _measure_attention(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations a second of attention of 8 heads of 256, forward and backward."""
    tokens, heads, width = (8192 if device.type == "cuda" else 1024), 8, 256
    query, key, value = (
        torch.randn(1, number, tokens, width, device=device).to(dtype).requires_grad_()
        for number in (heads, heads // 2, heads // 2)
    )

    def run() -> None:
        out = softcapped_attention(
            query, key, value, scale=width**-0.5, softcap=50.0, window=None, document_ids=None
        )
        torch.autograd.grad(out.sum(), (query, key, value))

    positions = torch.arange(tokens)[None].numpy()
    num_pairs = count_pairs(positions, torch.tensor([tokens]).numpy(), None)
    return 6 * 2 * num_pairs * heads * width / _time(run, device)


def _measure_memory(device: torch.device) -> float:
    """Return the bytes a second that a copy reads and writes."""
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _time(lambda: target.copy_(source), device)


def _measure_dequantising(device: torch.device, dtype: torch.dtype) -> float:
    """Return the bytes a second of the dequantised weight."""
    drawn = torch.randn(4096, 4096 if device.type == "cuda" else 1024).to(dtype)
    packed: Any = Params4bit(drawn, requires_grad=False, quant_type="nf4")
    weight = packed.to(device)
    seconds = _time(lambda: dequantize_4bit(weight.data, weight.quant_state), device)
    return drawn.nbytes / seconds


def _time(run: Callable[[], Any], device: torch.device) -> float:
    """Return the median seconds of one run after a warm-up.

    With one thread on a CPU it is CPU time, which other programs do not lengthen.
    """
    is_alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if is_alone else time.perf_counter
    taken: list[float] = []
    ends_at = time.monotonic() + _SECONDS
    while len(taken) < 3 or (len(taken) < _MAX_REPEATS and time.monotonic() < ends_at):
        started = clock()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(clock() - started)
    return statistics.median(taken[1:])
