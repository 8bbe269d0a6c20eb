"""The check that `train` makes before it starts on GPUs: the job fits into their memory."""

import json
from collections.abc import Sequence
from typing import Any

import torch

from app.config import Config, override_config
from app.errors import UserError
from app.jobs.plan import (
    CAPTION_LABEL_SHARE,
    FRAGMENTATION,
    GIB,
    NON_ALLOCATOR_GIB,
    get_cap_bytes,
    get_step_settings,
    simulate_peak_bytes,
)
from app.memory_plan.peak import MemoryPeak, find_longest_sequence, simulate_peak

REMEDIES: tuple[tuple[str, Any], ...] = (
    ("memory.gradient_checkpointing", True),
    ("memory.keep_layers", 0),
    ("model.attention", "blockwise"),
    ("train.micro_batch_size", 1),
    ("memory.offload", True),
    ("memory.embedding", "host"),
    ("quantization.kind", "nf4"),
    ("optim.kind", "adamw_8bit"),
)
"""Settings that save memory.

The first ones change gradients only by rounding; the last two lower the precision of the base
model and of the moments.
"""


def require_fit(config: Config, limit_bytes: float | None) -> MemoryPeak | None:
    """Return the peak memory of a job on GPUs; labels are assumed on captions only.

    Return None if the peak cannot be compared: on CPUs, without a known limit, and for workers that
    share weights (zero2, fsdp). Raises UserError, which names the settings to change, if the job
    does not fit in `limit_bytes`.
    """
    is_sharded = config.parallel.strategy != "ddp" and config.scaling.num_workers > 1
    if not config.scaling.use_gpu or limit_bytes is None or is_sharded:
        return None
    peak = simulate_peak(get_step_settings(config, labelled_share=CAPTION_LABEL_SHARE))
    if peak.num_bytes <= limit_bytes:
        return peak
    raise UserError(
        f"training needs {peak.num_bytes / GIB:.3g} GiB per GPU ({peak.stage}), "
        f"limit {limit_bytes / GIB:.3g} GiB: {_find_fix(config, limit_bytes / FRAGMENTATION)}"
    )


def get_memory_limit(config: Config) -> float | None:
    """Return the memory (bytes) that the job may use of a GPU, None if unknown.

    It is the smallest of memory.max_gib_per_gpu and the cards of this machine.
    """
    usable = [
        torch.cuda.get_device_properties(i).total_memory - NON_ALLOCATOR_GIB * GIB
        for i in range(torch.cuda.device_count())
    ]
    limits = [limit for limit in (get_cap_bytes(config), *usable) if limit is not None]
    return min(limits, default=None)


def _find_fix(config: Config, limit_bytes: float) -> str:
    """Return the settings that make the job fit.

    Try each remedy alone, then the first two, three, … together. If even all remedies do not
    suffice, add the longest sequence that fits with them.
    """
    remedies = _list_remedies(config)
    singles = [[remedy] for remedy in remedies]
    groups = [remedies[:n] for n in range(2, len(remedies) + 1)]
    for chosen in [*singles, *groups]:
        try:
            changed = override_config(config, dict(chosen))
        except UserError:
            continue  # it does nothing without another remedy: a group has both
        if simulate_peak_bytes(changed, labelled_share=CAPTION_LABEL_SHARE) <= limit_bytes:
            return f"set {_format_settings(chosen)}"

    with_all = override_config(config, dict(remedies))
    tokens = find_longest_sequence(
        lambda tokens: simulate_peak_bytes(
            with_all, sequence_tokens=tokens, labelled_share=CAPTION_LABEL_SHARE
        ),
        limit_bytes,
        {},
    )
    if not tokens:
        return "no sequence fits; take a smaller model or a larger card"
    return f"set {_format_settings([*remedies, ('data.sequence_tokens', tokens)])}"


def _list_remedies(config: Config) -> list[tuple[str, Any]]:
    """Return the remedies that are not yet set and that this config allows."""
    current = config.model_dump()
    remedies = []
    for path, value in REMEDIES:
        section, name = path.split(".")
        # A trained embedding cannot be kept on the host.
        is_forbidden = path == "memory.embedding" and config.lora.train_embeddings
        if current[section][name] != value and not is_forbidden:
            remedies.append((path, value))
    return remedies


def _format_settings(pairs: Sequence[tuple[str, Any]]) -> str:
    return " ".join(f"{path}={json.dumps(value).strip(chr(34))}" for path, value in pairs)
