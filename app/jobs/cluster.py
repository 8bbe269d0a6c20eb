"""How the command line reaches Ray: the cluster it is told of, or a private one on this machine.

Knows nothing of training; what a job needs is handed to `require_resources` as numbers.
"""

import contextlib
import math
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.autoscaler.sdk
import ray.exceptions

from app.errors import UserError

# Seconds that Ray may take to hand back what the step before (a search, an evaluation) held.
_RELEASE_SECONDS = 15
_CONNECT_SECONDS = 5
_PROGRESS_SECONDS = 10

# What Ray's processes inherit; a value that the user has set stays.
_DEFAULTS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # at Ray's 2 s, every report of a worker blocks as long
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # otherwise every line that a worker prints comes twice
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",  # otherwise Train logs every report and start,
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",  # whatever the logging level
}
_PRIVATE_DEFAULTS = {
    "RAY_worker_niceness": "0",  # at Ray's 15, workers starve beside any other process
    # A trial is five processes, which Ray, counting CPUs, warns of again and again on a small machine.
    "RAY_worker_maximum_startup_concurrency": str(max(4, os.cpu_count() or 1)),
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process less for each trainer
    "RAY_AUTH_TOKEN": secrets.token_hex(32),  # one per process: Ray's client reads it once
}

# In every process of the job: Ray warns of each pruned trial, and of tokens that ask nothing of the user.
_LOGGING = ray.LoggingConfig(log_level="ERROR")


@dataclass(frozen=True)
class ConnectedRay:
    """`address` of the cluster and of its `dashboard` (host:port); `private`: started and stopped by us."""

    address: str
    dashboard: str
    private: bool


@contextlib.contextmanager
def connect(*, num_cpus: int | None = None) -> Iterator[ConnectedRay]:
    """Join the cluster at RAY_ADDRESS (set by hand or by `ray job submit`), else start a private Ray.

    `num_cpus` is the number of logical CPUs of a private Ray (None: the machine's); a cluster has its own.
    Raises UserError when RAY_ADDRESS names a cluster that cannot be joined.
    """
    address = os.environ.get("RAY_ADDRESS", "local")
    private = address == "local"
    with contextlib.ExitStack() as stack:
        stack.enter_context(_environment(_DEFAULTS))
        if private:
            # short: Ray's socket paths must stay under 108 bytes
            folder = tempfile.TemporaryDirectory(
                prefix="ray-", dir="/tmp", ignore_cleanup_errors=True
            )
            context = _start(num_cpus, stack.enter_context(folder))
        else:
            context = _join(address)
        stack.callback(ray.shutdown)  # before the folder and the variables go
        info = context.address_info
        yield ConnectedRay(info["gcs_address"], info["webui_url"] or "", private)


def _join(address: str) -> Any:
    try:
        host, _, port = address.rpartition(":")
        if port.isdigit() and "://" not in address:  # Ray itself would try for a minute
            socket.create_connection(
                (host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS
            ).close()
        return ray.init(logging_config=_LOGGING)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"cannot join the Ray cluster at RAY_ADDRESS={address} ({reason}): "
            "start it, correct the address, or unset RAY_ADDRESS to run on this machine alone"
        ) from error


def _start(num_cpus: int | None, folder: str) -> Any:
    """A Ray of our own, with what nested Tune trials need to give their workers back.

    When Tune stops a trial, Train's placement-group cleaner asks the dashboard whether the trial's
    controller still lives. It finds the dashboard through RAY_ADDRESS, or through the only Ray on the
    machine; every worker must therefore inherit RAY_ADDRESS, so the port is chosen before the start.
    Ray listens on the host's address whatever it is told, and lets in who holds the token; ours lives
    in the environment, where Ray would leave one in ~/.ray/auth_token.
    """
    port = _free_port()
    os.environ.update({"RAY_GCS_SERVER_PORT": str(port), "RAY_ADDRESS": f"127.0.0.1:{port}"})
    for name, value in _PRIVATE_DEFAULTS.items():
        os.environ.setdefault(name, value)
    return ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        logging_config=_LOGGING,
        _temp_dir=folder,
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _environment(defaults: Mapping[str, str]) -> Iterator[None]:
    """Set the variables that are not set, and leave Ray's variables as they were."""
    before = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
    os.environ.update({**defaults, **before})
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith("RAY_")]:
            del os.environ[name]
        os.environ.update(before)


Resources = Mapping[str, float]


def list_node_resources() -> list[Resources]:
    """What each living node of the connected cluster has, free or not."""
    found: list[dict[str, Any]] = ray.nodes()
    return [node["Resources"] for node in found if node["Alive"]]


