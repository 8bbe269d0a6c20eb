"""Real MLflow: one sqlite file for the module, and one real server that is killed."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from app.errors import UserError
from app.tracking import (
    NullTracker,
    Status,
    Tracker,
    TrackingConfig,
    attach_run,
    build_ui_command,
    check_tracking,
    get_final_status,
    kill_running_children,
    open_run,
    reopen_run,
    resolve_uri,
)

# MLflow's use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all tests, because creating its schema takes 8 s."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('tracking')}/new/mlflow.db"
    check_tracking(TrackingConfig(uri=uri))
    return uri


@pytest.fixture
def config(database: str, request: pytest.FixtureRequest) -> TrackingConfig:
    """The test's own experiment."""
    return TrackingConfig(uri=database, experiment=request.node.name, timeout_seconds=1)


def open_job(config: TrackingConfig, folder: Path, **kwargs: Any) -> Tracker:
    return open_run(config, run_name="job", job_dir=str(folder), **kwargs)


def stored(config: TrackingConfig, tracker: Tracker) -> Run:
    return MlflowClient(config.uri).get_run(str(tracker.run_id))


def history(config: TrackingConfig, tracker: Tracker, name: str) -> list[tuple[int, float]]:
    points = MlflowClient(config.uri).get_metric_history(str(tracker.run_id), name)
    return sorted((point.step, point.value) for point in points)


def test_a_replay_after_a_crash_leaves_each_step_once(
    config: TrackingConfig, tmp_path: Path
) -> None:
    driver = open_job(config, tmp_path)

    def train(worker: Tracker, first: int, last: int) -> None:
        for step in range(first, last + 1):
            worker.log_metrics(step, {"train/loss": 1 / step, "train/lr": 1e-4})
            if step % 3 == 0:
                worker.log_metrics(
                    step, {"eval/loss": 2 / step}
                )  # the same step, after train/loss has it

    train(attach_run(config, driver.run_id), 1, 7)  # and dies; its last checkpoint is at step 4
    train(attach_run(config, driver.run_id), 5, 10)
    assert history(config, driver, "train/loss") == [(step, 1 / step) for step in range(1, 11)]
    assert history(config, driver, "train/lr") == [(step, 1e-4) for step in range(1, 11)]
    assert history(config, driver, "eval/loss") == [(step, 2 / step) for step in (3, 6, 9)]


def test_one_job_is_one_run_with_a_true_status(config: TrackingConfig, tmp_path: Path) -> None:
    first = open_job(config, tmp_path / "a")
    assert stored(config, first).info.status == "RUNNING"
    assert stored(config, first).info.run_name == "job"
    statuses: tuple[Status, ...] = ("FAILED", "KILLED", "FINISHED")
    for status in statuses:
        again = open_job(config, tmp_path / "a")
        assert again.run_id == first.run_id
        assert stored(config, again).info.status == "RUNNING"
        again.finish(status)
        assert stored(config, again).info.status == status
    assert open_job(config, tmp_path / "b").run_id != first.run_id


@pytest.mark.parametrize("status", ["KILLED", "FAILED", "FINISHED", "RUNNING"])
def test_a_reopened_run_keeps_its_status(
    config: TrackingConfig, tmp_path: Path, status: str
) -> None:
    assert reopen_run(config, job_dir=str(tmp_path)) is None
    job = open_job(config, tmp_path)
    if status != "RUNNING":
        job.finish(status)  # type: ignore[arg-type]
    reopened = reopen_run(config, job_dir=str(tmp_path))
    assert reopened is not None
    reopened.log_metrics(7, {"held_out/bleu4": 0.25})
    reopened.flush()
    assert history(config, job, "held_out/bleu4") == [(7, 0.25)]
    assert stored(config, job).info.status == status


def test_a_job_whose_run_is_gone_gets_a_new_one(config: TrackingConfig, tmp_path: Path) -> None:
    first = open_job(config, tmp_path)
    MlflowClient(config.uri).delete_run(str(first.run_id))
    second = open_job(config, tmp_path)
    assert second.run_id != first.run_id
    (tmp_path / "mlflow_run.json").write_text(json.dumps({"run_id": "0" * 32}))  # of another server
    third = open_job(config, tmp_path)
    assert third.run_id not in (first.run_id, second.run_id)
    assert open_job(config, tmp_path).run_id == third.run_id


