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
import torch
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
from app.gemma.load import CaptionLoss
from app.jobs.cluster import ConnectedRay
from app.jobs.precision import resolve_precision
from app.jobs.resources import count_concurrent_trials
from app.jobs.trials import Campaign
from app.jobs.warm_trials import WarmWorker
from app.jobs.worker import run_worker
from app.jobs.worker_job import WorkerJob
from app.tracking import TrackingConfig, check_tracking
from app.training.step import compute_mean_loss
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


class MeasuredWorker(WarmWorker):
    """The worker of every trial; it measures each checkpoint that it continues from."""

    def start(self, overrides: Any, trial_id: str, folder: Path | None) -> Iterator[Evaluation]:
        trial = super().start(overrides, trial_id, folder)
        if folder is not None:
            assert self._training is not None
            setup = self._training.setup
            loss = compute_mean_loss(setup.objective, setup.validation, setup.context)
            saved = json.loads((folder / "state.json").read_text())
            line = [trial_id, saved["run_id"], saved["state"]["step"], saved["eval_loss"], loss]
            with Path(self._campaign.job_dir, "continued.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
        return trial


def search_in_one_process(config: Config, folder: Path, **settings: Any) -> SearchResult:
    """Run trials in turns, and track them. `continued.jsonl` has each one's continuations."""
    config = override_config(config, {"search.trial_steps": 6})
    campaign = Campaign(config, open_shards(config.data.shards), str(folder), None)

    def make_worker() -> MeasuredWorker:
        return MeasuredWorker(campaign)

    return run_search(
        SearchConfig.model_validate({"grace_steps": 2, "algorithm": "grid", **settings}),
        WarmTrials(make_worker, {"CPU": 4.0}),
        name="tune",
        storage_path=str(folder),
        trial_steps=6,
    )


def read_continuations(folder: Path) -> list[tuple[str, str, int, float, float]]:
    """(trial, run of the checkpoint, step, its loss, loss after the start) of each continuation."""
    lines = (folder / "continued.jsonl").read_text().splitlines()
    return [tuple(json.loads(line)) for line in lines]


def require_each_step_once(config: Config, folder: Path, result: SearchResult) -> None:
    """Compare the runs of the trials with their steps: no step is missing, and none is double."""
    campaign = Campaign(config, open_shards(config.data.shards), str(folder), None)
    client = MlflowClient(str(config.tracking.uri))
    for trial in result.trials:
        rows = read_rows(client, str(campaign.read_run_id(trial.trial_id)))
        assert rows["eval/loss"] == list(range(0, trial.step + 1, 2))
        assert rows["train/loss"] == list(range(1, trial.step + 1))


def test_a_promoted_trial_has_the_losses_of_one_that_never_paused(
    ray_local: ConnectedRay, config: Config, tmp_path: Path
) -> None:
    space = {"optim.learning_rate": {"choice": [3e-3, 1e-5]}}
    result = search_in_one_process(
        config, tmp_path, space=space, num_trials=2, scheduler="asha_pause"
    )
    steps = {trial.overrides["optim.learning_rate"]: trial.step for trial in result.trials}
    assert steps == {3e-3: 6, 1e-5: 2}

    # its continuations are from its own checkpoints, with their losses
    continued = read_continuations(tmp_path)
    campaign = Campaign(config, open_shards(config.data.shards), str(tmp_path), None)
    assert [step for _, _, step, _, _ in continued] == [2, 4]
    for trial_id, run_id, _, saved_loss, loss in continued:
        assert run_id == campaign.read_run_id(trial_id)
        assert loss == saved_loss
    require_each_step_once(config, tmp_path, result)

    # as if it had never paused
    longer = override_config(config, {"search.trial_steps": 6, "tracking.uri": None})
    alone = Campaign(longer, open_shards(config.data.shards), str(tmp_path / "alone"), None)
    trial = list(WarmWorker(alone).start(result.best.overrides, "0000", None))
    client = MlflowClient(str(config.tracking.uri))
    run_id = str(campaign.read_run_id(result.best.trial_id))
    points = client.get_metric_history(run_id, "eval/loss")
    assert [(point.step, point.value) for point in points] == [one[:2] for one in trial]


def test_an_exploited_trial_starts_with_the_loss_of_the_checkpoint_of_another(
    ray_local: ConnectedRay, config: Config, tmp_path: Path
) -> None:
    space = {"optim.learning_rate": {"choice": [1e-5, 3e-3]}}
    result = search_in_one_process(config, tmp_path, space=space, num_trials=2, scheduler="pbt")
    assert [trial.step for trial in result.trials] == [6, 6]

    campaign = Campaign(config, open_shards(config.data.shards), str(tmp_path), None)
    runs = {trial.trial_id: campaign.read_run_id(trial.trial_id) for trial in result.trials}
    donors = {run_id: trial_id for trial_id, run_id in runs.items()}
    client = MlflowClient(str(config.tracking.uri))
    num_exploits = 0
    for trial_id, run_id, step, saved_loss, loss in read_continuations(tmp_path):
        assert loss == saved_loss
        if run_id != runs[trial_id]:
            num_exploits += 1
            evaluated = client.get_metric_history(run_id, "eval/loss")
            assert loss in [point.value for point in evaluated if point.step == step]
            assert donors[run_id] != trial_id
    assert num_exploits
    require_each_step_once(config, tmp_path, result)


def starving_worker(arguments: dict[str, WorkerJob]) -> dict[str, Any]:
    """The worker of a trial whose allocator refuses a tensor in step 3, for two sequences."""
    steps = []

    def allocate(objective: Any, input_ids: Any, position_ids: Any) -> Any:
        if torch.is_grad_enabled():
            steps.append(len(input_ids))
            if steps[2:] and len(input_ids) > 1:
                Path(arguments["job"].job_dir, f"refused-{os.getpid()}").touch()
                torch.empty(2**58)
        return compute_hidden(objective, input_ids, position_ids)

    compute_hidden = CaptionLoss.compute_hidden
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CaptionLoss, "compute_hidden", allocate)
        return run_worker(arguments)


