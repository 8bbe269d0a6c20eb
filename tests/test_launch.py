"""A real Ray head on loopback with token authentication, and a training job submitted to it."""

import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from data_pipeline.config import PrepareConfig
from data_pipeline.prepare.dataset import prepare_dataset

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


def ports(number: int) -> list[int]:
    import socket

    with_sockets = [socket.socket() for _ in range(number)]
    for probe in with_sockets:
        probe.bind(("127.0.0.1", 0))
    found = [probe.getsockname()[1] for probe in with_sockets]
    for probe in with_sockets:
        probe.close()
    return found


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment for clients of a Ray head in the foreground, which ends with its process."""
    tmp_path = tmp_path_factory.mktemp("head")
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32))
    gcs, dashboard, client, agent, agent_grpc, metrics = ports(6)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_worker_niceness": "0",
        "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "OMP_NUM_THREADS": "1",
        "HF_TOKEN": "hf_of_the_driver",  # the job's driver sends it to the workers
        "RAY_ADDRESS": f"127.0.0.1:{gcs}",
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    with tempfile.TemporaryDirectory(
        prefix="ray-", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:
        with (tmp_path / "head.log").open("w") as log:
            process = subprocess.Popen(
                [
                    BIN / "ray",
                    "start",
                    "--head",
                    "--block",
                    "--num-cpus=4",
                    f"--port={gcs}",
                    "--node-ip-address=127.0.0.1",
                    "--dashboard-host=127.0.0.1",
                    f"--dashboard-port={dashboard}",
                    f"--ray-client-server-port={client}",
                    f"--dashboard-agent-listen-port={agent}",
                    f"--dashboard-agent-grpc-port={agent_grpc}",
                    f"--metrics-export-port={metrics}",
                    f"--temp-dir={folder}",
                    "--disable-usage-stats",
                ],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            wait = "curl --silent --output /dev/null --retry 60 --retry-delay 1 --retry-connrefused"
            url = f"http://127.0.0.1:{dashboard}"
            is_up = subprocess.run([*wait.split(), url], check=False).returncode == 0
            assert is_up, (tmp_path / "head.log").read_text()
            yield {**environment, "DASHBOARD": url}
        finally:
            # `ray start` itself would wait for half a minute
            processes = psutil.Process(process.pid).children(recursive=True)
            for each in (*processes, process):
                each.kill()
            process.wait(90)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the shards, the jobs and the tracking database."""
    folder = tmp_path_factory.mktemp("jobs")
    prepare_dataset(["scenes:120"], PrepareConfig(out=str(folder / "shards")), progress=False)
    return folder


def submit_job(
    head: dict[str, str], folder: Path, *overrides: str, options: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Submit a small training job as the user's guide does."""
    command = [
        *(BIN / "ray", "job", "submit", f"--address={head['DASHBOARD']}", *options),
        *("--working-dir", ".", "--", sys.executable),
        *("-m", "app", "train", "app/configs/demo.yaml"),
        f"data.shards={folder}/shards",
        f"train.output_dir={folder}",
        f"tracking.uri=sqlite:///{folder}/mlflow.db",
        "data.sequence_tokens=256",
        "data.max_validation_records=8",
        "scaling.num_workers=1",
        *overrides,
    ]
    for _ in range(10):  # the dashboard answers some seconds before the head's agent accepts a job
        done = subprocess.run(
            command, cwd=ROOT, env=head, capture_output=True, text=True, timeout=400, check=False
        )
        if "No available agent" not in done.stderr:
            break
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def find_runs(folder: Path, name: str) -> list[Run]:
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("demo")
    return client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")


def test_a_submitted_job_succeeds_and_its_run_can_be_seen(head, folder):
    stranger = subprocess.run(
        [BIN / "ray", "job", "submit", f"--address={head['DASHBOARD']}", "--", "true"],
        cwd=folder,
        env={**head, "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert stranger.returncode != 0, "a client without the token must be refused"
    done = submit_job(
        head,
        folder,
        "train.run_name=submitted",
        "train.max_steps=4",
        "train.eval_steps=2",
        "train.save_steps=2",
    )
    assert "succeeded" in done.stdout
    (run,) = find_runs(folder, "submitted")
    assert run.info.status == "FINISHED"
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")] == [
        1,
        2,
        3,
        4,
    ]


def test_a_stopped_job_ends_its_run_as_killed(head, folder):
    """`ray job stop` sends SIGTERM, and SIGKILL 3 s later."""
    submit_job(
        head,
        folder,
        "train.run_name=stopped",
        "train.num_epochs=9999",
        "train.max_steps=99999",
        "train.precision=fp32",
        options=("--no-wait", "--submission-id=stopped"),
    )
    ray_job = [BIN / "ray", "job"]
    address = f"--address={head['DASHBOARD']}"
    with subprocess.Popen(
        [*ray_job, "logs", address, "--follow", "stopped"],
        env=head,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as logs:
        assert logs.stdout is not None
        assert any("step 0: evaluation loss" in line for line in logs.stdout)
        subprocess.run([*ray_job, "stop", address, "stopped"], env=head, check=True, timeout=120)
        output = logs.stdout.read()
    assert "svgscribe: stopped by SIGTERM" in output
    (run,) = find_runs(folder, "stopped")
    assert run.info.status == "KILLED"