def test_a_child_names_its_parent(config: TrackingConfig, tmp_path: Path) -> None:
    parent = open_job(config, tmp_path / "search")
    child = open_job(config, tmp_path / "trial", parent_run_id=parent.run_id, tags={"trial": "3"})
    tags = stored(config, child).data.tags
    assert (tags["mlflow.parentRunId"], tags["trial"]) == (parent.run_id, "3")


def test_params_have_no_secrets_are_cut_and_changes_become_tags(
    config: TrackingConfig, tmp_path: Path
) -> None:
    params = {
        "optim.lr": 1e-4,
        "tracking.uri": "http://user:pw@host:5000",
        "data.shards": "s3://key:sec/ret@bucket/x",
        "data.system_prompt": "x" * 7000,
        "evaluate.fields.what's?": ("a", "b"),
        "model.revision": None,
    } | {f"many.p{n}": n for n in range(150)}
    open_job(config, tmp_path).log_params(params)
    tracker = open_job(config, tmp_path)
    tracker.log_params(params | {"optim.lr": 3e-4, "new.key": True})
    data = stored(config, tracker).data
    assert data.params["optim.lr"] == "0.0001"
    assert data.params["new.key"] == "True"
    assert data.params["tracking.uri"] == "http://***@host:5000"
    assert data.params["data.shards"] == "s3://***@bucket/x"
    assert data.params["data.system_prompt"] == "x" * 5993 + "… (cut)"
    assert data.params["evaluate.fields.what_s_"] == "('a', 'b')"
    assert data.params["many.p149"] == "149"
    assert {key: value for key, value in data.tags.items() if key.startswith("resumed")} == {
        "resumed.optim.lr": "0.0003"
    }
    open_job(config, tmp_path).log_params(params)  # back to the first value, and so is the tag
    assert stored(config, tracker).data.tags["resumed.optim.lr"] == "0.0001"


def test_tags_text_and_files_reach_the_run_without_credentials(
    config: TrackingConfig, tmp_path: Path
) -> None:
    (tmp_path / "gallery.html").write_text("<p>icon</p>")
    tracker = open_job(config, tmp_path)
    tracker.set_tags({"source": "http://user:pw@host", "long": "y" * 9000})
    tracker.log_text("uri: http://user:pw@host", "config.yaml")
    tracker.log_artifact(tmp_path / "gallery.html", "gallery")
    tracker.finish("FINISHED")
    run = stored(config, tracker)
    assert run.data.tags["source"] == "http://***@host"
    assert run.data.tags["long"].endswith("y… (cut)")
    folder = Path(str(run.info.artifact_uri))
    assert folder.is_relative_to(
        Path(str(config.uri).removeprefix("sqlite:///")).parent / "mlartifacts"
    )
    assert (folder / "config.yaml").read_text() == "uri: http://***@host"
    assert (folder / "gallery" / "gallery.html").read_text() == "<p>icon</p>"


def test_a_dataset_is_an_input_with_its_digest(config: TrackingConfig, tmp_path: Path) -> None:
    digest = "0123456789abcdef" * 4
    for _ in range(2):  # the second is the job continued
        tracker = open_job(config, tmp_path)
        tracker.log_dataset(
            "icons",
            digest=digest,
            num_records=57,
            context="training",
            source="s3://key:secret@bucket/shards",
        )
    (entry,) = stored(config, tracker).inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("icons", digest[:36])
    assert json.loads(str(entry.dataset.profile)) == {"num_rows": 57, "digest": digest}
    assert json.loads(entry.dataset.source) == {"uri": "s3://***@bucket/shards"}
    assert [(tag.key, tag.value) for tag in entry.tags] == [("mlflow.data.context", "training")]


def log_step_10(tracker: Tracker, folder: Path) -> None:
    tracker.log_metrics(10, {"eval/loss": 0.5})
    tracker.log_checkpoint(
        10,
        folder,
        name="step-10",
        metrics={"eval/loss": 0.5, "bleu4": 0.25},
        files=True,
        materials={"lora.rank": 16, "data.shards": "s3://key:secret@bucket/shards"},
    )


