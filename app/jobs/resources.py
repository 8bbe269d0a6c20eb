"""Resources of a job on Ray: whether they exist, and the wait until they are free.

Imports no training code: callers pass the resources of a job as numbers.
"""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
import ray.autoscaler.sdk

from app.errors import UserError

# Seconds that Ray may take to release the resources of the previous step (search, evaluation).
_RELEASE_SECONDS = 15
_PROGRESS_SECONDS = 10

Resources = Mapping[str, float]


def get_machine_resources() -> Resources:
    """Return the CPUs and GPUs that a private Ray finds on this machine."""
    import torch
    from ray._private.utils import get_num_cpus

    return {"CPU": float(get_num_cpus()), "GPU": float(torch.cuda.device_count())}


def list_node_resources() -> list[Resources]:
    """Return the total resources, free or in use, of each alive node of the connected cluster."""
    nodes: list[dict[str, Any]] = ray.nodes()
    return [node["Resources"] for node in nodes if node["Alive"]]


def count_fitting_workers(
    nodes: Sequence[Resources], cpus_per_worker: float, gpus_per_worker: float, cpus_per_task: float
) -> int:
    """Return how many training workers fit on the nodes beside one data task.

    The data task is placed on the node where it displaces the fewest workers.

    A share of a GPU is of one card: two workers of 0.4 fit on a card, and four on two cards.

    >>> count_fitting_workers([{"CPU": 4, "GPU": 1}, {"CPU": 2}], 1.0, 0.0, 0.5)
    5
    >>> count_fitting_workers([{"CPU": 4, "GPU": 1}, {"CPU": 2}], 1.0, 1.0, 0.5)
    1
    >>> count_fitting_workers([{"CPU": 8, "GPU": 2}], 1.0, 0.4, 0.5)
    4
    """

    def count(cpus: float, gpus: float) -> int:
        by_cpus = math.floor(cpus / cpus_per_worker + 1e-6)
        if not gpus_per_worker:
            return by_cpus
        cards, rest = divmod(gpus + 1e-6, 1)
        by_gpus = sum(
            math.floor(number / gpus_per_worker + 1e-6) * times
            for number, times in ((1.0, int(cards)), (rest, 1))
        )
        return min(by_cpus, by_gpus)

    sizes = [(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes]
    displaced = [
        count(cpus, gpus) - count(cpus - cpus_per_task, gpus)
        for cpus, gpus in sizes
        if cpus >= cpus_per_task
    ]
    return sum(count(*size) for size in sizes) - min(displaced) if displaced else 0


def count_concurrent_trials(
    workers_per_trial: int, cpus_per_worker: float, gpus_per_worker: float, cpus_per_task: float
) -> tuple[int, str]:
    """Return how many trials run at once on the free resources of the cluster, and why.

    Each trial has room for its workers and for one data task, so that no trial waits for resources
    that another one holds. At least one trial runs: `require_resources` has waited for its room.
    """
    # the data task of a trial, as a part of each of its workers
    cpus = cpus_per_worker + cpus_per_task / workers_per_trial
    free: Resources = ray.available_resources()
    by_nodes = count_fitting_workers(list_node_resources(), cpus, gpus_per_worker, 0.0)
    by_free = count_fitting_workers([free], cpus, gpus_per_worker, 0.0)
    gpus = f" and {workers_per_trial * gpus_per_worker:g} GPU" if gpus_per_worker else ""
    trial = f"{cpus * workers_per_trial:g} CPU{gpus}"
    reason = f"each needs {trial} of {free.get('CPU', 0):g} CPU and {free.get('GPU', 0):g} GPU free"
    return max(1, min(by_nodes, by_free) // workers_per_trial), reason


def describe_shortage(
    nodes: Sequence[Resources],
    num_workers: int,
    cpus_per_worker: float,
    gpus_per_worker: float,
    cpus_per_task: float,
    workers_per_trial: int | None = None,
) -> str | None:
    """Return None if the workers and one data task fit on the nodes, otherwise one sentence.

    The sentence names the requested resources, the existing ones and the settings to change. A job
    without room for a data task would deadlock. `workers_per_trial` is set for a search, which runs
    fewer trials at the same time instead of smaller ones.
    """
    max_workers = count_fitting_workers(nodes, cpus_per_worker, gpus_per_worker, cpus_per_task)
    if max_workers >= num_workers:
        return None

    # find the largest cpus_per_worker that fits
    smaller = (n / 100 for n in range(math.ceil(cpus_per_worker * 100) - 1, 0, -1))
    fitting_cpus = next(
        (
            c
            for c in smaller
            if count_fitting_workers(nodes, c, gpus_per_worker, cpus_per_task) >= num_workers
        ),
        None,
    )

    # name the fixes
    fixes = []
    if max_workers:
        fixes.append(_name_fewer_workers(max_workers, workers_per_trial))
    if fitting_cpus:
        fixes.append(f"scaling.cpus_per_worker={fitting_cpus}")
    if not fixes and gpus_per_worker:
        fixes.append("scaling.use_gpu=false")
    if not (max_workers or fitting_cpus) and cpus_per_task:
        fixes.append("a smaller data.cpus_per_task")

    cpus, gpus = (sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU"))
    worker = f"{cpus_per_worker:g} CPU{f' and {gpus_per_worker:g} GPU' if gpus_per_worker else ''}"
    task = f" and a data task of {cpus_per_task:g} CPU" if cpus_per_task else ""
    return (
        f"{cpus:g} CPU and {gpus:g} GPU cannot hold {num_workers} training workers of {worker} "
        f"each{task}; set {' or '.join(fixes)}"
    )


def _name_fewer_workers(max_workers: int, workers_per_trial: int | None) -> str:
    """Return the settings with which a job, or a search, has at most this number of workers."""
    if workers_per_trial is None:
        return f"scaling.num_workers={max_workers}"
    if max_workers >= workers_per_trial:
        return f"search.max_concurrent={max_workers // workers_per_trial}"
    return f"search.max_concurrent=1 search.workers_per_trial={max_workers}"


def require_resources(
    num_workers: int,
    cpus_per_worker: float,
    gpus_per_worker: float,
    cpus_per_task: float,
    wait_seconds: int,
    workers_per_trial: int | None = None,
) -> None:
    """Wait until the connected cluster has room for the workers and one data task.

    If the nodes are too few or too small, request the resources from the cluster's autoscaler and
    wait up to `wait_seconds`. If other work uses the resources, wait for the same time, and for at
    least the seconds in which a finished search releases its workers. Raises UserError when the
    time is over.
    """
    needs = (num_workers, cpus_per_worker, gpus_per_worker, cpus_per_task)
    shortage = describe_shortage(list_node_resources(), *needs, workers_per_trial)
    deadline = time.monotonic() + max(wait_seconds, 0 if shortage else _RELEASE_SECONDS)

    # request nodes
    requested = bool(shortage and wait_seconds)
    if requested:
        worker = {"CPU": cpus_per_worker} | ({"GPU": gpus_per_worker} if gpus_per_worker else {})
        bundles = [worker] * num_workers + [{"CPU": cpus_per_task}]
        ray.autoscaler.sdk.request_resources(bundles=bundles)

    # wait
    next_print = math.inf
    try:
        while problem := (
            describe_shortage(list_node_resources(), *needs, workers_per_trial)
            or _describe_busy(*needs)
        ):
            left = deadline - time.monotonic()
            if left <= 0:
                raise UserError(f"the cluster has no room: {problem}")
            if left <= next_print:
                print(
                    f"waiting for room for {num_workers} training workers, at most {left:.0f} s",
                    flush=True,
                )
                next_print = left - _PROGRESS_SECONDS
            time.sleep(1)
    finally:
        if requested:  # otherwise the autoscaler would keep the nodes for ever
            ray.autoscaler.sdk.request_resources(bundles=[])


def _describe_busy(num_workers: int, *size: Any) -> str | None:
    """Return one sentence if the free resources are too few, otherwise None.

    Ray reports free resources only as a sum over the nodes. The answer is exact for one node. With
    several nodes it may be None although no single node has room for a worker.
    """
    free: Resources = ray.available_resources()
    if count_fitting_workers([free], *size) >= num_workers:
        return None
    return (
        f"other work leaves only {free.get('CPU', 0):g} CPU and {free.get('GPU', 0):g} GPU free; "
        "let it end, or wait longer with scaling.wait_seconds"
    )