def test_a_trial_of_two_workers_without_memory_continues_with_half_the_micro_batch(
    ray_local: ConnectedRay, config: Config, tmp_path: Path
) -> None:
    changes = {
        "search.workers_per_trial": 2,
        "scaling.cpus_per_worker": 0.5,
        "train.micro_batch_size": 2,
        "train.max_failures": 5,
    }
    config = override_config(config, changes)
    campaign = Campaign(config, open_shards(config.data.shards), str(tmp_path), None)

    def run_trial(overrides: dict[str, Any], trial_id: str) -> dict[str, Any]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("app.jobs.train.run_worker", starving_worker)
            return campaign.run_nested(overrides, trial_id)

    space = {"optim.learning_rate": {"choice": [1e-3]}}
    result = run_search(
        SearchConfig.model_validate({"space": space, "num_trials": 1, "scheduler": "none"}),
        run_trial,
        name="tune",
        storage_path=str(tmp_path),
        trial_steps=4,
    )
    assert (result.best.state, result.best.step) == ("finished", 4)
    refused = list(tmp_path.glob("trials/trial-0000/refused-*"))
    assert 1 <= len(refused) <= 2  # once, on one worker or on both

    client = MlflowClient(str(config.tracking.uri))
    run_id = str(campaign.read_run_id("0000"))
    run = client.get_run(run_id)
    assert run.data.tags["retry"] == "out of memory with train.micro_batch_size=2, retried with 1"
    assert run.data.params["train.micro_batch_size"] == "2"
    assert run.data.tags["resumed.train.micro_batch_size"] == "1"
    rows = read_rows(client, run_id)
    assert rows["eval/loss"] == [0, 2, 4]
    assert rows["train/loss"] == [1, 2, 3, 4]


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
    environment["RAY_gcs_rpc_server_reconnect_timeout_s"] = "5"  # of the agents, not a minute

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
