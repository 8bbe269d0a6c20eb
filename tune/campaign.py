"""A finished search as plain values, its leaderboard, and a paragraph about what to try next."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from tune.outcome import State

Curve = tuple[tuple[float, float], ...]
"""(optimizer step, evaluation loss) of each evaluation."""

MIN_TRIALS = 10
"""Number of measured trials below which importances are noise."""
NEAR = 0.05
"""Share of a range that counts as its end."""
LITTLE, MUCH = 0.1, 0.3
"""Importance (0 to 1) below which a setting matters little, and from which it matters much."""
STILL_FALLING = 0.01
"""Relative gain of the last evaluation from which a longer training is worth a try."""


@dataclass(frozen=True)
class Trial:
    """One trial of a search."""

    name: str
    """Name of the trial and of its run."""
    state: State
    params: Mapping[str, Any]
    """Searched values by config path."""
    loss: float | None
    """Lowest evaluation loss (nats per token); None if there was none."""
    step: int
    """Last reported optimizer step."""
    run_id: str | None = None
    curve: Curve = ()


@dataclass(frozen=True)
class Range:
    """Lowest and highest searched number of one setting."""

    low: float
    high: float
    is_log: bool = False
    is_choice: bool = False


def list_ranges(space: Mapping[str, BaseModel]) -> dict[str, Range]:
    """Return the range of each domain of a search space that has two or more numbers."""
    ranges = {}
    for path, domain in space.items():
        fields = domain.model_dump()
        for kind, values in fields.items():
            numbers = [value for value in _as_tuple(values) if _is_number(value)]
            if len(numbers) >= 2:
                is_log = kind.startswith("log") or fields.get("log") is True
                ranges[path] = Range(min(numbers), max(numbers), is_log, kind == "choice")
    return ranges


def rank_trials(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials by loss; those that failed or have no loss come last."""

    def place(trial: Trial) -> tuple[bool, float]:
        is_last = trial.loss is None or trial.state == "failed"
        return is_last, math.inf if trial.loss is None else trial.loss

    return sorted(trials, key=place)


def make_leaderboard(trials: Sequence[Trial]) -> dict[str, list[Any]]:
    """Return the ranked trials as a table of MLflow: {"columns": names, "data": rows}.

    >>> make_leaderboard([Trial("trial-a", "pruned", {"lora.rank": 8}, 1.5, 20, "12ab")])
    ... # doctest: +NORMALIZE_WHITESPACE
    {'columns': ['rank', 'trial', 'state', 'eval_loss', 'step', 'lora.rank', 'run_id'],
     'data': [[1, 'trial-a', 'pruned', 1.5, 20, 8, '12ab']]}
    """
    paths = list_paths(trials)
    rows = []
    for rank, trial in enumerate(rank_trials(trials), 1):
        loss = None if trial.loss is None else round(trial.loss, 5)
        values = [trial.params.get(path) for path in paths]
        rows.append([rank, trial.name, trial.state, loss, trial.step, *values, trial.run_id])
    columns = ["rank", "trial", "state", "eval_loss", "step", *paths, "run_id"]
    return {"columns": columns, "data": rows}


def list_paths(trials: Sequence[Trial]) -> list[str]:
    """Return the config paths that the trials vary."""
    return list(dict.fromkeys(path for trial in trials for path in trial.params))


