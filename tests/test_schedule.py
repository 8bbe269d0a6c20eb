"""Schedulers: rungs and warm-up of each trial, and pauses and exploits on a real Tune."""

import math
import random
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher, SearchGenerator
from toy_trainable import ToyTrial

from app.jobs.cluster import ConnectedRay
from tune.config import SearchConfig
from tune.keys import METRIC_KEY, OVERRIDES_KEY, STEP_KEY
from tune.population import explore
from tune.schedule import build_scheduler
from tune.search_algorithm import build_search_algorithm
from tune.space import Overrides

NUM_STEPS = 16


def read_config(xs: list[float], **values: Any) -> SearchConfig:
    """Return a search that tries each x once, in this order."""
    return SearchConfig.model_validate(
        {
            "space": {"x": {"choice": xs}},
            "algorithm": "grid",
            "num_trials": len(xs),
            "grace_steps": 2,
            **values,
        }
    )


def judge(scheduler: Any, curves: dict[str, list[float]]) -> dict[str, int]:
    """Report the curves step by step, all trials in turn; return the last step of each trial."""
    trials = {
        name: Trial("toy", stub=True, trial_id=name, config={OVERRIDES_KEY: {"name": name}})
        for name in curves
    }
    for trial in trials.values():
        scheduler.on_trial_add(None, trial)
    steps = {}
    for step in range(1, NUM_STEPS + 1):
        for name in [name for name in curves if steps.get(name, step - 1) == step - 1]:
            steps[name] = step
            result = {STEP_KEY: step, METRIC_KEY: curves[name][step - 1]}
            action = scheduler.on_trial_result(None, trials[name], result)
            if action == TrialScheduler.STOP:
                steps[name] = step - 0.5  # no further report
            else:
                assert action == TrialScheduler.CONTINUE
    return {name: math.ceil(step) for name, step in steps.items()}


def make_curves(**floors: float) -> dict[str, list[float]]:
    return {
        name: [floor + 1 / step for step in range(1, NUM_STEPS + 1)]
        for name, floor in floors.items()
    }


def test_asha_judges_no_trial_before_the_first_rung_after_its_warm_up() -> None:
    curves = make_curves(good=0.0, fair=0.1, bad=1.0, slow=2.0)
    warmups = {"slow": 5}
    config = read_config([1.0])
    scheduler = build_scheduler(
        config, NUM_STEPS, count_warmup_steps=lambda overrides: warmups.get(overrides["name"], 0)
    )
    # rungs are 2, 4 and 8
    assert judge(scheduler, curves) == {"good": 16, "fair": 2, "bad": 2, "slow": 8}
    scheduler = build_scheduler(config, NUM_STEPS)
    assert judge(scheduler, curves) == {"good": 16, "fair": 2, "bad": 2, "slow": 2}


def test_the_median_rule_stops_after_the_warm_up_and_never_at_the_last_step() -> None:
    curves = make_curves(a=0.0, b=0.1, c=0.2, bad=1.0, slow=2.0)
    curves["late"] = [0.0] * (NUM_STEPS - 1) + [9.0]
    scheduler = build_scheduler(
        read_config([1.0], scheduler="median"),
        NUM_STEPS,
        count_warmup_steps=lambda overrides: 7 if overrides["name"] == "slow" else 0,
    )
    seen = judge(scheduler, curves)
    assert {name: seen[name] for name in ("a", "bad", "slow", "late")} == {
        "a": 16,
        "bad": 2,
        "slow": 7,
        "late": 16,
    }


@pytest.mark.parametrize("scheduler", ["asha", "asha_pause", "median", "pbt", "none"])
def test_a_grace_as_long_as_a_trial_judges_none(scheduler: str) -> None:
    config = read_config([1.0], scheduler=scheduler, grace_steps=NUM_STEPS)
    assert build_scheduler(config, NUM_STEPS) is None
    shorter = read_config([1.0], scheduler=scheduler, grace_steps=NUM_STEPS - 1)
    assert (build_scheduler(shorter, NUM_STEPS) is None) == (scheduler == "none")


class Recorder(ray.tune.Callback):  # type: ignore[misc]
    """Keep the reports of all trials, in order."""

    def __init__(self) -> None:
        self.reports: list[tuple[str, dict[str, Any]]] = []
        self.histories: dict[str, list[list[float]]] = defaultdict(list)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        self.reports.append((trial.trial_id, result))
        self.histories[trial.trial_id].append(result["history"])


def run(
    config: SearchConfig, folder: Path, *, cpus: float, **facts: Any
) -> tuple[Recorder, dict[str, Trial]]:
    """Run a search of toy trials on a real Tune; return their reports and the trials."""
    recorder = Recorder()
    _, param_space = build_search_algorithm(config)
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(ToyTrial, {"CPU": cpus}),
        param_space=param_space,
        tune_config=ray.tune.TuneConfig(
            scheduler=build_scheduler(config, NUM_STEPS, **facts), reuse_actors=True
        ),
        run_config=ray.tune.RunConfig(
            name="toy", storage_path=str(folder), callbacks=[recorder], verbose=0
        ),
    )
    results = tuner.fit()
    return recorder, {trial.trial_id: trial for trial in results._experiment_analysis.trials}


