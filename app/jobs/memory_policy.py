"""Replace the memory settings that are null by the fastest ones with which a step fits.

The order from fast to slow was measured on one H100 (docs/gpu.md): keep all activations; keep those
of the last layers; recompute in large tiles, then in small ones; move the layers' inputs to the
host, then also the embedding.
"""

import bisect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import psutil

from app.config import Config, override_config, validate_values
from app.errors import UserError
from app.gemma.config import MemoryConfig, MemorySettings
from app.gemma.published import load_model_config_offline
from app.jobs.fit import get_memory_limit
from app.jobs.gpu_share import GIB, get_cap_bytes, get_usable_bytes
from app.jobs.job_dir import get_job_dir, read_job_file, read_newest_checkpoint
from app.jobs.plan import FRAGMENTATION, get_step_settings
from app.memory_plan.peak import simulate_peak
from tune.config import SearchConfig
from tune.space import list_corners

LARGE_TILE = 8192
"""Tokens of a tile that is as fast as no tiles (docs/gpu.md)."""
KEPT = MemorySettings(gradient_checkpointing=False)
RECOMPUTED = MemorySettings(tile_tokens=LARGE_TILE)
SMALLER = (
    MemorySettings(),
    MemorySettings(offload=True),
    MemorySettings(offload=True, embedding="host"),
)
"""Settings for GPUs, from fast to slow. On a CPU the last two save nothing."""
_NAMES = [field.name for field in fields(MemorySettings)]
HOST_SHARE = 0.5
"""Share of a machine's memory that the workers of a job on CPUs may plan to use."""


def choose_job_memory(config: Config) -> Config:
    """Return the config of a job with a value for each memory setting, and print the choice.

    A job that continues keeps the settings of its newest checkpoint, if they fit.
    """
    newest = read_newest_checkpoint(get_job_dir(config))
    recorded = {} if newest is None else newest.metrics.get("memory", {})
    return choose_memory(config, get_worker_limit(config), recorded)


def choose_search_memory(config: Config) -> Config:
    """Return the config of a search with a value for each memory setting, and print the choice.

    The trial with the most tokens in a micro-batch, and then the highest rank, must fit. A search
    that continues keeps its settings, if they fit.
    """
    saved = read_job_file(get_job_dir(config), "search.json") or {}
    recorded = {name: saved[f"memory.{name}"] for name in _NAMES if f"memory.{name}" in saved}
    return choose_memory(config, get_worker_limit(config), recorded)


def choose_planned_memory(config: Config, gpus: Sequence[float]) -> Config:
    """Return the config with a value for each memory setting on the smallest of the cards (GiB)."""
    if not gpus:
        return choose_memory(config, get_worker_limit(config))
    limits = [get_usable_bytes(gib * GIB, config) for gib in gpus]
    cap_bytes = get_cap_bytes(config)
    return choose_memory(config, min(limits if cap_bytes is None else [*limits, cap_bytes]))


def take_least_memory(config: Config) -> Config:
    """Return the config with the memory settings of the policy that need the least memory."""
    open_names = _list_open(config)
    if not open_names:
        return config
    least = _list_candidates(_list_trials(config), open_names)[-1]
    return _with_settings(config, open_names, least)


def choose_memory(
    config: Config, limit_bytes: float | None, recorded: Mapping[str, Any] | None = None
) -> Config:
    """Return the config with a value for each memory setting, and print the choice.

    `limit_bytes` is the memory of one worker, None if unknown: then every layer is recomputed.
    """
    open_names = _list_open(config)
    if not open_names:
        return config
    if limit_bytes is None:
        print(
            "memory.policy=auto: every layer is recomputed, because this machine does not see the "
            "GPUs of the workers: set memory.max_gib_per_gpu to let the plan keep what fits",
            file=sys.stderr,
        )
        return _with_settings(config, open_names, MemorySettings())

    trials = _list_trials(config)
    candidates = _list_candidates(trials, open_names)
    if len(candidates) == 1:
        return _with_settings(config, open_names, candidates[0])
    largest = max(trials, key=_rank_by_memory)

    def simulate(settings: MemorySettings) -> float:
        return _simulate_bytes(_with_settings(largest, open_names, settings))

    continued = validate_values(MemoryConfig, recorded or {}).settings
    is_allowed = bool(recorded) and _are_allowed(trials, open_names, continued)
    if is_allowed and simulate(continued) <= limit_bytes:
        chosen = continued
    else:
        chosen = _choose_settings(config, candidates, simulate, limit_bytes)
    made = _with_settings(config, open_names, chosen)
    needed, limit = (number / GIB for number in (simulate(chosen), limit_bytes))
    print(
        f"memory.policy=auto: {_describe(made.memory.settings)} "
        f"({needed:.3g} of {limit:.3g} GiB a worker)",
        file=sys.stderr,
    )
    return made


