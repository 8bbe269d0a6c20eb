"""MLflow server or database of a job: check it, and open the run of the job as a Tracker."""

import fcntl
import os
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from app.errors import UserError
from app.free_port import require_free_port
from app.storage import join_uri, write_json
from app.tracking.config import (
    TrackingConfig,
    get_artifact_folder,
    get_sqlite_file,
    resolve_uri,
)
from app.tracking.mlflow_client import describe_error, make_client, read_run_id
from app.tracking.mlflow_run import MlflowRun
from app.tracking.tracker import NullTracker, Status, Tracker
from data_pipeline.masking import mask_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient

SERVERS = ("http", "https")
DATABASES = ("postgresql", "mysql", "mssql")


def check_tracking(config: TrackingConfig) -> None:
    """Connect to the server, or create the database (8 s), and create the experiment.

    Call it once, before a job starts workers or trials. Raises UserError, at most
    `timeout_seconds` after MLflow is imported, if the URI cannot be used.
    """
    if config.uri is None:
        return
    uri = mask_secrets(config.uri)

    # kind of URI: several processes must be able to use it
    is_file = config.uri.startswith("sqlite:///") and ":memory:" not in config.uri
    if not is_file and _get_scheme(config) not in (*SERVERS, *DATABASES):
        raise UserError(
            f"tracking.uri={uri!r} is neither a tracking server nor a database (MLflow's file "
            "store is not supported): use sqlite:///folder/mlflow.db, http://host:port, or null "
            "to track nothing"
        )

    # connection
    try:
        client = _connect(config)
    except Exception as error:
        fix = "start the server or correct the URI, or set tracking.uri=null to track nothing"
        if "Invalid Host header" in str(error):
            host = urlsplit(config.uri).netloc.rpartition("@")[2]
            fix = f"the server refuses this host name; restart it with --allowed-hosts '{host},…'"
        raise UserError(
            f"tracking.uri={uri!r} cannot be used ({describe_error(error)}): {fix}"
        ) from error

    # experiment
    get_experiment_id(client, config)


def open_run(
    config: TrackingConfig,
    *,
    run_name: str,
    job_dir: str,
    parent_run_id: str | None = None,
    tags: Mapping[str, str] = {},
) -> Tracker:
    """Return the tracker of the job's one run, for the driver.

    Continue the run named in `<job_dir>/mlflow_run.json`, if it exists on this server. Otherwise
    create a run, as a child of `parent_run_id`.
    """
    if config.uri is None:
        return NullTracker()
    client = make_client(config.uri, config.timeout_seconds)
    run_file = join_uri(job_dir, "mlflow_run.json")
    run_id = read_run_id(job_dir)

    # continue or create
    if run_id is not None and _is_active(client, run_id):
        client.update_run(run_id, status="RUNNING")
    else:
        parent = {} if parent_run_id is None else {"mlflow.parentRunId": parent_run_id}
        experiment_id = get_experiment_id(client, config)
        run_id = client.create_run(experiment_id, run_name=run_name, tags=parent).info.run_id
        write_json(run_file, {"run_id": run_id, "tracking_uri": mask_secrets(config.uri)})

    tracker = MlflowRun(
        config.uri, run_id, timeout_seconds=config.timeout_seconds, job_dir=job_dir, is_driver=True
    )
    tracker.set_tags(tags)
    return tracker


def reopen_run(config: TrackingConfig, *, job_dir: str) -> Tracker | None:
    """Return the tracker of the job's run, whose status stays as it is; None if there is no run.

    Its last call is `flush`.
    """
    if config.uri is None:
        return NullTracker()
    run_id = read_run_id(job_dir)
    client = make_client(config.uri, config.timeout_seconds)
    if run_id is None or not _is_active(client, run_id):
        return None
    return attach_run(config, run_id, job_dir=job_dir)


def attach_run(
    config: TrackingConfig, run_id: str | None, *, job_dir: str | None = None
) -> Tracker:
    """Return the tracker of the driver's run, for a worker.

    It sends no request, so that workers can restart while the server is down. Unsent records are
    kept in `job_dir` when the worker ends; without `job_dir` they are lost.
    """
    if config.uri is None or run_id is None:
        return NullTracker()
    return MlflowRun(
        config.uri, run_id, timeout_seconds=config.timeout_seconds, job_dir=job_dir, is_driver=False
    )


def kill_running_children(
    config: TrackingConfig, parent_run_id: str | None, tags: Mapping[str, str]
) -> None:
    """Set the status KILLED and the tags on those children of a run that are RUNNING."""
    if config.uri is None or parent_run_id is None:
        return
    client = make_client(config.uri, config.timeout_seconds)
    experiment_id = client.get_run(parent_run_id).info.experiment_id
    running = f"tags.mlflow.parentRunId = '{parent_run_id}' AND attributes.status = 'RUNNING'"
    for run in client.search_runs([experiment_id], running):
        client.set_terminated(run.info.run_id, "KILLED")
        for name, value in tags.items():
            client.set_tag(run.info.run_id, name, value)