def test_a_checkpoint_is_a_model_output_of_its_step(config: TrackingConfig, tmp_path: Path) -> None:
    client = MlflowClient(config.uri)
    (tmp_path / "adapter" / "deep").mkdir(parents=True)
    (tmp_path / "adapter" / "deep" / "weights.safetensors").write_bytes(b"abc")
    tracker = open_job(config, tmp_path)
    log_step_10(tracker, tmp_path / "adapter")
    log_step_10(open_job(config, tmp_path), tmp_path / "adapter")  # replayed by a restarted worker
    tracker.log_checkpoint(
        20, tmp_path / "adapter", name="step-20", metrics={"eval/loss": 0.4}, files=False
    )

    (first, second) = sorted(
        stored(config, tracker).outputs.model_outputs, key=lambda output: output.step
    )
    assert (first.step, second.step) == (10, 20)
    model = client.get_logged_model(first.model_id)
    assert (model.name, str(model.status), model.source_run_id) == (
        "step-10",
        "READY",
        tracker.run_id,
    )
    assert model.params == {"lora.rank": "16", "data.shards": "s3://***@bucket/shards"}
    assert {(m.key, m.value, m.step) for m in model.metrics} == {
        ("eval/loss", 0.5, 10),
        ("bleu4", 0.25, 10),
    }
    assert (Path(model.artifact_location) / "deep" / "weights.safetensors").read_bytes() == b"abc"
    assert history(config, tracker, "eval/loss") == [
        (10, 0.5),
        (20, 0.4),
    ]  # not again for the models
    assert history(config, tracker, "bleu4") == [(10, 0.25)]


def test_a_driver_logs_the_best_checkpoint_after_its_worker(
    config: TrackingConfig, tmp_path: Path
) -> None:
    driver = open_job(config, tmp_path)
    driver.log_metrics(0, {"eval/loss": 3.0})
    worker = attach_run(config, driver.run_id, job_dir=str(tmp_path))
    for step in (10, 20, 30):
        worker.log_metrics(step, {"eval/loss": abs(step - 20) / 10})
    driver.log_checkpoint(20, tmp_path, name="best", metrics={"eval/loss": 0.0}, files=False)
    driver.log_metrics(30, {"eval/loss": 1.0})
    assert history(config, driver, "eval/loss") == [(0, 3.0), (10, 1.0), (20, 0.0), (30, 1.0)]
    (output,) = stored(config, driver).outputs.model_outputs
    model = MlflowClient(config.uri).get_logged_model(output.model_id)
    assert [(m.key, m.value, m.step) for m in model.metrics] == [("eval/loss", 0.0, 20)]


def test_later_scores_are_those_of_the_run_and_of_the_models_of_their_step(
    config: TrackingConfig, tmp_path: Path
) -> None:
    client, job = MlflowClient(config.uri), open_job(config, tmp_path)
    for step, name in ((10, "step-10"), (20, "step-20"), (20, "best")):
        job.log_metrics(step, {"loss": 1.0})
        job.log_checkpoint(step, tmp_path, name=name, metrics={"loss": 1.0}, files=False)
    for value in (0.25, 0.5):  # the second time, the run keeps its first value
        later = reopen_run(config, job_dir=str(tmp_path))
        assert later is not None
        later.log_scores(20, {"test/bleu4": value, "test/bleu4_low": 0.125})
    later.log_scores(30, {"test/bleu4": 0.75})  # a step without a model

    models = [
        client.get_logged_model(output.model_id)
        for output in stored(config, job).outputs.model_outputs
    ]
    scores = {"loss": 1.0, "test/bleu4": 0.25, "test/bleu4_low": 0.125}
    assert {model.name: {m.key: m.value for m in model.metrics} for model in models} == {
        "step-10": {"loss": 1.0},
        "step-20": scores,
        "best": scores,
    }
    assert history(config, job, "test/bleu4") == [(20, 0.25), (30, 0.75)]


def test_a_checkpoint_left_half_logged_is_completed(config: TrackingConfig, tmp_path: Path) -> None:
    tracker = open_job(config, tmp_path)
    client, experiment_id = MlflowClient(config.uri), stored(config, tracker).info.experiment_id
    half = client.create_logged_model(
        experiment_id, "step-10", str(tracker.run_id), tags={"step": "10"}
    )
    log_step_10(tracker, tmp_path / "removed")
    tracker.finish("FINISHED")
    assert [m.model_id for m in client.search_logged_models([experiment_id])] == [half.model_id]
    assert str(client.get_logged_model(half.model_id).status) == "READY"
    assert [output.step for output in stored(config, tracker).outputs.model_outputs] == [10]


