"""`python -m app plan`: memory, length and checkpoint size of a job.

The plan holds the memory by category, the longest sequence on each card, the numbers of steps and
tokens, the hours, and the size of a checkpoint.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.config import Config
from app.errors import UserError
from app.gemma.base_model import resolve_model_source
from app.jobs.gpu_share import GIB, get_cap_bytes, get_usable_bytes
from app.jobs.job import build_stream
from app.memory_plan.inference import simulate_caption_bytes, simulate_loss_bytes
from app.memory_plan.peak import (
    GRAIN,
    MemoryPeak,
    StepSettings,
    find_longest_sequence,
    simulate_peak,
)
from data_pipeline.errors import DataError
from data_pipeline.shards import open_shards

FRAGMENTATION = 1.08
"""Bytes that the allocator needs for each live byte.

On one H100 under caps of 7.25 and 11.25 GiB, training ran out of memory with 1.05 and 1.07.
"""
CARDS_GIB = (8.0, 12.0, 16.0, 24.0, 40.0, 48.0, 80.0)
CAPTION_LABEL_SHARE = 0.08
"""Share of a sequence's tokens that belong to captions, as in benchmarks/loss.py."""


@dataclass(frozen=True)
class Card:
    """The longest sequences (tokens) that fit on one card."""

    gib: float
    max_tokens: int
    """With labels on all tokens."""
    max_tokens_labels_only: int
    """With labels on captions only."""


