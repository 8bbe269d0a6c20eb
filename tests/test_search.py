"""Searches on a real Ray: early stopping, failures, and the release of stopped trials' workers."""

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem
from ray.tune.integration.ray_train import TuneReportCallback

from app.jobs.cluster import ConnectedRay
from tune.config import SearchConfig
from tune.domain import Choice, LogUniform
from tune.errors import SearchError, TrialFailed
from tune.outcome import TrialOutcome
from tune.search import run_search
from tune.warm import Evaluation, WarmTrials

TRIAL_STEPS = 8
NUM_CPUS = 4


def loss(x: float, step: int) -> float:
    return abs(x - 0.5) + 1 / step if x < 10 else math.nan


def nested(storage_path: Path) -> Callable[[dict[str, Any], str], dict[str, Any]]:
    """Trials that each fit a TorchTrainer; its worker is so large that only two fit."""

    import ray.train.torch  # every trial's process imports this module: torch only where it is used

    def train_loop(config: dict[str, float]) -> dict[str, float]:
        if config["x"] < 0:
            raise ValueError(f"x is {config['x']}")
        for step in range(1, TRIAL_STEPS + 1):
            report = {"step": step, "eval_loss": loss(config["x"], step)}
            ray.train.report(report)
        return report

    def run_trial(overrides: dict[str, Any], trial_id: str) -> dict[str, Any]:
        return (
            ray.train.torch.TorchTrainer(
                train_loop,
                train_loop_config={"x": overrides["model.x"]},
                scaling_config=ray.train.ScalingConfig(
                    num_workers=1, resources_per_worker={"CPU": 1.9}
                ),
                run_config=ray.train.RunConfig(
                    name=trial_id,
                    storage_path=str(storage_path / "runs"),
                    callbacks=[TuneReportCallback()],
                ),
            )
            .fit()
            .return_value
        )

    return run_trial


def bare(overrides: dict[str, Any], trial_id: str) -> dict[str, Any]:
    """A trial without a trainer, for what does not depend on one."""
    if overrides["model.x"] < 0:
        raise ValueError(f"x is {overrides['model.x']}")
    report = TuneReportCallback()
    for step in range(1, TRIAL_STEPS + 1):
        metrics = {"step": step, "eval_loss": loss(overrides["model.x"], step)}
        report.after_report(None, [metrics], None)
    return metrics


class ToyWorker:
    """Warm trials with the losses of `nested`."""

    def start(self, overrides: Any, trial_id: str, folder: Path | None) -> Iterator[Evaluation]:
        x = overrides["model.x"]
        if x < 0:
            raise TrialFailed(f"x is {x}")
        return (
            Evaluation(step, loss(x, step), step == TRIAL_STEPS)
            for step in range(1, TRIAL_STEPS + 1)
        )

    def save(self, folder: Path) -> None:
        (folder / "saved").write_text("")


@pytest.mark.parametrize("is_warm", [True, False], ids=["warm", "nested"])
def test_asha_prunes_the_worst_and_a_failing_trial_ends_alone(
    ray_local: ConnectedRay, tmp_path: Path, capfd: pytest.CaptureFixture[str], is_warm: bool
) -> None:
    # One trial at a time: the second one is the worst at its first rung.
    draws = [0.5, 0.9, -1.0] + [0.9, 0.6, 0.9] * is_warm
    config = SearchConfig.model_validate(
        {
            "space": {"model.x": {"choice": sorted(set(draws))}},
            "points": [{"model.x": x} for x in draws],
            "num_trials": len(draws),
            "max_concurrent": 1,
            "grace_steps": 2,
        }
    )
    ended: list[TrialOutcome] = []
    result = run_search(
        config,
        WarmTrials(ToyWorker, {"CPU": 1.9}) if is_warm else nested(tmp_path),
        name="search",
        storage_path=str(tmp_path),
        trial_steps=TRIAL_STEPS,
        on_trial_end=ended.append,
    )

    assert result.trials == tuple(ended)
    assert [trial.overrides["model.x"] for trial in ended] == draws
    by_state = {
        state: [t for t in ended if t.state == state] for state in ("finished", "pruned", "failed")
    }
    assert [(t.overrides["model.x"], t.eval_loss, t.step) for t in by_state["failed"]] == [
        (-1.0, None, 0)
    ]
    assert str(by_state["failed"][0].error).endswith("x is -1.0")
    assert {t.overrides["model.x"] for t in by_state["pruned"]} >= {0.9}
    assert all(t.step < TRIAL_STEPS for t in by_state["pruned"])
    assert all(t.step == TRIAL_STEPS for t in by_state["finished"])
    for trial in by_state["finished"] + by_state["pruned"]:
        assert trial.eval_loss == loss(trial.overrides["model.x"], trial.step)
    assert (result.best.overrides, result.best.state) == ({"model.x": 0.5}, "finished")

    printed = capfd.readouterr().out
    assert printed.count("trial pruned at step") == len(by_state["pruned"])
    assert printed.count("; 0 left") == 1
    # All workers have been released: the whole machine can be reserved.
    everything = ray.util.placement_group([{"CPU": NUM_CPUS}])
    assert everything.wait(timeout_seconds=60)
    ray.util.remove_placement_group(everything)