def test_processes_write_to_one_database_at_the_same_time(
    config: TrackingConfig, tmp_path: Path
) -> None:
    check_tracking(config)
    trial = """
import sys
from app.tracking import TrackingConfig, open_run
config = TrackingConfig.model_validate_json(sys.argv[1])
tracker = open_run(config, run_name="trial", job_dir=sys.argv[2])
for step in range(1, 31):
    tracker.log_metrics(step, {"train/loss": 1 / step, "train/lr": 1e-4})
tracker.finish("FINISHED")
print(tracker.run_id)
"""
    command = [sys.executable, "-c", trial, config.model_dump_json()]
    processes = [
        subprocess.Popen(
            [*command, str(tmp_path / str(n))], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for n in range(3)
    ]
    run_ids = [process.communicate()[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(set(run_ids)) == 3
    for run_id in run_ids:
        tracker = attach_run(config, run_id)
        assert history(config, tracker, "train/loss") == [(step, 1 / step) for step in range(1, 31)]
        assert stored(config, tracker).info.status == "FINISHED"


def test_processes_that_create_one_database_at_the_same_time_all_use_it(tmp_path: Path) -> None:
    config = TrackingConfig(uri=f"sqlite:///{tmp_path}/new/mlflow.db")
    code = (
        "import sys; from app.tracking import TrackingConfig, check_tracking; "
        "check_tracking(TrackingConfig.model_validate_json(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, config.model_dump_json()]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    assert open_job(config, tmp_path).run_id


def test_a_record_that_mlflow_refuses_is_skipped_and_named_and_the_rest_is_sent(
    config: TrackingConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    long = "long" * 100  # MLflow's limit of a name is 250 characters
    tracker = open_job(config, tmp_path)
    tracker.log_params({"a": 1, f"param.{long}": 2, "b": 3, "c": 4})
    tracker.set_tags({"x": "1", f"tag.{long}": "2", "y": "3"})
    tracker.log_metrics(1, {"train/loss": 1.0, f"metric.{long}": 2.0, "train/lr": 0.5})
    tracker.log_artifact(tmp_path / "removed.html")
    tracker.log_metrics(2, {"train/loss": 0.5})
    tracker.finish("FINISHED")

    run = stored(config, tracker)
    assert run.data.params == {"a": "1", "b": "3", "c": "4"}
    assert (run.data.tags["x"], run.data.tags["y"]) == ("1", "3")
    assert history(config, tracker, "train/loss") == [(1, 1.0), (2, 0.5)]
    assert history(config, tracker, "train/lr") == [(1, 0.5)]
    assert run.info.status == "FINISHED"
    notices = [line for line in capfd.readouterr().err.splitlines() if "refused" in line]
    names = (f"param.{long[:9]}", f"tag.{long[:9]}", f"metric.{long[:9]}", "removed.html")
    assert len(notices) == len(names)
    assert all(name in notice for name, notice in zip(names, notices, strict=True))


def test_the_running_children_of_a_stopped_search_end_as_killed(
    config: TrackingConfig, tmp_path: Path
) -> None:
    parent = open_job(config, tmp_path / "search")
    running, done = (
        open_job(config, tmp_path / name, parent_run_id=parent.run_id) for name in ("1", "2")
    )
    other = open_job(config, tmp_path / "other")
    done.finish("FINISHED")
    kill_running_children(config, parent.run_id, {"trial_state": "interrupted"})
    statuses = [stored(config, each).info.status for each in (parent, running, done, other)]
    assert statuses == ["RUNNING", "KILLED", "FINISHED", "RUNNING"]
    assert stored(config, running).data.tags["trial_state"] == "interrupted"


@pytest.mark.parametrize(
    ("uri", "part"),
    [
        ("./mlruns", "file store is not supported"),
        ("file:///tmp/mlruns", "file store is not supported"),
        ("sqlite:///:memory:", "neither a tracking server nor a database"),
        ("ftp://user:pw@host/x", "'ftp://***@host/x'"),
        ("sqlite:///{tmp}/file/sub/mlflow.db", "NotADirectoryError"),
        ("sqlite:///{tmp}/file", "file is not a database"),
        ("sqlite:////proc/mlflow.db", "unable to open database file"),
        (
            "http://user:pw@127.0.0.1:{closed}",
            "http://***@127.0.0.1:{closed}' cannot be used (ConnectionRefused",
        ),
        ("http://127.0.0.1:{silent}", "(TimeoutError: "),
        ("http://svgscribe.invalid", "http://svgscribe.invalid"),
        ("postgresql://user:pw@127.0.0.1:{closed}/mlflow", "postgresql://***@127.0.0.1"),
    ],
)
def test_an_unusable_uri_is_named_in_one_sentence(tmp_path: Path, uri: str, part: str) -> None:
    (tmp_path / "file").write_text("not a database, but longer than the header of one " * 9)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        socket.create_server(("127.0.0.1", 0)) as closed,
    ):
        ports = {"silent": silent.getsockname()[1], "closed": closed.getsockname()[1]}
        closed.close()
        uri, part = (text.format(tmp=tmp_path, **ports) for text in (uri, part))
        started = time.monotonic()
        with pytest.raises(UserError) as caught:
            check_tracking(TrackingConfig(uri=uri, timeout_seconds=1))
    assert part in str(caught.value)
    assert "pw" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 15  # MLflow's own retries take 247 s


def test_a_deleted_experiment_is_named(config: TrackingConfig) -> None:
    check_tracking(config)
    client = MlflowClient(config.uri)
    experiment = client.get_experiment_by_name(config.experiment)
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    with pytest.raises(UserError, match=r"tracking\.experiment='test_a_deleted.* was deleted"):
        check_tracking(config)


def test_null_tracks_nothing(tmp_path: Path) -> None:
    config = TrackingConfig(uri=None)
    check_tracking(config)
    assert resolve_uri(config) == config
    for tracker in (
        open_job(config, tmp_path),
        attach_run(config, None),
        attach_run(config, "1"),
        NullTracker(),
    ):
        assert tracker.run_id is None
        tracker.log_params({"a": 1})
        tracker.set_tags({"a": "b"})
        tracker.log_dataset("d", digest="x", num_records=1, context="training", source="y")
        log_step_10(tracker, tmp_path)
        tracker.log_text("a", "b.txt")
        tracker.log_artifact(tmp_path / "absent")
        tracker.flush()
        tracker.finish("FINISHED")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"tracking\.uri=null"):
        build_ui_command(config)


def test_a_relative_database_is_the_same_file_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for uri, expected in [
        ("sqlite:///outputs/mlflow.db", f"sqlite:///{tmp_path}/outputs/mlflow.db"),
        ("sqlite:////data/mlflow.db?timeout=5", "sqlite:////data/mlflow.db?timeout=5"),
        ("http://host:5000", "http://host:5000"),
    ]:
        assert resolve_uri(TrackingConfig(uri=uri)).uri == expected


def test_ui_command_of_a_server_is_its_address() -> None:
    assert build_ui_command(TrackingConfig(uri="https://user:pw@host/mlflow")) == [
        "https://***@host/mlflow"
    ]


def test_final_status() -> None:
    ends = [None, KeyboardInterrupt(), ValueError(), UserError(), SystemExit(1)]
    assert [get_final_status(end) for end in ends] == [
        "FINISHED",
        "KILLED",
        "FAILED",
        "FAILED",
        "FAILED",
    ]


def test_parsing_a_config_imports_neither_mlflow_nor_pyarrow() -> None:
    code = (
        "import sys, app.tracking; "
        "print(sorted({'mlflow', 'pyarrow', 'sqlalchemy'} & set(sys.modules)))"
    )
    assert (
        subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).strip() == "[]"
    )


def test_a_silent_server_is_not_waited_for_at_every_step() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setblocking(False)
        config = TrackingConfig(
            uri=f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_seconds=1
        )
        worker = attach_run(config, "0" * 32)
        for step in range(100):
            worker.log_metrics(step, {"train/loss": 1.0})
        connection, _ = silent.accept()  # one request waited 1 s without an answer
        connection.close()
        with pytest.raises(BlockingIOError):
            silent.accept()  # the other 99 steps were kept and not sent
        with pytest.raises(UserError, match="1 records are lost"):
            worker.flush()


def test_a_taken_port_of_the_ui_is_named() -> None:
    for host in ("127.0.0.1", "0.0.0.0"):
        with socket.create_server((host, 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(UserError, match=rf"--port {port} .* in use\): give another --port"):
                build_ui_command(TrackingConfig(uri="sqlite:///m.db"), port=port)
    with pytest.raises(UserError, match="--port 70000 "):
        build_ui_command(TrackingConfig(uri="sqlite:///m.db"), port=70000)


class Server:
    """`mlflow server`, started with the command of `ui` and the host names of the cluster."""

    def __init__(self, database: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.command = build_ui_command(TrackingConfig(uri=database), port=self.port)
        self.command += ["--allowed-hosts", read_allowed_hosts()]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        assert self.process.stderr is not None
        assert any("Uvicorn running on" in line for line in self.process.stderr)

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()


def read_allowed_hosts() -> str:
    """Return the argument of --allowed-hosts in cluster.yaml, as the shell of the head reads it."""
    commands = yaml.safe_load((ROOT / "cluster.yaml").read_text())["head_start_ray_commands"]
    (argument,) = re.findall(r'--allowed-hosts ("[^"]+")', " ".join(commands))
    return subprocess.check_output(["bash", "-c", f"echo {argument}"], text=True).strip()


@pytest.fixture(scope="module")
def server(database: str) -> Iterator[Server]:
    server = Server(database)
    yield server
    server.kill()


def test_the_server_of_the_cluster_answers_to_its_names_and_refuses_others(server: Server) -> None:
    def get_status(host: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        connection.request(
            "GET", "/api/2.0/mlflow/experiments/get?experiment_id=0", headers={"Host": host}
        )
        with closing(connection):
            return connection.getresponse().status

    names = [
        "head:5000",
        "head",
        f"{socket.gethostname()}:5000",
        "localhost:5000",
        "127.0.0.1:5000",
    ]
    assert [get_status(host) for host in [*names, "10.0.0.7:5000"]] == [200] * 6
    assert [get_status(host) for host in ("evil.example", "head.evil.example:5000")] == [403, 403]
    # 127.1 is the same address by another name
    uri = f"http://127.1:{server.port}"
    with pytest.raises(UserError, match=rf"restart it with --allowed-hosts '127.1:{server.port},"):
        check_tracking(TrackingConfig(uri=uri, timeout_seconds=60))


def test_a_server_may_die_and_come_back(
    server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = TrackingConfig(
        uri=f"http://127.0.0.1:{server.port}", experiment="http", timeout_seconds=60
    )
    hasty = config.model_copy(update={"timeout_seconds": 1})
    check_tracking(config)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "weights.safetensors").write_bytes(b"abc")
    unsent = tmp_path / "mlflow_unsent.json"
    driver = open_job(config, tmp_path)
    driver.log_params({"optim.lr": 1e-4})
    worker = attach_run(config, driver.run_id, job_dir=str(tmp_path))
    for step in range(1, 11):
        worker.log_metrics(step, {"train/loss": 1 / step})
    log_step_10(worker, tmp_path / "adapter")

    server.kill()
    for step in range(11, 31):
        worker.log_metrics(step, {"train/loss": 1 / step})
        if step == 20:
            worker.log_checkpoint(
                20, tmp_path / "adapter", name="step-20", metrics={"b": 0.5}, files=True
            )
    worker = attach_run(
        hasty, driver.run_id, job_dir=str(tmp_path)
    )  # it died too, and replays from step 8
    for step in range(8, 31):
        worker.log_metrics(step, {"train/loss": 1 / step})
    worker.log_metrics(10, {"eval/loss": 0.5})
    worker.flush()
    with pytest.raises(UserError, match=str(unsent)):
        attach_run(hasty, driver.run_id, job_dir=str(tmp_path)).finish("FAILED")
    assert capfd.readouterr().err.count("accepts no requests") == 3  # once for each tracker
    shutil.copy(unsent, tmp_path / "copy.json")

    server.start()
    check_tracking(config)
    driver.finish("FINISHED")
    assert json.loads(unsent.read_text()) == {}
    shutil.copy(tmp_path / "copy.json", unsent)  # as if it had died between sending and clearing
    again = open_job(config, tmp_path)
    again.finish("FINISHED")
    assert again.run_id == driver.run_id
    direct = TrackingConfig(uri=server.command[5], experiment="http")
    assert history(direct, driver, "train/loss") == [(step, 1 / step) for step in range(1, 31)]
    assert history(direct, driver, "eval/loss") == [(10, 0.5)]
    run = stored(direct, driver)
    assert run.info.status == "FINISHED"
    assert sorted(output.step for output in run.outputs.model_outputs) == [10, 20]
    for output in run.outputs.model_outputs:
        files = MlflowClient(config.uri).list_logged_model_artifacts(output.model_id)
        assert [file.path for file in files] == ["weights.safetensors"]