def list_measured(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials that have a loss and did not fail, in the given order."""
    return [each for each in trials if each.loss is not None and each.state != "failed"]


def describe_campaign(
    trials: Sequence[Trial], ranges: Mapping[str, Range], importances: Mapping[str, float]
) -> str:
    """Return a paragraph: the result, what mattered, what did not, and what to try next.

    `trials` are in the order in which they ended. `importances` are shares (0 to 1) by config path;
    empty if they are not known. At least one trial must have a loss.
    """
    ranked = rank_trials(list_measured(trials))
    sentences = [
        _describe_states(trials),
        _describe_best(ranked),
        _describe_importances(len(ranked), importances),
        *_suggest_ranges(ranked[0], ranges, importances),
        _suggest_length(ranked[0]),
        _suggest_trials(list_measured(trials), ranked[0]),
        _warn_about_seeds(ranked),
    ]
    return " ".join(filter(None, sentences))


def format_params(params: Mapping[str, Any]) -> str:
    """Return `optim.learning_rate=0.0003, lora.rank=16`."""
    return ", ".join(f"{path}={_format(value)}" for path, value in params.items())


def _describe_states(trials: Sequence[Trial]) -> str:
    counts = Counter(trial.state for trial in trials)
    order: tuple[State, ...] = ("finished", "pruned", "failed", "interrupted")
    parts = [f"{counts[state]} {state}" for state in order if counts[state]]
    noun = "trial" if len(trials) == 1 else "trials"
    return f"{len(trials)} {noun}: {_join(parts)}."


def _describe_best(ranked: Sequence[Trial]) -> str:
    best = ranked[0]
    text = (
        f"The best is {best.name}, with evaluation loss {best.loss:.4f} and "
        f"{format_params(best.params)}"
    )
    if len(ranked) > 1:
        text += f"; the second best has {ranked[1].loss:.4f}"
    return f"{text}."


def _describe_importances(num_measured: int, importances: Mapping[str, float]) -> str:
    if len(importances) < 2:
        return ""
    if num_measured < MIN_TRIALS:
        return (
            f"{num_measured} measured trials are too few to say which setting mattered: "
            f"run at least {MIN_TRIALS}."
        )

    ranked = sorted(importances.items(), key=lambda item: -item[1])
    much = [f"{path} ({share:.0%})" for path, share in ranked if share >= MUCH]
    little = [f"{path} ({share:.0%})" for path, share in ranked if share < LITTLE]
    some = [f"{path} ({share:.0%})" for path, share in ranked if LITTLE <= share < MUCH]
    parts = [
        f"{_join(paths)} mattered {degree}"
        for paths, degree in ((much, "most"), (some, "somewhat"), (little, "little"))
        if paths
    ]
    return f"By importance, {'; '.join(parts)}."


def _suggest_ranges(
    best: Trial, ranges: Mapping[str, Range], importances: Mapping[str, float]
) -> list[str]:
    """Return a sentence for each setting whose best value is at an end of its range."""
    sentences = []
    for path, searched in ranges.items():
        end = _find_end(best.params.get(path), searched)
        if end is None or importances.get(path, 1.0) < LITTLE:
            continue
        kind = "choices" if searched.is_choice else "range"
        sentences.append(
            f"The best {path}, {_format(best.params[path])}, is at the {end} end of its {kind} "
            f"({_format(searched.low)} to {_format(searched.high)}): try "
            f"{'lower' if end == 'lower' else 'higher'} values too."
        )
    return sentences


def _find_end(value: Any, searched: Range) -> Literal["lower", "upper"] | None:
    """Return the end of the range at which a value is; None if it is at neither."""
    if not _is_number(value):
        return None
    low, high, at = searched.low, searched.high, float(value)
    if searched.is_log:
        low, high, at = math.log(low), math.log(high), math.log(at)
    margin = 0.0 if searched.is_choice else NEAR * (high - low)
    if at <= low + margin:
        return "lower"
    return "upper" if at >= high - margin else None


def _suggest_length(best: Trial) -> str:
    if len(best.curve) < 2:
        return ""
    (_, before), (step, last) = best.curve[-2:]
    if last > (1 - STILL_FALLING) * before:
        return ""
    return (
        f"Its loss was still falling at its last evaluation (by {1 - last / before:.1%} to step "
        f"{step:.0f}): train it longer."
    )


def _suggest_trials(measured: Sequence[Trial], best: Trial) -> str:
    """Return a sentence if the later half of the trials brought no better one."""
    num_after = len(measured) - 1 - measured.index(best)
    if len(measured) < MIN_TRIALS or num_after < len(measured) / 2:
        return ""
    return (
        f"The last {num_after} of {len(measured)} measured trials did not improve on it: change "
        "the space before you run more trials."
    )


def _warn_about_seeds(ranked: Sequence[Trial]) -> str:
    if len(ranked) < 2 or "train.seed" in ranked[0].params:
        return ""
    gap = (ranked[1].loss or 0.0) - (ranked[0].loss or 0.0)
    return (
        f"The spread between seeds is not known: before you rely on the gap of {gap:.4f} between "
        "the two best, run both with another train.seed."
    )


def _join(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))


def _format(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_tuple(values: Any) -> Sequence[Any]:
    return values if isinstance(values, tuple | list) else ()
