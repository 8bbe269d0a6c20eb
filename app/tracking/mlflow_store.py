"""What a job may record, and where: the run on MLflow that stands for it. Everyone sees only a Tracker."""

import os
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from app.errors import UserError
from app.storage import join_uri, mask_secrets, read_json, write_json
from app.tracking.config import TrackingConfig, resolve_uri
from app.tracking.mlflow_run import MlflowRun, describe_error, make_client
from app.tracking.tracker import NullTracker, Status, Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient

SERVERS = ("http", "https")
DATABASES = ("postgresql", "mysql", "mssql")


def check_tracking(config: TrackingConfig) -> None:
    """Reach the server, or make the database (8 s), and the experiment. Once, before anything fans out.

    Raises:
        UserError: in one sentence, at most `timeout_seconds` after MLflow is imported.
    """
    if config.uri is None:
        return
    uri = mask_secrets(config.uri)
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
            f"tracking.uri={uri!r} cannot be used ({describe_error(error)}): start the server or correct the URI, "
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
    client = make_client(config.uri, config.timeout_seconds)
    run_file = join_uri(job_dir, "mlflow_run.json")
    run_id = (read_json(run_file) or {}).get("run_id")
    if run_id is not None and _is_active(client, run_id):
        client.update_run(run_id, status="RUNNING")
    else:
        parent = {} if parent_run_id is None else {"mlflow.parentRunId": parent_run_id}
        experiment_id = _experiment_id(client, config)
        run_id = client.create_run(experiment_id, run_name=run_name, tags=parent).info.run_id
        write_json(run_file, {"run_id": run_id, "tracking_uri": mask_secrets(config.uri)})
    tracker = MlflowRun(
        config.uri, run_id, timeout_seconds=config.timeout_seconds, job_dir=job_dir, is_driver=True
    )
    tracker.set_tags(tags)
    return tracker


def attach_run(
    config: TrackingConfig, run_id: str | None, *, job_dir: str | None = None
) -> Tracker:
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
    uri = resolve_uri(config).uri
    if uri is None:
        raise UserError("tracking.uri=null records nothing that a UI could show: set tracking.uri")
    if _scheme(config) in SERVERS:
        return [mask_secrets(uri)]
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
        import sqlite3  # 10 ms, which a config need not cost

        with closing(sqlite3.connect(file, timeout=config.timeout_seconds)) as database:
            database.execute(
                "BEGIN IMMEDIATE"
            )  # fails unless this is a database, or new, and can be written
    elif _scheme(config) in DATABASES:
        from sqlalchemy import create_engine

        _within(config.timeout_seconds, lambda: create_engine(uri).connect().close())
    client = make_client(uri, config.timeout_seconds)  # makes the schema of a new database
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
            f"tracking.experiment={config.experiment!r} was deleted at {mask_secrets(str(config.uri))}: "
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