def test_a_pausing_asha_promotes_the_best_of_each_rung_from_their_checkpoints(
    ray_local: ConnectedRay, tmp_path: Path
) -> None:
    xs = [0.9, 0.5, 0.7, -1.0, 0.1, 0.3, 0.8, 0.2, 0.6]
    config = read_config(xs, scheduler="asha_pause")
    warmups = {0.8: 3}
    recorder, trials = run(
        config,
        tmp_path,
        cpus=2,
        count_warmup_steps=lambda overrides: warmups.get(overrides["x"], 0),
    )

    # Every trial went on from its checkpoint: no step is lost or repeated.
    steps = {}
    for trial_id, histories in recorder.histories.items():
        x = trials[trial_id].config[OVERRIDES_KEY]["x"]
        assert histories == [[x] * step for step in range(1, len(histories) + 1)]
        steps[x] = len(histories)

    # rungs are 2, 4 and 8
    assert trials.keys() == recorder.histories.keys()
    assert steps.pop(-1.0) == 2  # it failed at step 3, and counts at no rung
    assert set(steps.values()) <= {2, 4, 8, 16}
    assert steps[0.8] >= 4  # its warm-up covers the first rung
    assert steps[0.1] == NUM_STEPS
    for rung in (2, 4, 8):
        reached = sorted(x for x in steps if steps[x] >= rung and (x, rung) != (0.8, 2))
        best = reached[: len(reached) // 2]
        assert all(steps[x] > rung for x in best), (rung, steps)
    assert sum(steps.values()) < 0.6 * NUM_STEPS * len(steps)
    assert {trial.status for trial in trials.values()} == {Trial.TERMINATED, Trial.ERROR}


@pytest.mark.parametrize("pinned_paths", [(), ("x",)])
def test_an_exploited_trial_continues_from_the_checkpoint_of_another(
    ray_local: ConnectedRay, tmp_path: Path, pinned_paths: tuple[str, ...]
) -> None:
    config = read_config([0.9, 0.1, 0.8, 0.2], scheduler="pbt", grace_steps=3)
    recorder, _ = run(config, tmp_path, cpus=1, pinned_paths=pinned_paths)

    earlier: list[list[float]] = [[]]
    num_exploits = num_restarts = 0
    last: dict[str, list[float]] = {}
    for trial_id, result in recorder.reports:
        history = result["history"]
        assert history[:-1] in earlier  # it continues from a state that a trial had
        own = last.get(trial_id, [])
        num_exploits += len(history) > 1 and history[:-1] != own
        num_restarts += len(history) == 1 and bool(own)
        earlier.append(history)
        last[trial_id] = history
    assert num_exploits + num_restarts >= 1
    assert (num_restarts > 0) <= bool(pinned_paths)
    assert all(len(history) == NUM_STEPS for history in last.values())
    for history in last.values():
        if pinned_paths:
            assert len(set(history)) == 1  # no trial went on with another value of x


def test_a_population_takes_trials_that_a_search_algorithm_lists() -> None:
    scheduler = build_scheduler(read_config([1.0], scheduler="pbt"), NUM_STEPS)
    assert scheduler is not None
    controller = SimpleNamespace(search_alg=SearchGenerator(Searcher()))
    trial = Trial("toy", stub=True, config={OVERRIDES_KEY: {"x": 1.0}})
    scheduler.on_trial_add(controller, trial)
    report = {STEP_KEY: 1, METRIC_KEY: 1.0}
    assert scheduler.on_trial_result(controller, trial, report) == TrialScheduler.CONTINUE


def test_explored_values_stay_in_the_space_and_ties_follow() -> None:
    space = read_config(
        [1.0],
        algorithm="random",
        space={
            "kind": {"choice": ["a", "b", "c"]},
            "lr": {"loguniform": [1e-4, 1e-2]},
            "n": {"integer": [1, 9]},
            "m": {"equals": "2 * n"},
            "beta": {"uniform": [0.5, 0.9], "when": {"kind": "b"}},
        },
    ).space
    generator = random.Random(0)
    overrides: Overrides = {"kind": "a", "lr": 1e-2, "n": 9, "m": 18}
    seen = []
    for _ in range(200):
        changed = explore(overrides, space, generator)
        assert 1e-4 <= changed["lr"] <= 1e-2
        assert 1 <= changed["n"] <= 9
        assert changed["m"] == 2 * changed["n"]
        assert ("beta" in changed) == (changed["kind"] == "b")
        overrides = changed
        seen.append(changed)
    assert {each["kind"] for each in seen} == {"a", "b", "c"}
    assert {each["n"] for each in seen} == set(range(1, 10))