def count_fitting_workers(
    on: Sequence[Resources], cpus_per_worker: float, use_gpu: bool, cpus_per_task: float
) -> int:
    """How many training workers fit on the nodes when a data task stands where it costs the fewest of them.

    >>> room([{"CPU": 4, "GPU": 1}, {"CPU": 2}], 1.0, False, 0.5)
    5
    >>> room([{"CPU": 4, "GPU": 1}, {"CPU": 2}], 1.0, True, 0.5)
    1
    """

    def fit(cpus: float, gpus: float) -> int:
        by_cpus = math.floor(cpus / cpus_per_worker + 1e-6)
        return min(by_cpus, int(gpus)) if use_gpu else by_cpus

    sizes = [(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in on]
    costs = [
        fit(cpus, gpus) - fit(cpus - cpus_per_task, gpus)
        for cpus, gpus in sizes
        if cpus >= cpus_per_task
    ]
    return sum(fit(*size) for size in sizes) - min(costs) if costs else 0


def describe_shortage(
    on: Sequence[Resources],
    num_workers: int,
    cpus_per_worker: float,
    use_gpu: bool,
    cpus_per_task: float,
) -> str | None:
    """None if the nodes can hold the workers beside one data task (without room for it, a deadlock).

    Otherwise one sentence: what is asked, what is there, what to change.
    """
    most = count_fitting_workers(on, cpus_per_worker, use_gpu, cpus_per_task)
    if most >= num_workers:
        return None
    smaller = (n / 100 for n in range(math.ceil(cpus_per_worker * 100) - 1, 0, -1))
    cpus = next(
        (c for c in smaller if count_fitting_workers(on, c, use_gpu, cpus_per_task) >= num_workers),
        None,
    )
    fixes = ["scaling.use_gpu=false", "a smaller data.cpus_per_task"]
    if most or cpus:
        fixes = [f"scaling.num_workers={most}"] * bool(most) + [
            f"scaling.cpus_per_worker={cpus}"
        ] * bool(cpus)
    has = {kind: sum(node.get(kind, 0.0) for node in on) for kind in ("CPU", "GPU")}
    worker = f"{cpus_per_worker:g} CPU{' and 1 GPU' if use_gpu else ''}"
    return (
        f"{has['CPU']:g} CPU and {has['GPU']:g} GPU cannot hold {num_workers} training workers of {worker} "
        f"each and a data task of {cpus_per_task:g} CPU; set {' or '.join(fixes)}"
    )


def require_resources(
    num_workers: int, cpus_per_worker: float, use_gpu: bool, cpus_per_task: float, wait_seconds: int
) -> None:
    """Return when the connected cluster has room for the workers and one data task.

    What it has not is asked of its autoscaler, which may take `wait_seconds`. What other work holds is
    waited for as long, and at least for the seconds that a search takes to give back what it held.
    Raises UserError when the time is over.
    """
    asked = (num_workers, cpus_per_worker, use_gpu, cpus_per_task)
    missing = describe_shortage(list_node_resources(), *asked)
    deadline = time.monotonic() + max(wait_seconds, 0 if missing else _RELEASE_SECONDS)
    if missing and wait_seconds:
        worker = {"CPU": cpus_per_worker} | ({"GPU": 1.0} if use_gpu else {})
        ray.autoscaler.sdk.request_resources(
            bundles=[worker] * num_workers + [{"CPU": cpus_per_task}]
        )
    say_at = math.inf
    try:
        while problem := describe_shortage(list_node_resources(), *asked) or _busy(*asked):
            left = deadline - time.monotonic()
            if left <= 0:
                raise UserError(f"the cluster has no room: {problem}")
            if left <= say_at:
                print(
                    f"waiting for {num_workers} training workers' room, at most {left:.0f} s",
                    flush=True,
                )
                say_at = left - _PROGRESS_SECONDS
            time.sleep(1)
    finally:
        if missing and wait_seconds:  # otherwise the nodes would be kept for ever
            ray.autoscaler.sdk.request_resources(bundles=[])


def _busy(num_workers: int, *size: Any) -> str | None:
    """Ray does not tell what is free by node: the sum is exact for one node, and too kind to more."""
    free: Resources = ray.available_resources()
    if count_fitting_workers([free], *size) >= num_workers:
        return None
    return (
        f"other work leaves only {free.get('CPU', 0):g} CPU and {free.get('GPU', 0):g} GPU free; "
        "let it end, or wait longer with scaling.wait_seconds"
    )
