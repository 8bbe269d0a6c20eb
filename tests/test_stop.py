"""A real signal ends a job, a search and its trials as KILLED, with one sentence.

`test_launch.py` stops a submitted job.
"""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from forked_workers import FORKED
from mlflow import MlflowClient

from app.tracking import TrackingConfig, check_tracking
from data_pipeline.config import PrepareConfig
from data_pipeline.prepare.dataset import prepare_dataset

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a job that would run for hours."""
    folder = tmp_path_factory.mktemp("stop")
    prepare_dataset(["scenes:60"], PrepareConfig(out=str(folder / "shards")), progress=False)
    uri = f"sqlite:///{folder}/mlflow.db"
    check_tracking(TrackingConfig(uri=uri, experiment="demo"))
    return [
        f"data.shards={folder}/shards",
        f"train.output_dir={folder}",
        f"tracking.uri={uri}",
        "train.num_epochs=9999",
        "train.max_steps=99999",
        "search.trial_steps=99999",
        "data.sequence_tokens=256",
        "data.max_validation_records=4",
        "scaling.num_workers=1",
        "train.precision=fp32",
    ]


@pytest.mark.parametrize(
    ("command", "number", "num_trials"),
    [("train", signal.SIGINT, 0), ("tune", signal.SIGTERM, 2)],
    ids=["train-SIGINT", "tune-SIGTERM"],
)
def test_a_signal_ends_all_runs_as_killed_with_one_sentence(
    settings: list[str], command: str, number: signal.Signals, num_trials: int
) -> None:
    name = f"{command}-{number.name}"
    with subprocess.Popen(
        [*FORKED, "app", command, "demo", *settings, f"train.run_name={name}"],
        cwd=ROOT,
        # an empty RAY_ADDRESS is as if it were not set
        env={**os.environ, "RAY_ADDRESS": "", "OMP_NUM_THREADS": "1", "RAY_DEDUP_LOGS": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        started = (line for line in process.stdout if "step 0: evaluation loss" in line)
        for _ in range(num_trials or 1):
            next(started, None)
        process.send_signal(number)
        output = process.stdout.read()
    assert process.returncode == 128 + number, output
    assert output.splitlines()[-1] == f"svgscribe: stopped by {number.name}"
    assert not [word for word in ("Traceback", "Fatal", "SIGABRT", "Aborted") if word in output]

    client = MlflowClient(next(s for s in settings if s.startswith("tracking")).partition("=")[2])
    runs = client.search_runs([client.get_experiment_by_name("demo").experiment_id])
    parent = next(run for run in runs if run.info.run_name == name)
    children = [
        run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
    ]
    assert [run.info.status for run in (parent, *children)] == ["KILLED"] * (1 + num_trials)
    assert {run.data.tags["trial_state"] for run in children} <= {"interrupted"}
