"""The check that `train` and `evaluate` make before they start on GPUs: they fit into memory."""

import bisect
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from app.config import Config, override_config
from app.errors import UserError
from app.jobs.gpu_share import GIB, get_cap_bytes, get_usable_bytes, require_own_cards
from app.jobs.plan import (
    CAPTION_LABEL_SHARE,
    FRAGMENTATION,
    get_step_settings,
    simulate_between_steps_bytes,
    simulate_evaluate_bytes,
)
from app.memory_plan.peak import MemoryPeak, find_longest_sequence, simulate_peak

Remedies = tuple[tuple[str, Any], ...]
REMEDIES: Remedies = (
    ("memory.gradient_checkpointing", True),
    ("memory.keep_layers", 0),
    ("model.attention", "blockwise"),
    ("train.micro_batch_size", 1),
    ("evaluate.micro_batch_size", 1),
    ("memory.offload", True),
    ("memory.embedding", "host"),
    ("quantization.kind", "nf4"),
    ("optim.kind", "adamw_8bit"),
)
"""Settings that save memory.

The first ones change gradients only by rounding; the last two lower the precision of the base
model and of the moments.
"""

EVALUATION_REMEDIES: Remedies = (
    ("evaluate.micro_batch_size", 1),
    ("evaluate.generation_batch_size", 1),
    ("model.attention", "blockwise"),
    ("memory.embedding", "host"),
    ("quantization.kind", "nf4"),
)
"""Settings that save memory in an evaluation."""


def require_fit(config: Config, limit_bytes: float | None) -> MemoryPeak | None:
    """Return the peak memory of a job on GPUs; labels are assumed on captions only.

    Return None if the peak cannot be compared: on CPUs, without a known limit, and for workers that
    share weights (zero2, fsdp). Raises UserError, which names the settings to change, if a step or
    an evaluation between two steps does not fit in `limit_bytes`, or if workers share a card.
    """
    require_own_cards(config, config.scaling.num_workers)
    is_sharded = config.parallel.strategy != "ddp" and config.scaling.num_workers > 1
    if not config.scaling.use_gpu or limit_bytes is None or is_sharded:
        return None

    peak = simulate_peak(get_step_settings(config, labelled_share=CAPTION_LABEL_SHARE))
    between_steps_bytes = simulate_between_steps_bytes(config, peak)
    num_bytes, stage = max((peak.num_bytes, peak.stage), (between_steps_bytes, "evaluation"))
    if num_bytes <= limit_bytes:
        return peak
    fix = _find_fix(config, REMEDIES, _simulate_train_bytes, limit_bytes)
    raise UserError(_describe_excess("training", num_bytes, f" ({stage})", limit_bytes, fix))


def require_evaluation_fit(config: Config, limit_bytes: float | None) -> None:
    """Raise UserError, which names the settings to change, if `evaluate` does not fit on its GPU.

    On CPUs, and without a known limit, nothing is compared.
    """
    if not config.scaling.use_gpu or limit_bytes is None:
        return
    num_bytes = simulate_evaluate_bytes(config)
    if num_bytes > limit_bytes:
        fix = _find_fix(config, EVALUATION_REMEDIES, simulate_evaluate_bytes, limit_bytes)
        raise UserError(_describe_excess("evaluation", num_bytes, "", limit_bytes, fix))


def _describe_excess(work: str, num_bytes: int, stage: str, limit_bytes: float, fix: str) -> str:
    needed, limit = (f"{number / GIB:.3g} GiB" for number in (num_bytes, limit_bytes))
    return f"{work} needs {needed} per GPU{stage}, limit {limit}: {fix}"


def get_memory_limit(config: Config) -> float | None:
    """Return the memory (bytes) that one worker may use of a GPU, None if unknown.

    It is its share of the smallest of memory.max_gib_per_gpu and the cards of this machine.
    """
    usable = [
        get_usable_bytes(torch.cuda.get_device_properties(i).total_memory, config)
        for i in range(torch.cuda.device_count())
    ]
    limits = [limit for limit in (get_cap_bytes(config), *usable) if limit is not None]
    return min(limits, default=None)


def _simulate_train_bytes(config: Config) -> int:
    """Return the higher peak of a step and of an evaluation between two steps."""
    peak = simulate_peak(get_step_settings(config, labelled_share=CAPTION_LABEL_SHARE))
    return max(peak.num_bytes, simulate_between_steps_bytes(config, peak))


def _find_fix(
    config: Config,
    remedies: Remedies,
    simulate_bytes: Callable[[Config], int],
    limit_bytes: float,
) -> str:
    """Return the settings with which the simulated bytes fit.

    Every remedy lowers the peak. If all remedies together do not suffice, add the longest sequence
    that fits with them. Otherwise return the first remedy that suffices alone, or else the first
    two, three, … together.
    """
    limit_bytes /= FRAGMENTATION
    possible = _list_remedies(config, remedies)
    with_all = override_config(config, dict(possible))

    def fits(chosen: Sequence[tuple[str, Any]]) -> bool:
        try:
            changed = override_config(config, dict(chosen))
        except UserError:
            return False  # it does nothing without another remedy: a group has both
        return simulate_bytes(changed) <= limit_bytes

    if simulate_bytes(with_all) <= limit_bytes:
        # A remedy that suffices alone suffices in every group that holds it.
        sizes = range(1, len(possible))
        smallest = 1 + bisect.bisect_left(sizes, True, key=lambda size: fits(possible[:size]))
        singles = ([remedy] for remedy in possible[smallest - 1 :])
        chosen = next(filter(fits, singles), possible[:smallest])
        return f"set {_format_settings(chosen)}"

    tokens = find_longest_sequence(
        lambda tokens: simulate_bytes(override_config(with_all, {"data.sequence_tokens": tokens})),
        limit_bytes,
        {},
        max_tokens=config.data.sequence_tokens,
    )
    if not tokens:
        return "no sequence fits; take a smaller model or a larger card"
    return f"set {_format_settings([*possible, ('data.sequence_tokens', tokens)])}"


def _list_remedies(config: Config, remedies: Remedies) -> list[tuple[str, Any]]:
    """Return the remedies that are not yet set and that this config allows."""
    current = config.model_dump()
    current["memory"].update(asdict(config.memory.settings))
    possible = []
    for path, value in remedies:
        section, name = path.split(".")
        # A trained embedding cannot be kept on the host.
        is_forbidden = path == "memory.embedding" and config.lora.train_embeddings
        if current[section][name] != value and not is_forbidden:
            possible.append((path, value))
    return possible


def _format_settings(pairs: Sequence[tuple[str, Any]]) -> str:
    return " ".join(f"{path}={json.dumps(value).strip(chr(34))}" for path, value in pairs)