def get_worker_limit(config: Config) -> float | None:
    """Return the memory (bytes) that one worker may use, on its GPU or on this machine."""
    return get_memory_limit(config) if config.scaling.use_gpu else get_host_limit(config)


def get_host_limit(config: Config) -> float:
    """Return the bytes of this machine or container that one worker on its CPUs may use."""
    total: int = psutil.virtual_memory().total
    container = Path("/sys/fs/cgroup/memory.max")
    if container.is_file() and (text := container.read_text().strip()).isdigit():
        total = min(total, int(text))
    return HOST_SHARE * total / config.scaling.num_workers


def _list_open(config: Config) -> list[str]:
    """Return the names of the settings that the policy chooses.

    It chooses none if the trials of a search differ in a memory setting.
    """
    is_searched = any(path.startswith("memory.") for path in config.search.space)
    if config.memory.policy != "auto" or is_searched:
        return []
    return [name for name in _NAMES if getattr(config.memory, name) is None]


def _list_candidates(trials: list[Config], open_names: list[str]) -> list[MemorySettings]:
    """Return the settings that all trials allow, from fast to slow."""
    config = trials[0]
    kept = [] if config.memory.gradient_checkpointing else [KEPT]
    allowed: dict[MemorySettings, MemorySettings] = {}
    for settings in [*kept, RECOMPUTED, *SMALLER[: None if config.scaling.use_gpu else 1]]:
        if _are_allowed(trials, open_names, settings):
            made = _with_settings(config, open_names, settings).memory.settings
            allowed.setdefault(made, settings)
    return list(allowed.values())


def _are_allowed(trials: list[Config], names: list[str], settings: MemorySettings) -> bool:
    """Return whether the named settings go with the other settings of all trials."""
    try:
        for trial in trials:
            _with_settings(trial, names, settings)
    except UserError:
        return False
    return True


def _choose_settings(
    config: Config,
    candidates: list[MemorySettings],
    simulate: Callable[[MemorySettings], float],
    limit_bytes: float,
) -> MemorySettings:
    """Return the fastest settings with which a step fits, or those that need the least memory."""
    first = bisect.bisect_left(candidates, True, key=lambda one: simulate(one) <= limit_bytes)
    chosen = candidates[min(first, len(candidates) - 1)]
    if chosen != RECOMPUTED or KEPT not in candidates or config.memory.keep_layers is not None:
        return chosen

    # Every moment of a step is linear in the number of kept layers, so its peak is convex: it lies
    # below the line from no layer to all of them. An even number is simulated in seconds.
    num_layers: int = load_model_config_offline(config.model).num_hidden_layers
    share = (limit_bytes - simulate(RECOMPUTED)) / (simulate(KEPT) - simulate(RECOMPUTED))
    return replace(RECOMPUTED, keep_layers=int(share * num_layers / 2) * 2)


def _simulate_bytes(config: Config) -> float:
    """Return the memory that a step of one worker takes (bytes).

    On a CPU it takes hardly more: its attention works block by block. Thousands of blocks would
    take minutes to simulate.
    """
    return simulate_peak(get_step_settings(config)).num_bytes * FRAGMENTATION


def _with_settings(config: Config, names: list[str], settings: MemorySettings) -> Config:
    """Return the config with the named settings. Raises UserError if it does not allow them."""
    return override_config(config, {f"memory.{name}": getattr(settings, name) for name in names})


def _list_trials(config: Config) -> list[Config]:
    """Return the configs of the corners of a search; without a search the config alone."""
    # with its search each config would check all corners
    alone = config.model_copy(update={"search": SearchConfig()})
    return [override_config(alone, corner) for corner in list_corners(config.search.space) or [{}]]


def _rank_by_memory(trial: Config) -> tuple[int, int]:
    """Return what decides most of a trial's memory: tokens of a micro-batch, and the rank."""
    return trial.train.micro_batch_size * trial.data.sequence_tokens, trial.lora.rank


def _describe(settings: MemorySettings) -> str:
    """Return what is recomputed and moved, in words."""
    if not settings.gradient_checkpointing:
        parts = ["all activations are kept"]
    elif settings.keep_layers:
        parts = [f"the activations of the last {settings.keep_layers} layers are kept"]
    else:
        parts = ["every layer is recomputed"]
    if settings.gradient_checkpointing:
        parts.append(f"tiles of {settings.tile_tokens:,} tokens")
    if settings.offload:
        parts.append("the layers' inputs on the host")
    if settings.embedding == "host":
        parts.append("the embedding on the host")
    return ", ".join(parts)
