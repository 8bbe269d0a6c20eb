"""Joining and starting Ray, whether a job fits, and the AWS cluster file."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, cast

import pytest
import ray
import yaml
from hypothesis import given
from hypothesis import strategies as st
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.train.v2._internal.execution.failure_handling import create_failure_policy
from ray.train.v2.api.exceptions import PreemptionError, WorkerGroupError
from ray.train.v2.api.preemption import PreemptionInfo
from ray.util.state import list_nodes

from app.config import load_config
from app.errors import UserError
from app.jobs.cluster import ConnectedRay, connect_ray
from app.jobs.job import connect_workers
from app.jobs.resources import (
    Resources,
    count_fitting_workers,
    describe_shortage,
    require_resources,
)
from app.jobs.train import _build_trainer
from app.jobs.worker_job import WorkerJob

CLUSTER_YAML = Path(__file__).parent.parent / "cluster.yaml"


def test_workers_of_a_private_ray_reach_its_dashboard(ray_local: ConnectedRay) -> None:
    """Train's placement-group cleaner does the same to give a stopped trial's workers back."""

    @ray.remote(num_cpus=0)
    def nodes_seen() -> tuple[int, str | None, int]:
        return len(list_nodes()), os.environ.get("RAY_AUTH_MODE"), os.nice(0)

    assert ray.get(nodes_seen.remote()) == (1, "token", os.nice(0))
    assert ray_local.private


def test_starting_ray_keeps_the_handler_of_sigterm(ray_local: ConnectedRay) -> None:
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_the_hub_token_reaches_the_workers_of_a_cluster_and_is_nowhere_in_the_clear(
    ray_local: ConnectedRay,
) -> None:
    code = """
import os, ray
from ray.util.state import list_jobs
from app.jobs.cluster import connect_ray

@ray.remote(num_cpus=0.1)
class Worker:
    def read_token(self):
        return os.environ.get("HF_TOKEN"), str(ray.get_runtime_context().runtime_env)

with connect_ray():
    token, shown = ray.get(Worker.remote().read_token.remote())
    shown += str(ray.get_runtime_context().runtime_env) + str(list_jobs(detail=True))
    secret = "-".join(("hf", "of", "driver"))  # Ray shows this code, too
    print(token == secret, secret in shown)
