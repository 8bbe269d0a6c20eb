"""A real Ray head on loopback with token authentication, and a training job submitted to it."""

import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

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


@pytest.fixture
def head(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Environment for clients of a Ray head in the foreground, which ends with its process."""
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32))
    gcs, dashboard, client, agent, agent_grpc, metrics = ports(6)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_worker_niceness": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "OMP_NUM_THREADS": "1",
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
            yield {**environment, "DASHBOARD": f"http://127.0.0.1:{dashboard}"}
        finally:
            process.terminate()
            process.wait(90)


def test_a_submitted_job_succeeds_and_its_run_can_be_seen(head, tmp_path):
    prepared = subprocess.run(
        [sys.executable, "-m", "app", "prepare", "scenes:120", "--out", str(tmp_path / "shards")],
        cwd=ROOT,
        check=False,
    )
    assert prepared.returncode == 0
    submit = [
        BIN / "ray",
        "job",
        "submit",
        f"--address={head['DASHBOARD']}",
        "--working-dir",
        ".",
        "--",
        sys.executable,
        "-m",
        "app",
        "train",
        "app/configs/demo.yaml",
        f"data.shards={tmp_path}/shards",
        f"train.output_dir={tmp_path}",
        "train.run_name=submitted",
        "train.max_steps=4",
        "train.eval_steps=2",
        "train.save_steps=2",
        "data.sequence_tokens=256",
        "data.max_validation_records=8",
        f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
    ]
    up = [
        "curl",
        "--silent",
        "--output",
        "/dev/null",
        "--retry",
        "60",
        "--retry-delay",
        "1",
        "--retry-connrefused",
    ]
    dashboard_is_up = subprocess.run([*up, head["DASHBOARD"]], check=False)
    assert dashboard_is_up.returncode == 0, (tmp_path / "head.log").read_text()
    stranger = subprocess.run(
        [*submit[:6], "--", "true"],
        cwd=tmp_path,
        env={**head, "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert stranger.returncode != 0, "a client without the token must be refused"
    for _ in range(10):  # the dashboard answers some seconds before the head's agent accepts a job
        done = subprocess.run(
            submit, cwd=ROOT, env=head, capture_output=True, text=True, timeout=400, check=False
        )
        if "No available agent" not in done.stderr:
            break
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "succeeded" in done.stdout
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("demo").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "submitted"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")] == [
        1,
        2,
        3,
        4,
    ]