def test_diverged_trials_have_no_loss_and_a_long_grace_prunes_nothing(
    ray_local: ConnectedRay, tmp_path: Path
) -> None:
    config = SearchConfig(
        space={"model.x": Choice(choice=(0.25, 11.0, -1.0))},
        num_trials=3,
        max_concurrent=3,
        grace_steps=TRIAL_STEPS,
        seed=6,  # draws each value once
    )
    (tmp_path / "jobs").mkdir()
    result = run_search(
        config,
        bare,
        name="bare",
        storage_path="jobs",
        filesystem=SubTreeFileSystem(str(tmp_path), LocalFileSystem()),
        trial_steps=TRIAL_STEPS,
    )
    assert len(list((tmp_path / "jobs" / "bare").glob("trial_*"))) == 3
    seen = {(t.overrides["model.x"], t.state, t.step, t.eval_loss) for t in result.trials}
    best = 0.25 + 1 / TRIAL_STEPS
    assert seen == {
        (0.25, "finished", TRIAL_STEPS, best),
        (11.0, "finished", TRIAL_STEPS, None),
        (-1.0, "failed", 0, None),
    }
    assert result.best.eval_loss == best


def test_a_search_in_which_all_trials_fail_names_the_first_error(
    ray_local: ConnectedRay, tmp_path: Path
) -> None:
    config = SearchConfig(space={"model.x": Choice(choice=(-1.0,))}, num_trials=2, max_concurrent=2)
    with pytest.raises(SearchError, match=r"none of the 2 trials .* ValueError: x is -1\.0"):
        run_search(
            config, bare, name="failing", storage_path=str(tmp_path), trial_steps=TRIAL_STEPS
        )


@pytest.fixture
def interruptible() -> Iterator[None]:
    """As in a terminal: a shell starts what runs in its background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_interrupting_a_search_stops_it_and_its_trials(
    ray_local: ConnectedRay, tmp_path: Path, interruptible: None
) -> None:
    driver = os.getpid()

    def run_trial(overrides: dict[str, Any], trial_id: str) -> dict[str, Any]:
        final = bare(overrides, trial_id)
        if overrides["model.x"] == 0.25:
            os.kill(driver, signal.SIGINT)
            threading.Event().wait()
        return final

    config = SearchConfig(
        space={"model.x": Choice(choice=(0.5, 0.25))}, num_trials=3, max_concurrent=1, seed=4
    )
    ended: list[TrialOutcome] = []
    lock = threading.Lock()  # like a tracking client, it cannot be pickled

    def on_trial_end(outcome: TrialOutcome) -> None:
        with lock:
            ended.append(outcome)

    with pytest.raises(KeyboardInterrupt):
        run_search(
            config,
            run_trial,
            name="interrupted",
            storage_path=str(tmp_path),
            trial_steps=TRIAL_STEPS,
            on_trial_end=on_trial_end,
        )
    assert [(trial.overrides["model.x"], trial.state) for trial in ended] == [
        (0.5, "finished"),
        (0.25, "interrupted"),
    ]
    with pytest.raises(KeyboardInterrupt):  # Tune has kept the handler of SIGINT
        signal.raise_signal(signal.SIGINT)


def test_optuna_repeats_its_choices_for_a_seed(ray_local: ConnectedRay, tmp_path: Path) -> None:
    config = SearchConfig(
        space={"model.x": LogUniform(loguniform=(0.01, 1.0)), "lora.rank": Choice(choice=(8, 16))},
        algorithm="optuna",
        num_trials=2,
        grace_steps=TRIAL_STEPS,
        seed=3,
    )
    first, second = (
        run_search(
            config, bare, name=name, storage_path=str(tmp_path), trial_steps=TRIAL_STEPS
        ).trials
        for name in ("first", "second")
    )
    assert [trial.overrides for trial in first] == [trial.overrides for trial in second]
    assert len({trial.overrides["model.x"] for trial in first}) == 2
    for trial in first:
        assert {path: type(value) for path, value in trial.overrides.items()} == {
            "model.x": float,
            "lora.rank": int,
        }
        assert 0.01 <= trial.overrides["model.x"] <= 1.0


def test_an_empty_space_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match=r"search\.space is empty"):
        run_search(
            SearchConfig(), bare, name="empty", storage_path=str(tmp_path), trial_steps=TRIAL_STEPS
        )
