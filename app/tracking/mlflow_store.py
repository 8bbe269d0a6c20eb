"""What a job may record, and where: the run on MLflow that stands for it. Everyone sees only a Tracker."""

import os
import sqlite3
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from app.errors import UserError
from app.storage import join, mask, read_json, write_json
from app.tracking.mlflow_run import MlflowRun, connect, reason

if TYPE_CHECKING:
    from mlflow import MlflowClient

Status = Literal["FINISHED", "FAILED", "KILLED"]
SERVERS = ("http", "https")
DATABASES = ("postgresql", "mysql", "mssql")


class TrackingConfig(BaseModel):
    """Section `tracking`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str | None = Field(
        "sqlite:///outputs/mlflow.db",
        description="MLflow tracking URI (sqlite:///file.db, http://host:port, …); null: track nothing",
    )
    experiment: str = Field("svgscribe", min_length=1, description="MLflow experiment")
    timeout_seconds: Annotated[int, Field(ge=1, le=600)] = Field(
        10,
        description="longest wait for the tracking server before the job says that it is unreachable",
    )


class Tracker(Protocol):
    """The record of one run. Nothing but `flush` and `finish` raises while the server is away, and nothing
    waits for it longer than `timeout_seconds`: what it misses is kept, in order, and sent by a later call."""

    @property
    def run_id(self) -> str | None:
        """None: nothing is tracked."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """The resolved config, flat, with dotted keys. Credentials in URIs are masked, long values cut; a
        value that differs from the run's first becomes the tag `resumed.<key>`."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Labels of the run, masked and cut like params, and replaced when set again."""

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """One request. The steps of each metric only go up: one that the run has already is skipped."""

    def log_dataset(
        self, name: str, *, digest: str, num_rows: int, context: str, source: str
    ) -> None:
        """Data that the run read; `context` says what for: "training", "validation"."""

    def log_checkpoint(
        self, step: int, folder: Path, *, name: str, metrics: Mapping[str, float], files: bool
    ) -> None:
        """A model that the run made at this step; with `files`, the content of its folder too.

        Call it before anyone can resume from the checkpoint: unsent records are put into the job's folder
        here. (name, step) is logged once, however often it is called.
        """

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """A file, put into a folder of the run's artifacts."""

    def log_text(self, text: str, file: str) -> None:
        """Text as a file of the run, credentials in URIs masked."""

    def flush(self) -> None:
        """A worker's last call: send the rest, or leave it in the job's folder for the driver's `finish`.

        Raises:
            UserError: there is a rest, and no folder.
        """

    def finish(self, status: Status) -> None:
        """The driver's last call: send the rest, and what workers left; close the run.

        Raises:
            UserError: the server did not take it all within `timeout_seconds`.
        """


class NullTracker:
    """Tracks nothing."""

    run_id: str | None = None

    def log_params(self, params: Mapping[str, Any]) -> None: ...
    def set_tags(self, tags: Mapping[str, str]) -> None: ...
    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def log_dataset(
        self, name: str, *, digest: str, num_rows: int, context: str, source: str
    ) -> None: ...
    def log_checkpoint(
        self, step: int, folder: Path, *, name: str, metrics: Mapping[str, float], files: bool
    ) -> None: ...
    def log_artifact(self, path: Path, folder: str | None = None) -> None: ...
    def log_text(self, text: str, file: str) -> None: ...
    def flush(self) -> None: ...
    def finish(self, status: Status) -> None: ...


def resolve(config: TrackingConfig) -> TrackingConfig:
    """A relative sqlite path made absolute, so that it means the same file to Ray's workers."""
    if config.uri is None or not config.uri.startswith("sqlite:///"):
        return config
    return config.model_copy(
        update={"uri": "sqlite:///" + os.path.abspath(config.uri[len("sqlite:///") :])}
    )


def check(config: TrackingConfig) -> None:
    """Reach the server, or make the database (8 s), and the experiment. Once, before anything fans out.

    Raises:
        UserError: in one sentence, at most `timeout_seconds` after MLflow is imported.
    """
    if config.uri is None:
        return
    uri = mask(config.uri)
    is_file = (
        config.uri.startswith("sqlite:///") and ":memory:" not in config.uri
    )  # shared by processes
    if not is_file and _scheme(config) not in (*SERVERS, *DATABASES):
        raise UserError(
            f"tracking.uri={uri!r} is neither a tracking server nor a database (MLflow's file store is not "
            "supported): use sqlite:///folder/mlflow.db, http://host:port, or null to track nothing"
        )
    try:
        client = _reach(config)
    except Exception as error:
        raise UserError(
            f"tracking.uri={uri!r} cannot be used ({reason(error)}): start the server or correct the URI, "
            "or set tracking.uri=null to track nothing"
        ) from error
    _experiment_id(client, config)


