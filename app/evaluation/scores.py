"""The report on the scores of a model: intervals, targets, baselines, groups of drawings."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from app.evaluation.bootstrap import Bootstrap, Interval, Score

LOWER_IS_BETTER = ("eval_loss", "perplexity")
TUNED, BASE, CONSTANT, NEAREST = "tuned", "base", "constant", "nearest"
BASELINES = (CONSTANT, NEAREST)
"""Captions that need no model: the best constant one, and that of the nearest training drawing."""

Scores = Mapping[str, Score]

_resample = lru_cache(maxsize=4)(Bootstrap)


def judge_scores(
    scores: Mapping[str, Scores], targets: Mapping[str, float | None]
) -> dict[str, Any]:
    """Return `metrics` and `compared_with` of the report.

    `scores` has the scores of the tuned model, and of the base model and the baselines where they
    are measured, by kind and name. A target holds if the score is above it (below it for a loss). A
    score beats a baseline if the interval of their difference, over paired resamples, is on the
    better side of 0.
    """
    metrics: dict[str, Any] = {}
    compared: dict[str, dict[str, Any]] = {kind: {} for kind in scores if kind != TUNED}

    for name, score in scores[TUNED].items():
        bootstrap = _resample(len(score.statistics))
        interval = bootstrap.measure(score)
        for kind, by_name in compared.items():
            if name in scores[kind]:
                by_name[name] = _compare(bootstrap, name, score, scores[kind][name])

        baselines = [compared[kind][name] for kind in BASELINES if name in compared.get(kind, {})]
        beaten = [one["beaten"] for one in baselines if one["beaten"] is not None]
        target = targets.get(name)
        metrics[name] = {
            **interval._asdict(),
            "target": target,
            "holds": _holds(name, interval, target),
            "beats_baselines": all(beaten) if beaten else None,
        }
    return {"metrics": metrics, "compared_with": compared}


def measure_groups(
    scores: Scores, groups: Sequence[str]
) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """Return value, interval and n of each score over the drawings of each group.

    `groups` names the group of each drawing, such as its source.
    """
    labels = np.array(groups)
    measured = {}
    for group in dict.fromkeys(groups):
        selected = labels == group
        bootstrap = _resample(int(selected.sum()))
        measured[group] = {
            name: bootstrap.measure(score.select(selected))._asdict()
            for name, score in scores.items()
        }
    return measured


def name_length(num_tokens: int) -> str:
    """Return the bucket of a prompt's length, from one power of two to the next.

    >>> name_length(512), name_length(513)
    ('257-512 tokens', '513-1024 tokens')
    """
    upper = 1 << (num_tokens - 1).bit_length()
    return f"{upper // 2 + 1}-{upper} tokens"


def _compare(bootstrap: Bootstrap, name: str, score: Score, other: Score) -> dict[str, Any]:
    """Return the other score, and the interval of the tuned model's lead over it."""
    sign = -1 if name in LOWER_IS_BETTER else 1
    lead = bootstrap.compare(score, other)
    low, high = sorted(sign * end for end in lead) if lead else (None, None)
    return {
        "value": bootstrap.measure(other).value,
        "lead_low": low,
        "lead_high": high,
        "beaten": None if low is None else low > 0,
    }


def _holds(name: str, interval: Interval, target: float | None) -> bool | None:
    if target is None or interval.value is None:
        return None
    return interval.value < target if name in LOWER_IS_BETTER else interval.value > target
