"""`python -m app plan`: memory by category, the longest row on each card, steps, tokens, hours, sizes of checkpoints;
and the check that `train` makes before it starts on GPUs."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from app.config import Config, override_config
from app.errors import UserError
from app.gemma.base_model import resolve_model_source
from app.jobs.job import build_stream
from app.memory_plan.peak import (
    MemoryPeak,
    StepSettings,
    find_longest_sequence,
    simulate_peak,
)
from data_pipeline.errors import DataError
from data_pipeline.shards import open_shards

GIB = 2**30
OUTSIDE_GIB = 1.0
"""Of a card, what is not the allocator's: CUDA's context and loaded kernels (GiB). Measured on one H100: 0.9 to 1.2."""
FRAGMENTATION = 1.08
"""What the allocator must hold for each byte that is live. Under caps of 7.25 and 11.25 GiB it ran out of memory on one
H100 when 1.05 and 1.07 of what was live were not enough."""
CARDS_GIB = (8.0, 12.0, 16.0, 24.0, 40.0, 48.0, 80.0)
LABELS_ONLY = 0.08
"""Share of a row's tokens that are a caption's, as in benchmarks/loss.py."""
REMEDIES: tuple[tuple[str, Any], ...] = (
    ("memory.gradient_checkpointing", True), ("memory.keep_layers", 0), ("model.attention", "blockwise"),
    ("train.micro_batch_size", 1), ("memory.offload", True), ("memory.embedding", "host"),
    ("quantization.kind", "nf4"), ("optim.kind", "adamw_8bit"),
)  # fmt: skip
"""What saves memory: first what changes no gradient but for rounding, last the precision of base and moments."""


@dataclass(frozen=True)
class Card:
    """One card's longest rows (tokens)."""

    gib: float
    max_tokens: int
    max_tokens_labels_only: int


def parse_gib(text: str) -> float:
    """`24GiB`, `24` → 24.0. Raises UserError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:GiB|GB|G)?", text.strip(), re.IGNORECASE)
    if not found or not float(found[1]):
        raise UserError(f"--gpu {text}: give the card's memory, such as 24GiB")
    return float(found[1])


def get_step_settings(
    config: Config, *, sequence_tokens: int | None = None, labelled_share: float = 1.0
) -> StepSettings:
    """Return the settings of a job that decide its memory; `sequence_tokens` replaces the config's."""
    return StepSettings(
        model=config.model,
        quantization=config.quantization,
        lora=config.lora,
        memory=config.memory,
        optim=config.optim,
        train=config.train,
        num_workers=config.scaling.num_workers,
        sequence_tokens=sequence_tokens or config.data.sequence_tokens,
        labelled_share=labelled_share,
    )


def _peak_bytes(
    config: Config, *, sequence_tokens: int | None = None, labelled_share: float
) -> int:
    settings = get_step_settings(
        config, sequence_tokens=sequence_tokens, labelled_share=labelled_share
    )
    return simulate_peak(settings).num_bytes


def make_plan(
    config: Config, gpus: Sequence[float], *, max_context: bool, speed: float | None
) -> dict[str, Any]:
    """The plan as `--json` prints it. gpus: cards (GiB); speed: tokens a second of the whole job, None if unknown."""
    found = simulate_peak(get_step_settings(config))
    cap = _cap(config)
    limits = [*([] if cap is None else [cap / FRAGMENTATION]), *map(_usable, gpus)]
    cards = []
    if max_context:
        cards = plan_cards(config, gpus or CARDS_GIB)
    trained = found.by_category["lora"]
    tokens, steps = estimate_tokens_and_steps(config)
    return {
        "model": config.model.name,
        "sequence_tokens": config.data.sequence_tokens,
        "peak_bytes": found.num_bytes,
        "by_category": found.by_category,
        "stage": found.stage,
        "limit_bytes": min(limits, default=None),
        "fits": found.num_bytes <= min(limits) if limits else None,
        "cards": [vars(card) for card in cards],
        "optimizer_steps": steps,
        "tokens": tokens,
        "hours": tokens / speed / 3600 if tokens and speed else None,
        "checkpoint_bytes": {"adapter": trained, "optimizer": found.by_category["optimizer"]},
    }


def format_plan(plan: dict[str, Any]) -> str:
    """The plan for people."""
    lines = [
        f"{plan['model']}, rows of {plan['sequence_tokens']:,} tokens, all labelled; GiB of a worker (parallel=ddp):"
    ]
    lines += [
        f"  {name:<12}{num_bytes / GIB:8.2f}" for name, num_bytes in plan["by_category"].items()
    ]
    lines += [f"  {'peak':<12}{plan['peak_bytes'] / GIB:8.2f}  in {plan['stage']}"]
    if plan["fits"] is not None:
        lines += [
            f"{'fits' if plan['fits'] else 'does NOT fit'} into {plan['limit_bytes'] / GIB:.2f} GiB"
        ]
    lines += [
        f"{card['gib']:g} GiB: longest row {card['max_tokens']:,} tokens, "
        f"{card['max_tokens_labels_only']:,} with labels on captions only ({LABELS_ONLY:.0%})"
        for card in plan["cards"]
    ]
    sizes = plan["checkpoint_bytes"]
    lines += [
        f"a checkpoint: adapter {sizes['adapter'] / GIB:.2f}, optimizer {sizes['optimizer'] / GIB:.2f} GiB"
    ]
    if plan["optimizer_steps"] is None:
        lines += ["steps and tokens: unknown, the shards or the tokenizer are not here"]
    else:
        hours = (
            "give --tokens-per-second for hours"
            if plan["hours"] is None
            else f"about {plan['hours']:.1f} hours"
        )
        lines += [
            f"about {plan['optimizer_steps']:,} optimizer steps, {plan['tokens']:,} tokens; {hours}"
        ]
    return "\n".join(lines)


