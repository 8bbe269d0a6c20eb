"""Budgets of a search: which one ends it, and the state of its trials then."""

from pathlib import Path
from typing import Any

import pytest
from ray.tune.experiment import Trial
from ray.tune.integration.ray_train import TuneReportCallback

from app.jobs.cluster import ConnectedRay
from tune.budget import Budget
from tune.config import SearchConfig
from tune.keys import METRIC_KEY, STEP_KEY
from tune.search import run_search


class Clock:
    """Seconds that pass only when a test says so."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def make_trials(*statuses: str) -> list[Trial]:
    trials = [Trial("toy", stub=True, trial_id=f"t{i}") for i in range(len(statuses))]
    for trial, status in zip(trials, statuses, strict=True):
        trial.status = status
    return trials


def report(budget: Budget, trial: Trial, step: int, loss: float = 1.0) -> None:
    budget.on_trial_result(0, [], trial, {STEP_KEY: step, METRIC_KEY: loss})


def test_wall_clock_and_gpu_hours_are_counted_from_running_trials() -> None:
    clock = Clock()
    config = SearchConfig(max_hours=10, max_gpu_hours=12)
    budget = Budget(config, gpus_per_trial=2, clock=clock)
    trials = make_trials("RUNNING", "RUNNING", "PAUSED", "PENDING")
    for hour in range(1, 4):
        clock.seconds = 3600 * hour
        assert not budget.stop_all()
        budget.on_step_end(0, trials)
    assert budget.stop_all()
    assert budget.spent == "search.max_gpu_hours=12 is spent"

    budget = Budget(config, gpus_per_trial=0, clock=clock)
    clock.seconds += 3600 * 9.9
    budget.on_step_end(0, trials)
    assert not budget.stop_all()
    clock.seconds += 3600 * 0.1 + 1
    budget.on_step_end(0, trials)
    assert budget.spent == "search.max_hours=10 is spent"


def test_steps_of_all_trials_are_counted_once_also_after_a_restart() -> None:
    budget = Budget(SearchConfig(max_total_steps=30))
    first, second = make_trials("RUNNING", "RUNNING")
    report(budget, first, 10)
    report(budget, second, 10)
    report(budget, first, 10)  # replayed

    restarted = Budget(SearchConfig(max_total_steps=30))
    restarted.set_state(budget.get_state())
    report(restarted, first, 19)
    restarted.on_step_end(0, [])
    assert not restarted.stop_all()
    report(restarted, second, 11)
    restarted.on_step_end(0, [])
    assert restarted.spent == "search.max_total_steps=30 is spent"


def test_patience_counts_the_trials_that_ended_since_the_best_loss_fell() -> None:
    budget = Budget(SearchConfig(patience=3))
    losses = [5.0, 4.0, 4.0, 6.0, 3.0, 3.0, float("nan"), 9.0]
    ended = []
    for trial, loss in zip(make_trials(*["RUNNING"] * len(losses)), losses, strict=True):
        report(budget, trial, 1, loss)
        budget.on_trial_complete(0, [], trial)
        budget.on_step_end(0, [])
        ended.append(budget.stop_all())
    assert ended == [False] * 7 + [True]
    assert budget.spent == "search.patience=3 is spent"


def run_trial(overrides: dict[str, Any], trial_id: str) -> dict[str, Any]:
    """A trial of 8 steps; the one with x=9 waits for its end after its third."""
    callback = TuneReportCallback()
    for step in range(1, 9):
        metrics = {STEP_KEY: step, METRIC_KEY: overrides["model.x"] + 1 / step}
        callback.after_report(None, [metrics], None)
        if overrides["model.x"] == 9 and step == 3:
            import threading

            threading.Event().wait()
    return metrics


def test_a_spent_budget_ends_a_search_and_says_so(
    ray_local: ConnectedRay, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = SearchConfig.model_validate(
        {
            "space": {"model.x": {"choice": [9, 0, 1, 2, 3]}},
            "algorithm": "grid",
            "scheduler": "none",
            "max_concurrent": 2,
            "max_total_steps": 11,
        }
    )
    result = run_search(config, run_trial, name="budget", storage_path=str(tmp_path), trial_steps=8)
    assert result.ended_by == "search.max_total_steps=11 is spent"
    by_x = {trial.overrides["model.x"]: trial for trial in result.trials}
    assert (by_x[9].state, by_x[9].step) == ("interrupted", 3)
    assert by_x[9].error == result.ended_by
    assert (by_x[0].state, by_x[0].step) == ("finished", 8)
    assert len(by_x) < 5
    assert result.best == by_x[0]
    assert "trial interrupted at step 3" in capfd.readouterr().out