def get_final_status(error: BaseException | None) -> Status:
    """Return the MLflow status of a job that ended with `error`.

    The handlers of SIGTERM and SIGINT must raise KeyboardInterrupt.
    """
    if error is None:
        return "FINISHED"
    return "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"


def build_ui_command(config: TrackingConfig, *, port: int = 5000) -> list[str]:
    """Return the command that shows a database's runs on the loopback address.

    For a tracking server: return only its address. The command of a database other than sqlite
    reads the URI from the environment variable MLFLOW_BACKEND_STORE_URI. Raises UserError if
    nothing is tracked or the port is taken.
    """
    uri = resolve_uri(config).uri
    if uri is None:
        raise UserError("tracking.uri=null records nothing that a UI could show: set tracking.uri")
    if _get_scheme(config) in SERVERS:
        return [mask_secrets(uri)]

    require_free_port("127.0.0.1", port)
    command = [sys.executable, "-m", "mlflow", "server"]
    if _get_scheme(config) == "sqlite":
        command += ["--backend-store-uri", uri]
        command += ["--artifacts-destination", get_artifact_folder(uri)]
    return [*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]


def run_ui(config: TrackingConfig, *, port: int) -> None:
    """Replace this process by the MLflow UI, or print the address of a tracking server."""
    command = build_ui_command(config, port=port)
    is_server = len(command) == 1
    if not is_server:
        check_tracking(config)
    print(" ".join(command), flush=True)
    if not is_server:
        # jobs are of MLflow's language model judges: without them, it starts two processes less
        without_jobs = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        # not an argument: every user of this machine can read the arguments of a process
        uri = {"MLFLOW_BACKEND_STORE_URI": str(config.uri)}
        os.execve(command[0], command, {**without_jobs, **os.environ, **uri})


def _get_scheme(config: TrackingConfig) -> str:
    return str(config.uri).partition(":")[0].partition("+")[0]


def _connect(config: TrackingConfig) -> "MlflowClient":
    """Return a client, and raise the error of the server or database if it cannot be used.

    The check comes before MLflow's own requests, which MLflow would retry ten times.
    """
    uri = str(config.uri)

    # database
    if _get_scheme(config) == "sqlite":
        file = get_sqlite_file(uri)
        _check_sqlite(file, config.timeout_seconds)
        # Two processes that create the schema of one new file at the same time both fail.
        with open(f"{file}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
            return make_client(uri, config.timeout_seconds)
    if _get_scheme(config) in DATABASES:
        from sqlalchemy import create_engine

        _run_within(config.timeout_seconds, lambda: create_engine(uri).connect().close())

    # client: it creates the schema of a new database
    client = make_client(uri, config.timeout_seconds)

    # server
    if _get_scheme(config) in SERVERS:
        _run_within(config.timeout_seconds, lambda: client.search_experiments(max_results=1))
    return client


def _check_sqlite(file: str, timeout_seconds: int) -> None:
    """Raise the error of sqlite unless the file is a database, or is new, and is writable."""
    os.makedirs(os.path.dirname(file), exist_ok=True)
    import sqlite3  # 10 ms, not needed to parse a config

    with closing(sqlite3.connect(file, timeout=timeout_seconds)) as database:
        database.execute("BEGIN IMMEDIATE")


def _run_within(seconds: float, call: Callable[[], object]) -> None:
    """Run a call in a thread, and raise its error, or TimeoutError after `seconds`.

    Socket timeouts cover neither name resolution, nor several addresses, nor a server that sends
    its answer byte by byte.
    """
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


def get_experiment_id(client: "MlflowClient", config: TrackingConfig) -> str:
    """Return the id of the experiment, which is created if it does not exist.

    Raises UserError if the experiment was deleted.
    """
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(config.experiment)

    # create
    if experiment is None:
        # MLflow's default for a database is ./mlruns in the working directory of this process.
        is_sqlite = _get_scheme(config) == "sqlite"
        folder = get_artifact_folder(str(config.uri)) if is_sqlite else None
        try:
            return client.create_experiment(config.experiment, artifact_location=folder)
        except MlflowException:
            # Another job may have created it in the meantime.
            experiment = client.get_experiment_by_name(config.experiment)
            if experiment is None:
                raise

    if experiment.lifecycle_stage != "active":
        raise UserError(
            f"tracking.experiment={config.experiment!r} was deleted at "
            f"{mask_secrets(str(config.uri))}: restore it (`mlflow experiments restore`) or choose "
            "another name"
        )
    return experiment.experiment_id


def _is_active(client: "MlflowClient", run_id: str) -> bool:
    """Return True if the run exists on the server and is not deleted."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