def open_run(
    config: TrackingConfig,
    *,
    run_name: str,
    job_dir: str,
    parent_run_id: str | None = None,
    tags: Mapping[str, str] = {},
) -> Tracker:
    """The job's one run, for the driver: the one named in `<job_dir>/mlflow_run.json` goes on, if it exists
    on this server; otherwise a new one, a child of `parent_run_id`."""
    if config.uri is None:
        return NullTracker()
    client = connect(config.uri, config.timeout_seconds)
    run_file = join(job_dir, "mlflow_run.json")
    run_id = (read_json(run_file) or {}).get("run_id")
    if run_id is not None and _is_active(client, run_id):
        client.update_run(run_id, status="RUNNING")
    else:
        parent = {} if parent_run_id is None else {"mlflow.parentRunId": parent_run_id}
        experiment_id = _experiment_id(client, config)
        run_id = client.create_run(experiment_id, run_name=run_name, tags=parent).info.run_id
        write_json(run_file, {"run_id": run_id, "tracking_uri": mask(config.uri)})
    tracker = MlflowRun(
        config.uri, run_id, timeout_seconds=config.timeout_seconds, job_dir=job_dir, is_driver=True
    )
    tracker.set_tags(tags)
    return tracker


def attach(config: TrackingConfig, run_id: str | None, *, job_dir: str | None = None) -> Tracker:
    """The driver's run, for a worker. Asks the server nothing, so that workers restart while it is away.

    `job_dir`: where records that the server missed outlive the worker; without it, they do not.
    """
    if config.uri is None or run_id is None:
        return NullTracker()
    return MlflowRun(
        config.uri, run_id, timeout_seconds=config.timeout_seconds, job_dir=job_dir, is_driver=False
    )


def final_status(error: BaseException | None) -> Status:
    """How a job ended. Let SIGTERM raise too: `signal.signal(SIGTERM, signal.default_int_handler)`."""
    if error is None:
        return "FINISHED"
    return "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"


def ui_command(config: TrackingConfig, *, port: int = 5000) -> list[str]:
    """The command that shows a database's runs on loopback; for a tracking server, its address alone.

    Raises:
        UserError: nothing is tracked.
    """
    uri = resolve(config).uri
    if uri is None:
        raise UserError("tracking.uri=null records nothing that a UI could show: set tracking.uri")
    if _scheme(config) in SERVERS:
        return [mask(uri)]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    if _scheme(config) == "sqlite":
        command += ["--artifacts-destination", _artifact_folder(uri)]
    return [*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]


def _scheme(config: TrackingConfig) -> str:
    return str(config.uri).partition(":")[0].partition("+")[0]


def _sqlite_file(uri: str) -> str:
    return os.path.abspath(uri.removeprefix("sqlite:///").partition("?")[0])


def _artifact_folder(uri: str) -> str:
    return str(Path(_sqlite_file(uri)).with_name("mlartifacts"))


def _reach(config: TrackingConfig) -> "MlflowClient":
    """Raises what the server or database has against us, before MLflow would try it ten times over."""
    uri = str(config.uri)
    if _scheme(config) == "sqlite":
        file = _sqlite_file(uri)
        os.makedirs(os.path.dirname(file), exist_ok=True)
        with closing(sqlite3.connect(file, timeout=config.timeout_seconds)) as database:
            database.execute(
                "BEGIN IMMEDIATE"
            )  # fails unless this is a database, or new, and can be written
    elif _scheme(config) in DATABASES:
        from sqlalchemy import create_engine

        _within(config.timeout_seconds, lambda: create_engine(uri).connect().close())
    client = connect(uri, config.timeout_seconds)  # makes the schema of a new database
    if _scheme(config) in SERVERS:
        _within(config.timeout_seconds, lambda: client.search_experiments(max_results=1))
    return client


def _within(seconds: float, call: Callable[[], object]) -> None:
    """Timeouts of sockets do not cover name look-up, several addresses or a server that trickles."""
    outcome: list[Exception | None] = []

    def run() -> None:
        try:
            call()
            outcome.append(None)
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    error = outcome[0] if outcome else TimeoutError(f"no answer within {seconds} s")
    if error is not None:
        raise error


def _experiment_id(client: "MlflowClient", config: TrackingConfig) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(config.experiment)
    if experiment is None:
        # MLflow's default for a database is ./mlruns of whoever comes first
        folder = _artifact_folder(str(config.uri)) if _scheme(config) == "sqlite" else None
        try:
            return client.create_experiment(config.experiment, artifact_location=folder)
        except MlflowException:  # another job was faster, unless this raises again
            experiment = client.get_experiment_by_name(config.experiment)
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        raise UserError(
            f"tracking.experiment={config.experiment!r} was deleted at {mask(str(config.uri))}: "
            "restore it (`mlflow experiments restore`) or choose another name"
        )
    return experiment.experiment_id


def _is_active(client: "MlflowClient", run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
