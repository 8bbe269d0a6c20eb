"""Connection to Ray: join the cluster at RAY_ADDRESS, or start a private Ray on this machine."""

import contextlib
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions

from app.errors import UserError
from app.jobs.hub_token import pass_hub_token
from app.jobs.stop import keep_signal_handler, leave_ray

_CONNECT_SECONDS = 5

# Environment variables of Ray's processes. A value that the user has set takes precedence.
_DEFAULTS = {
    # At Ray's default of 2 s, every report of a worker blocks for 2 s.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # With the patch, every line that a worker prints appears twice.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # With structured logging, Ray Train logs every report and start at any logging level.
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
}
_PRIVATE_DEFAULTS = {
    # At Ray's default of 15, workers get little CPU time beside any other process.
    "RAY_worker_niceness": "0",
    # A trial has five processes. Ray repeatedly warns if they are more than the machine's CPUs.
    "RAY_worker_maximum_startup_concurrency": str(max(4, os.cpu_count() or 1)),
    # Without the watcher, each trainer has one process less.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # With few files, Ray's log monitor lists them ten times a second. So it does it twice a second.
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",
    # The same token for the life of this process: Ray's client reads it only once.
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}

# At a lower level Ray warns about each pruned trial and about tokens, which need no action.
_LOGGING = ray.LoggingConfig(log_level="ERROR")


@dataclass(frozen=True)
class ConnectedRay:
    """The Ray that this process is connected to."""

    address: str
    """host:port of the cluster."""
    dashboard: str
    """host:port of the dashboard; empty if there is none."""
    private: bool
    """True if `connect` started it and will stop it."""


@contextlib.contextmanager
def connect_ray(*, num_cpus: int | None = None) -> Iterator[ConnectedRay]:
    """Join the cluster at RAY_ADDRESS, or start a private Ray if the variable is empty or not set.

    The user or `ray job submit` sets RAY_ADDRESS. `num_cpus` is the number of logical CPUs of a
    private Ray (None: those of the machine); a cluster ignores it. Raises UserError if the cluster
    cannot be joined.

    SIGTERM and SIGINT keep the handlers that the caller has set.
    """
    private = is_ray_private()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_set_environment(_DEFAULTS))
        with keep_signal_handler():
            if private:
                # a short path: Ray's socket paths must stay under 108 bytes
                made = tempfile.TemporaryDirectory(
                    prefix="ray-", dir="/tmp", ignore_cleanup_errors=True
                )
                folder = stack.enter_context(made)
                stack.push(leave_ray)  # before the folder and the variables are removed
                context = _start_private_ray(num_cpus, folder)
            else:
                context = _join_cluster(os.environ["RAY_ADDRESS"])
                stack.push(leave_ray)
        info = context.address_info
        yield ConnectedRay(info["gcs_address"], info["webui_url"] or "", private)


def is_ray_private() -> bool:
    """Return whether `connect_ray` starts a private Ray: RAY_ADDRESS is not set, empty or local."""
    return os.environ.get("RAY_ADDRESS", "") in ("", "local")


def _join_cluster(address: str) -> Any:
    try:
        host, _, port = address.rpartition(":")
        if port.isdigit() and "://" not in address:
            # Check the port first: ray.init would try for a minute.
            target = (host.strip("[]"), int(port))
            socket.create_connection(target, timeout=_CONNECT_SECONDS).close()
        return ray.init(logging_config=_LOGGING, runtime_env=pass_hub_token())
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"cannot join the Ray cluster at RAY_ADDRESS={address} ({reason}): "
            "start it, correct the address, or unset RAY_ADDRESS to run on this machine alone"
        ) from error


def _start_private_ray(num_cpus: int | None, folder: str) -> Any:
    """Start a private Ray in `folder`.

    When Tune stops a trial, Ray Train's placement-group cleaner asks the dashboard whether the
    trial's controller is alive, and then releases the trial's workers. It finds the dashboard
    through RAY_ADDRESS, or through the only Ray on the machine. Every worker must therefore inherit
    RAY_ADDRESS, so this function chooses the port before the start.

    Ray listens on the host's address regardless of its settings, and admits clients that have the
    token. The token is set in the environment; otherwise Ray would write one to ~/.ray/auth_token.
    """
    port = _find_free_port()
    os.environ.update({"RAY_GCS_SERVER_PORT": str(port), "RAY_ADDRESS": f"127.0.0.1:{port}"})
    for name, value in _PRIVATE_DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        return ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            logging_config=_LOGGING,
            _temp_dir=folder,
        )
    except Exception as error:  # Ray raises no more specific one
        if "timed out during startup" not in str(error):
            raise
        raise UserError(
            "Ray did not start in time, because other programs keep this machine busy: stop some "
            "of them and start the command again, or set RAY_ADDRESS to a running cluster"
        ) from error


def _find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _set_environment(defaults: Mapping[str, str]) -> Iterator[None]:
    """Set those variables that are not set; at the end restore all variables of Ray."""
    before = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
    os.environ.update({**defaults, **before})
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith("RAY_")]:
            del os.environ[name]
        os.environ.update(before)
