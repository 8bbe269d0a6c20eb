"""Outcomes of the trials of a search."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tune.errors import SearchError

State = Literal["finished", "pruned", "failed", "interrupted"]
"""How a trial ended, in the words of MLflow's tags and of the leaderboard."""


@dataclass(frozen=True)
class TrialOutcome:
    """Outcome of one trial."""

    trial_id: str
    overrides: dict[str, Any]
    state: State
    step: int
    """Last reported optimizer step."""
    eval_loss: float | None
    """Lowest reported finite loss (nats per token); None if there was none."""
    error: str | None
    """Error of a failed trial, or the budget that interrupted it, in one line; otherwise None."""


@dataclass(frozen=True)
class SearchResult:
    """Result of a finished search."""

    trials: tuple[TrialOutcome, ...]
    """All trials, in the order in which they ended."""
    best: TrialOutcome
    """The trial with the lowest eval_loss among those that did not fail."""
    ended_by: str
    """The budget that ended the search, or the number of its trials, in words."""
    best_checkpoint: str | None = None
    """Checkpoint of the best trial with the lowest loss, as a path below the search's folder.

    None for trials of several workers.
    """


def find_best(outcomes: Sequence[TrialOutcome]) -> TrialOutcome:
    """Return the trial with the lowest loss. Raises SearchError if no trial has one."""
    measured = [
        trial for trial in outcomes if trial.state != "failed" and trial.eval_loss is not None
    ]
    if measured:
        return min(measured, key=lambda trial: trial.eval_loss or 0.0)

    errors = [trial.error for trial in outcomes if trial.error]
    first = errors[0] if errors else "no trial reported a finite eval_loss"
    raise SearchError(
        f"none of the {len(outcomes)} trials of the search reported a loss; first error: {first}"
    )


def format_outcome(outcome: TrialOutcome) -> str:
    """Return one line with the state, step, loss, values and error of a trial."""
    loss = "no loss" if outcome.eval_loss is None else f"eval_loss {outcome.eval_loss:.4f}"
    values = ", ".join(
        f"{path}={value:.4g}" if isinstance(value, float) else f"{path}={value}"
        for path, value in outcome.overrides.items()
    )
    reason = f": {outcome.error}" if outcome.error else ""
    return f"trial {outcome.state} at step {outcome.step}, {loss} ({values}){reason}"