def parse_gib(text: str) -> float:
    """Return a card's memory in GiB: `24GiB`, `24` → 24.0. Raises UserError for other text."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:GiB|GB|G)?", text.strip(), re.IGNORECASE)
    if not found or not float(found[1]):
        raise UserError(f"--gpu {text}: give the card's memory, such as 24GiB")
    return float(found[1])


def get_step_settings(
    config: Config, *, sequence_tokens: int | None = None, labelled_share: float = 1.0
) -> StepSettings:
    """Return the settings that decide a job's memory; `sequence_tokens` replaces the config's."""
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


def simulate_peak_bytes(
    config: Config, *, sequence_tokens: int | None = None, labelled_share: float
) -> int:
    """Return the simulated peak memory of one optimizer step (bytes)."""
    settings = get_step_settings(
        config, sequence_tokens=sequence_tokens, labelled_share=labelled_share
    )
    return simulate_peak(settings).num_bytes


def simulate_between_steps_bytes(config: Config, peak: MemoryPeak) -> int:
    """Return the simulated peak of an evaluation between the steps of training (bytes).

    `peak` is that of a step, whose moments and buckets stay.
    """
    buckets = peak.by_category["lora"] if config.scaling.num_workers > 1 else 0
    loss_bytes = simulate_loss_bytes(get_step_settings(config), config.evaluate)
    return peak.by_category["optimizer"] + buckets + loss_bytes


def simulate_evaluate_bytes(config: Config) -> int:
    """Return the simulated peak of the command `evaluate`: of its loss or of its captions."""
    settings = get_step_settings(config)
    return max(
        simulate_loss_bytes(settings, config.evaluate),
        simulate_caption_bytes(settings, config.evaluate),
    )


def make_plan(
    config: Config, gpus: Sequence[float], *, cards: Sequence[Card], speed: float | None
) -> dict[str, Any]:
    """Return the plan as `--json` prints it.

    `gpus` are cards (GiB), and `cards` what `plan_cards` found for them. `speed` is the speed of
    all workers together (tokens per second), None if unknown.
    """
    # memory
    peak = simulate_peak(get_step_settings(config))
    between_steps_bytes = simulate_between_steps_bytes(config, peak)
    evaluate_bytes = simulate_evaluate_bytes(config)
    highest_bytes = max(peak.num_bytes, between_steps_bytes, evaluate_bytes)
    cap_bytes = get_cap_bytes(config)
    limits = [] if cap_bytes is None else [cap_bytes / FRAGMENTATION]
    limits += [_usable_bytes(gib, config) for gib in gpus]

    # length
    tokens, steps = estimate_tokens_and_steps(config)
    return {
        "model": config.model.name,
        "sequence_tokens": config.data.sequence_tokens,
        "peak_bytes": peak.num_bytes,
        "by_category": peak.by_category,
        "stage": peak.stage,
        "evaluation_between_steps_bytes": between_steps_bytes,
        "evaluate_bytes": evaluate_bytes,
        "limit_bytes": min(limits, default=None),
        "fits": highest_bytes <= min(limits) if limits else None,
        "cards": [vars(card) for card in cards],
        "optimizer_steps": steps,
        "tokens": tokens,
        "hours": tokens / speed / 3600 if tokens and speed else None,
        "checkpoint_bytes": {
            "adapter": peak.by_category["lora"],
            "optimizer": peak.by_category["optimizer"],
        },
    }


def format_plan(plan: dict[str, Any]) -> str:
    """Return the plan of `make_plan` as lines of text."""
    # memory
    lines = [
        f"{plan['model']}, sequences of {plan['sequence_tokens']:,} tokens, all labelled; "
        "GiB of one worker (parallel.strategy=ddp):"
    ]
    for name, num_bytes in plan["by_category"].items():
        lines.append(f"  {name:<12}{num_bytes / GIB:8.2f}")
    lines.append(f"  {'peak':<12}{plan['peak_bytes'] / GIB:8.2f}  in {plan['stage']}")
    between_gib, evaluate_gib = (
        plan[f"{name}_bytes"] / GIB for name in ("evaluation_between_steps", "evaluate")
    )
    lines.append(
        f"an evaluation between steps {between_gib:.2f}, "
        f"`evaluate` (loss and captions) {evaluate_gib:.2f} GiB"
    )

    # cards
    if plan["fits"] is not None:
        verdict = "fits" if plan["fits"] else "does NOT fit"
        lines.append(f"{verdict} into {plan['limit_bytes'] / GIB:.2f} GiB")
    for card in plan["cards"]:
        lines.append(
            f"{card['gib']:g} GiB: longest sequence {card['max_tokens']:,} tokens, "
            f"{card['max_tokens_labels_only']:,} with labels on captions only "
            f"({CAPTION_LABEL_SHARE:.0%})"
        )

    # checkpoint
    sizes = {name: num_bytes / GIB for name, num_bytes in plan["checkpoint_bytes"].items()}
    lines.append(
        f"a checkpoint: adapter {sizes['adapter']:.2f}, optimizer {sizes['optimizer']:.2f} GiB"
    )

    # length
    steps, tokens, hours = plan["optimizer_steps"], plan["tokens"], plan["hours"]
    if steps is None:
        lines.append("steps and tokens: unknown, because the shards or the tokenizer are missing")
    else:
        duration = "give --tokens-per-second to estimate the hours"
        if hours is not None:
            duration = f"about {hours:.1f} hours"
        lines.append(f"about {steps:,} optimizer steps, {tokens:,} tokens; {duration}")
    return "\n".join(lines)


def plan_cards(config: Config, gpus: Sequence[float]) -> list[Card]:
    """Return the longest sequences on each card; without cards, on those of CARDS_GIB.

    The search starts with the largest card: its results are upper bounds for the smaller ones.
    """
    gpus = gpus or CARDS_GIB
    longest: dict[tuple[float, float], int] = {}
    for labelled in (1.0, CAPTION_LABEL_SHARE):
        known: dict[int, int] = {}
        for gib in sorted(gpus, reverse=True):

            def peak_bytes(tokens: int, labelled: float = labelled) -> int:
                return simulate_peak_bytes(config, sequence_tokens=tokens, labelled_share=labelled)

            # fewer labels take less memory, but seldom enough for a longer sequence
            limit_bytes = _usable_bytes(gib, config)
            shortest = longest.get((gib, 1.0), 0)
            if shortest:
                known[shortest + GRAIN] = peak_bytes(shortest + GRAIN)
            if shortest and known[shortest + GRAIN] > limit_bytes:
                longest[gib, labelled] = shortest
            else:
                longest[gib, labelled] = find_longest_sequence(peak_bytes, limit_bytes, known)
    return [Card(gib, longest[gib, 1.0], longest[gib, CAPTION_LABEL_SHARE]) for gib in gpus]


def estimate_tokens_and_steps(config: Config) -> tuple[int, int] | tuple[None, None]:
    """Return (tokens, optimizer steps) of the job, extrapolated from its first shuffle block.

    Return (None, None) if the shards or the tokenizer are missing.
    """
    source = resolve_model_source(config.model.name)
    if not Path(source).is_dir():
        return None, None
    try:
        stream = build_stream(config, open_shards(config.data.shards))
        block = stream.pack_shuffle_block(0)
    except DataError:
        return None, None

    # sequences of the whole job
    num_examples = stream.num_train_examples
    block_examples = min(num_examples, config.data.shuffle_block_examples)
    num_blocks = stream.num_epochs * num_examples / block_examples
    num_sequences = num_blocks * len(block["num_tokens"])

    # optimizer steps
    accumulation = config.train.gradient_accumulation_steps
    sequences_per_worker = config.train.micro_batch_size * accumulation
    sequences_per_step = sequences_per_worker * config.scaling.num_workers
    steps = math.ceil(num_sequences / sequences_per_step)
    if config.train.max_steps is not None:
        steps = min(steps, config.train.max_steps)

    tokens_per_sequence = float(block["num_tokens"].mean())
    return round(min(num_sequences, steps * sequences_per_step) * tokens_per_sequence), steps


def _usable_bytes(gib: float, config: Config) -> float:
    """Return the bytes of one worker's share of a card that live tensors may fill."""
    return get_usable_bytes(gib * GIB, config) / FRAGMENTATION