def plan_cards(config: Config, gpus: Sequence[float]) -> list[Card]:
    """The longest rows on each card, found from the largest card on: its rows bound the others'."""
    found = {}
    for labelled in (1.0, LABELS_ONLY):
        known: dict[int, int] = {}
        for gib in sorted(gpus, reverse=True):

            def peak_bytes(tokens: int, labelled: float = labelled) -> int:
                return _peak_bytes(config, sequence_tokens=tokens, labelled_share=labelled)

            found[gib, labelled] = find_longest_sequence(peak_bytes, _usable(gib), known)
    return [Card(gib, found[gib, 1.0], found[gib, LABELS_ONLY]) for gib in gpus]


def estimate_tokens_and_steps(config: Config) -> tuple[int, int] | tuple[None, None]:
    """(tokens, optimizer steps) of the job, from its first window of examples; None without shards or tokenizer."""
    source = resolve_model_source(config.model.name)
    if not Path(source).is_dir():
        return None, None
    try:
        stream = build_stream(config, open_shards(config.data.shards))
        block = stream.shuffle_block(0)
    except DataError:
        return None, None
    num_examples = stream.num_train_examples
    block_examples = min(num_examples, config.data.shuffle_block_examples)
    num_blocks = stream.num_epochs * num_examples / block_examples
    rows_a_step = (
        config.train.micro_batch_size
        * config.train.gradient_accumulation_steps
        * config.scaling.num_workers
    )
    rows = num_blocks * len(block["num_tokens"])
    steps = math.ceil(rows / rows_a_step)
    if config.train.max_steps is not None:
        steps = min(steps, config.train.max_steps)
    return round(min(rows, steps * rows_a_step) * float(block["num_tokens"].mean())), steps


def require_fit(config: Config, limit_bytes: float | None) -> MemoryPeak | None:
    """Raises UserError, which names the settings that would do, for a job on GPUs that cannot fit in limit_bytes even
    if only captions are labelled. Returns the peak; None where nothing can be said: on CPUs, without a known limit, and
    for workers that share weights (zero2, fsdp)."""
    shared = config.parallel.strategy != "ddp" and config.scaling.num_workers > 1
    if not config.scaling.use_gpu or limit_bytes is None or shared:
        return None
    found = simulate_peak(get_step_settings(config, labelled_share=LABELS_ONLY))
    if found.num_bytes <= limit_bytes:
        return found
    short = f"training takes {found.num_bytes / GIB:.3g} GiB a GPU, of which {limit_bytes / GIB:.3g} are there"
    raise UserError(f"{short} ({found.stage}): {_fix(config, limit_bytes / FRAGMENTATION)}")


def get_memory_limit(config: Config) -> float | None:
    """What the job may take of a GPU (bytes): memory.max_gib_per_gpu, and this machine's cards where it has some."""
    usable = [
        torch.cuda.get_device_properties(i).total_memory - OUTSIDE_GIB * GIB
        for i in range(torch.cuda.device_count())
    ]
    return min([limit for limit in (_cap(config), *usable) if limit is not None], default=None)


def _fix(config: Config, limit_bytes: float) -> str:
    """The first settings, one or several in order, that make the job fit; else the longest row besides."""
    current = config.model_dump()
    open_to = []
    for path, value in REMEDIES:
        section, name = path.split(".")
        trained = (
            path == "memory.embedding" and config.lora.train_embeddings
        )  # on the host it can only be frozen
        if current[section][name] != value and not trained:
            open_to.append((path, value))
    singles = [[remedy] for remedy in open_to]
    for chosen in [*singles, *(open_to[:n] for n in range(2, len(open_to) + 1))]:
        if (
            _peak_bytes(override_config(config, dict(chosen)), labelled_share=LABELS_ONLY)
            <= limit_bytes
        ):
            return f"set {_settings(chosen)}"
    all_of_them = override_config(config, dict(open_to))
    tokens = find_longest_sequence(
        lambda tokens: _peak_bytes(all_of_them, sequence_tokens=tokens, labelled_share=LABELS_ONLY),
        limit_bytes,
        {},
    )
    if not tokens:
        return "no row fits: take a smaller model or a larger card"
    return f"set {_settings([*open_to, ('data.sequence_tokens', tokens)])}"


def _settings(pairs: Sequence[tuple[str, Any]]) -> str:
    return " ".join(f"{path}={json.dumps(value).strip(chr(34))}" for path, value in pairs)


def _cap(config: Config) -> float | None:
    return None if config.memory.max_gib_per_gpu is None else config.memory.max_gib_per_gpu * GIB


def _usable(gib: float) -> float:
    """Bytes of a card that a step may have live."""
    return (gib - OUTSIDE_GIB) * GIB / FRAGMENTATION
