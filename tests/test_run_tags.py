"""Tags and system metrics that MLflow's pages show of every run, on a real MLflow."""

import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from app.config import Config, load_config
from app.errors import UserError
from app.jobs.job import track_run
from app.jobs.run_tags import NOTE, add_result, describe_job, describe_source
from app.tracking import SystemMetrics, check_tracking
from data_pipeline.config import PrepareConfig
from data_pipeline.prepare.dataset import prepare_dataset
from data_pipeline.shards import open_shards

# MLflow's use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("tags")
    uri = f"sqlite:///{folder}/mlflow.db"
    config = load_config("demo", {"tracking.uri": uri, "train.output_dir": str(folder)})
    check_tracking(config.tracking)
    return config


def test_the_source_is_the_command_and_the_commit_of_this_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["app", "train", "a/b.yaml", "train.run_name=two words"])
    monkeypatch.setenv("LOGNAME", "ada")
    tags = describe_source()
    root = Path(__file__).parent.parent
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert tags["mlflow.source.git.commit"] == commit
    assert tags["mlflow.source.git.dirty"] in ("True", "False")
    assert tags["mlflow.user"] == "ada"
    assert tags["mlflow.source.name"] == "python -m app train"
    assert tags["command"] == "python -m app train a/b.yaml 'train.run_name=two words'"


def test_a_description_names_model_data_and_result(tmp_path: Path) -> None:
    made = PrepareConfig(out=str(tmp_path), validation_share=0.2)
    prepare_dataset(["scenes:40"], made, progress=False)
    shards = open_shards(str(tmp_path))
    config = load_config("demo", {"lora.rank": 4, "quantization.kind": "nf4"})
    note = describe_job(config, shards, "Training")
    num_train, num_validation = shards.num_records("train"), shards.num_records("validation")
    assert num_train > num_validation > 0
    assert note == (
        f"Training of tiny (nf4, double) with LoRA rank 4 on {num_train} drawings of "
        f"`{tmp_path}`, evaluated on {num_validation}."
    )
    assert add_result(note, "done.") == f"{note}\n\nResult: done."


@pytest.mark.parametrize(
    ("error", "status", "result"),
    [
        (UserError("step 5: loss nan: lower it"), "FAILED", "failed: step 5: loss nan: lower it"),
        (KeyboardInterrupt(), "KILLED", "stopped by a signal before its end."),
        (ZeroDivisionError(), "FAILED", "failed: ZeroDivisionError"),
    ],
)
def test_the_description_of_a_job_that_failed_has_the_reason(
    config: Config, tmp_path: Path, error: BaseException, status: str, result: str
) -> None:
    tags = {
        NOTE: "Training of x on s3://key:secret@bucket/shards.",
        "command": "x --token=hf_" + "a" * 20,
    }
    with pytest.raises(type(error)), track_run(config, str(tmp_path), tags) as tracker:
        raise error
    run = MlflowClient(config.tracking.uri).get_run(str(tracker.run_id))
    assert run.info.status == status
    assert run.data.tags[NOTE] == f"Training of x on s3://***@bucket/shards.\n\nResult: {result}"
    assert "aaaa" not in run.data.tags["command"]


def test_system_metrics_are_sampled_every_ten_seconds() -> None:
    now = [100.0]
    metrics = SystemMetrics(lambda: now[0])
    first = metrics.sample()
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= {*first}
    assert all(name.startswith("system/") for name in first)
    assert 0 < first["system/system_memory_usage_percentage"] <= 100
    now[0] = 109.9
    assert metrics.sample() == {}
    now[0] = 110.0
    assert metrics.sample().keys() == first.keys()