"""
    environment = {**os.environ, "HF_TOKEN": "hf-of-driver"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == ["True", "False"], done.stderr


def test_lost_spot_nodes_do_not_count_as_failures() -> None:
    config = load_config("demo", {"train.max_failures": 1})
    job: Any = WorkerJob(config, cast(Any, None), "/absent/job", None)
    policy = create_failure_policy(_build_trainer(job).run_config.failure_config)
    preempted = PreemptionError(PreemptionInfo(0, {"node": [0]}))
    crashed = WorkerGroupError("crash", {0: RuntimeError()})
    decisions = [policy.make_decision(error) for error in [preempted] * 9 + [crashed] * 2]
    assert [decision.name for decision in decisions] == ["RETRY"] * 10 + ["RAISE"]


def test_an_unreachable_cluster_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with (
        pytest.raises(UserError, match=r"RAY_ADDRESS=127\.0\.0\.1:1 .*refused.*unset RAY_ADDRESS"),
        connect_ray(),
    ):
        pass
    assert os.environ["RAY_ADDRESS"] == "127.0.0.1:1"


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        (
            (5, 1.0, 0.0, 0.5, 0),
            "4 CPU and 0 GPU cannot hold 5 training workers of 1 CPU each "
            "and a data task of 0.5 CPU; set scaling.num_workers=3 or scaling.cpus_per_worker=0.7",
        ),
        (
            (1, 4.0, 0.0, 0.5, 0),
            "4 CPU and 0 GPU cannot hold 1 training workers of 4 CPU each "
            "and a data task of 0.5 CPU; set scaling.cpus_per_worker=3.5",
        ),
        (
            (2, 1.0, 1.0, 0.5, 2),
            "4 CPU and 0 GPU cannot hold 2 training workers of 1 CPU and 1 GPU each "
            "and a data task of 0.5 CPU; set scaling.use_gpu=false or a smaller data.cpus_per_task",
        ),
    ],
)
def test_a_job_that_can_never_fit_is_refused(
    ray_local: ConnectedRay, needs: tuple[Any, ...], message: str
) -> None:
    with pytest.raises(UserError) as refused:
        require_resources(*needs)
    assert str(refused.value) == f"the cluster has no room: {message}"


@pytest.mark.parametrize(
    ("num_workers", "per_trial", "fix"),
    [
        (2, 1, "set search.max_concurrent=1"),
        (8, 2, "set search.max_concurrent=1"),
        (12, 1, "set search.max_concurrent=3"),
        (12, 4, "set search.max_concurrent=1 search.workers_per_trial=3"),
    ],
)
def test_a_search_that_can_never_fit_is_told_to_run_fewer_trials_at_a_time(
    num_workers: int, per_trial: int, fix: str
) -> None:
    node = {"CPU": 64.0, "GPU": 1.0 if num_workers == 2 else 3.0}
    sentence = describe_shortage([node], num_workers, 1.0, 1.0, 0.5, per_trial)
    assert sentence is not None
    assert sentence.endswith(fix)


def test_an_evaluation_needs_no_data_task() -> None:
    assert describe_shortage([{"CPU": 1.0}], 1, 1.0, 0.0, 0.0) is None
    sentence = describe_shortage([{"CPU": 1.0}], 1, 1.0, 1.0, 0.0)
    assert sentence == (
        "1 CPU and 0 GPU cannot hold 1 training workers of 1 CPU and 1 GPU each; "
        "set scaling.use_gpu=false"
    )


def test_a_private_ray_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no autoscaler: a job that does not fit is refused before Ray starts."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    wants = {"scaling.num_workers": 900, "scaling.wait_seconds": 86_400}
    with (
        pytest.raises(UserError, match=r"this machine has no room: .* 900 training workers"),
        connect_workers(load_config(None, wants), 900),
    ):
        pass


def test_a_job_waits_for_what_other_work_gives_back(
    ray_local: ConnectedRay, capfd: pytest.CaptureFixture[str]
) -> None:
    held = ray.util.placement_group([{"CPU": 3}])
    assert held.wait(timeout_seconds=60)
    threading.Timer(1.0, ray.util.remove_placement_group, [held]).start()
    require_resources(3, 1.0, False, 0.5, 60)
    assert ray.available_resources()["CPU"] >= 3.5
    assert "waiting for room for 3 training workers" in capfd.readouterr().out


def workers_one_by_one(
    nodes: list[Resources], cpus_per_worker: float, gpus: float, cpus_per_task: float
) -> int:
    """The oracle: put the task on each node in turn, then hand out workers one by one."""
    most = 0
    for at, node in enumerate(nodes):
        left = [dict(other) for other in nodes]
        if node["CPU"] < cpus_per_task:
            continue
        left[at]["CPU"] -= cpus_per_task
        count = 0
        for other in left:
            places = [1.0 for _ in range(int(other["GPU"]))] if gpus else [999.0]
            for free in places:
                while other["CPU"] >= cpus_per_worker and free >= gpus - 1e-9:
                    other["CPU"] -= cpus_per_worker
                    free -= gpus
                    count += 1
        most = max(most, count)
    return most


node = st.fixed_dictionaries(
    {"CPU": st.integers(0, 20).map(lambda n: n / 4), "GPU": st.integers(0, 3)}
)
quarters = st.integers(1, 12).map(lambda n: n / 4)
shares = st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.4, 0.5, 1.0])


@given(nodes=st.lists(node, max_size=4), worker=quarters, gpus=shares, task=quarters)
def test_room_is_what_handing_out_workers_one_by_one_gives(
    nodes: list[Resources], worker: float, gpus: float, task: float
) -> None:
    assert count_fitting_workers(nodes, worker, gpus, task) == workers_one_by_one(
        nodes, worker, gpus, task
    )


def test_the_cluster_file_is_valid_and_closed_to_strangers() -> None:
    config = prepare_config(yaml.safe_load(CLUSTER_YAML.read_text(encoding="utf-8")))
    validate_config(config)
    head, gpu = (config["available_node_types"][name] for name in ("head", "gpu"))
    assert (head["resources"], head["max_workers"]) == ({"CPU": 2}, 0)
    assert (gpu["min_workers"], gpu["resources"]["GPU"]) == (0, 4)
    assert config["max_workers"] == gpu["max_workers"] == 4
    start = config["head_start_ray_commands"][-1]
    assert "--num-cpus=2" in start
    assert "--dashboard-host=127.0.0.1" in start
    assert any("RAY_AUTH_MODE=token" in command for command in config["initialization_commands"])
    assert config["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    assert "security_group" not in config["provider"]  # it could only open more
