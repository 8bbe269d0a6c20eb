"""Campaigns with real trials: bad ones end alone, and a killed search continues."""

import json
import math
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import psutil
import pytest
import ray
from forked_workers import FORKED
from mlflow import MlflowClient
from ray.util.state import list_actors, list_placement_groups

from app.config import (
    Config,
    flatten_config,
    load_config,
    make_paths_absolute,
    override_config,
)
from app.jobs.cluster import ConnectedRay
from app.jobs.precision import resolve_precision
from app.jobs.resources import count_concurrent_trials
from app.jobs.trials import Campaign
from app.jobs.warm_trials import WarmWorker
from app.tracking import TrackingConfig, check_tracking
from data_pipeline.config import PrepareConfig
from data_pipeline.prepare.dataset import prepare_dataset
from data_pipeline.shards import open_shards
from tune.config import SearchConfig
from tune.outcome import SearchResult
from tune.search import run_search
from tune.warm import Evaluation, WarmTrials

ROOT = Path(__file__).parent.parent
KILLED = 0.123
"""Learning rate of the trial whose process is killed."""
RATES = [1e-3, 2e-3, 3e-3, 4e-3, 5e-3, 6e-3]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Trials of four steps, with an evaluation after two of them."""
    folder = tmp_path_factory.mktemp("campaign")
    shards = str(folder / "shards")
    prepare_dataset(
        ["scenes:60:7:list"],
        PrepareConfig(out=shards, validation_share=0.1, test_share=0),
        progress=False,
    )
    uri = f"sqlite:///{folder}/mlflow.db"
    check_tracking(TrackingConfig(uri=uri, experiment="demo"))
    changes = {
        "data.shards": shards,
        "data.sequence_tokens": 128,
        "data.max_validation_records": 2,
        "train.output_dir": str(folder),
        "train.eval_steps": 2,
        "search.trial_steps": 4,
        "search.max_concurrent": 1,
        "tracking.uri": uri,
    }
    return resolve_precision(make_paths_absolute(load_config("demo", changes)))


class KilledWorker(WarmWorker):
    """The worker of every trial; its process is killed in one of them, before step 4."""

    def start(self, overrides: Any, trial_id: str, folder: Path | None) -> Iterator[Evaluation]:
        trial = super().start(overrides, trial_id, folder)
        if overrides["optim.learning_rate"] != KILLED or folder is not None:
            return trial

        def end() -> Iterator[Evaluation]:
            yield next(trial)
            yield next(trial)
            os.kill(os.getpid(), signal.SIGKILL)

        return end()


Draw: TypeAlias = tuple[float, int]
"""Learning rate and rank."""
NINE: list[Draw] = [
    *((RATES[0], 8), (1e3, 8), (RATES[1], 8), (KILLED, 8), (RATES[2], 8), (RATES[3], 0)),
    *((rate, 8) for rate in RATES[3:]),
]
"""Six good trials, one with an impossible rate, one rank of 0 and one killed process."""


def search(config: Config, folder: Path, draws: list[Draw], max_failures: int) -> SearchResult:
    """Run one trial for each draw, two at a time."""
    config = override_config(config, {"tracking.uri": None})
    campaign = Campaign(config, open_shards(config.data.shards), str(folder), None)

    def make_worker() -> KilledWorker:
        return KilledWorker(campaign)

    search_config = SearchConfig.model_validate(
        {
            "space": {
                "optim.learning_rate": {"choice": [*RATES, 1e3, KILLED]},
                "lora.rank": {"choice": [0, 8]},
            },
            "points": [{"optim.learning_rate": rate, "lora.rank": rank} for rate, rank in draws],
            "num_trials": len(draws),
            "max_concurrent": 2,
            "scheduler": "none",
        }
    )
    return run_search(
        search_config,
        WarmTrials(make_worker, {"CPU": 1.0}, max_failures),
        name="tune",
        storage_path=str(folder),
        trial_steps=4,
    )


def wait_for_all_cpus() -> None:
    """Wait until Ray has taken back the CPUs of all workers: an actor ends some time after us."""
    everything = ray.util.placement_group([{"CPU": 4}])
    assert everything.wait(timeout_seconds=60)
    ray.util.remove_placement_group(everything)
    while ray.available_resources().get("CPU") != 4:
        pass


def test_three_bad_trials_among_nine_are_named_and_cost_nothing_else(
    ray_local: ConnectedRay, config: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = search(config, tmp_path, NINE, max_failures=0)

    failed = {
        (trial.overrides["optim.learning_rate"], trial.overrides["lora.rank"]): str(trial.error)
        for trial in result.trials
        if trial.state == "failed"
    }
    assert failed.keys() == {(1e3, 8), (RATES[3], 0), (KILLED, 8)}
    assert "optim.learning_rate=1000" in failed[1e3, 8]
    assert "lora.rank=0" in failed[RATES[3], 0]
    assert "process has died" in failed[KILLED, 8]  # the kill has fired
    assert capfd.readouterr().out.count("trial failed at step") == 3

    good = [trial for trial in result.trials if trial.state == "finished"]
    assert sorted(trial.overrides["optim.learning_rate"] for trial in good) == RATES
    assert {trial.step for trial in good} == {4}

    # the best is that of a search without the bad trials, with the same loss
    campaign = Campaign(config, open_shards(config.data.shards), str(tmp_path / "alone"), None)
    alone = list(WarmWorker(campaign).start(result.best.overrides, "0000", None))
    assert result.best.eval_loss == min(one.loss for one in alone)
    assert result.best.eval_loss == min(trial.eval_loss or math.inf for trial in good)

    # four times more trials than slots have left nothing behind
    wait_for_all_cpus()
    alive = [actor.class_name for actor in list_actors(filters=[("state", "=", "ALIVE")])]
    assert not [name for name in alive if "WarmTrials" in name]
    groups = list_placement_groups(filters=[("state", "=", "CREATED")])
    assert groups == []

    # the same command again: nothing is trained, and nothing has changed
    again = search(config, tmp_path, NINE, max_failures=0)
    assert {trial.trial_id: trial for trial in again.trials} == {
        trial.trial_id: trial for trial in result.trials
    }
    assert "9 of 9 trials have ended" in capfd.readouterr().out


def test_a_trial_whose_process_is_killed_continues_from_its_checkpoint(
    ray_local: ConnectedRay, config: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = search(config, tmp_path, [(RATES[0], 8), (KILLED, 8)], max_failures=1)
    killed = next(t for t in result.trials if t.overrides["optim.learning_rate"] == KILLED)
    assert (killed.state, killed.step, killed.error) == ("finished", 4, None)
    assert "starts again from its checkpoint" in capfd.readouterr().out


def test_concurrency_follows_the_free_resources(ray_local: ConnectedRay) -> None:
    wait_for_all_cpus()
    assert count_concurrent_trials(1, 1.0, False, 0.0)[0] == 4
    assert count_concurrent_trials(1, 0.5, False, 0.0)[0] == 8
    assert count_concurrent_trials(2, 0.5, False, 0.5)[0] == 2  # 1.5 CPU for a trial
    assert count_concurrent_trials(1, 8.0, False, 0.0)[0] == 1
    assert "of 4 CPU" in count_concurrent_trials(1, 1.0, False, 0.0)[1]


def read_rows(client: MlflowClient, run_id: str) -> dict[str, list[int]]:
    """The steps of each metric of a run, in the order in which they were logged."""
    metrics = client.get_run(run_id).data.metrics
    return {
        name: [point.step for point in client.get_metric_history(run_id, name)] for name in metrics
    }


def test_a_search_whose_driver_was_killed_continues_in_the_same_runs(
    config: Config, tmp_path: Path
) -> None:
    changed = flatten_config(config)
    settings = [
        f"{name}={changed[name]}"
        for name in (
            "data.shards",
            "data.sequence_tokens",
            "data.max_validation_records",
            "train.output_dir",
            "tracking.uri",
        )
    ]
    settings += [
        "train.run_name=killed",
        "train.eval_steps=4",
        "train.num_epochs=4",
        "search.trial_steps=24",
        "search.num_trials=3",
        "search.max_concurrent=1",
        "search.scheduler=none",
        "tracking.experiment=killed",
    ]
    report = tmp_path / "trials.json"
    command = [*FORKED, "app", "tune", "demo", *settings]
    command += ["--json", str(report)]
    environment = {**os.environ, "RAY_ADDRESS": "", "OMP_NUM_THREADS": "1", "RAY_DEDUP_LOGS": "0"}

    # kill the driver in the second trial
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as driver:
        assert driver.stdout is not None
        lines = iter(driver.stdout)
        assert any("trial finished at step 24" in line for line in lines)
        assert any("step 8: evaluation loss" in line for line in lines)
        processes = psutil.Process(driver.pid).children(recursive=True)
        driver.kill()
    assert driver.returncode == -signal.SIGKILL
    assert processes

    client = MlflowClient(str(config.tracking.uri))
    experiment = client.get_experiment_by_name("killed")
    assert experiment is not None
    before = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.status for run in before) == ["FINISHED", "RUNNING", "RUNNING"]
    finished = next(run for run in before if run.info.status == "FINISHED")

    # the same command
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "the search continues: 1 of 3 trials have ended" in done.stdout
    assert done.stdout.count("trial finished at step 24") == 2
    assert done.stdout.count("step 4: evaluation loss") == 1  # the killed trial is past it

    runs = {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}
    assert len(runs) == 4
    assert {run.info.run_id for run in before} <= runs.keys()
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert runs[finished.info.run_id].info.end_time == finished.info.end_time

    written = json.loads(report.read_text())
    assert [trial["state"] for trial in written["trials"]] == ["finished"] * 3
    assert {trial["run_id"] for trial in written["trials"]} == runs.keys() - {
        written["parent_run_id"]
    }
    assert written["best"] == min(written["trials"], key=lambda trial: trial["best_eval_loss"])
    for trial in written["trials"]:
        rows = read_rows(client, trial["run_id"])
        assert rows["eval/loss"] == list(range(0, 25, 4))
        assert rows["train/loss"] == list(range(1, 25))

    # the continued trial has the losses of one that was not interrupted
    trial = next(trial for trial in written["trials"] if trial["trial_id"] == "0001")
    points = client.get_metric_history(trial["run_id"], "eval/loss")
    longer = override_config(
        config,
        {
            "search.trial_steps": 24,
            "train.eval_steps": 4,
            "train.num_epochs": 4,
            "tracking.uri": None,
        },
    )
    campaign = Campaign(longer, open_shards(config.data.shards), str(tmp_path), None)
    alone = WarmWorker(campaign).start(trial["params"], "0001", None)
    assert [point.value for point in points] == [one.loss for one in alone]

    # the private Ray has ended with its killed driver; its agents take a minute to see it
    assert psutil.wait_procs(processes, timeout=120)[1] == []
