"""Clean the drawings of `prepare` on all CPUs of a Ray cluster.

This process reads the sources and writes the shards, so the nodes need no access to either.
"""

import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray
import ray.exceptions

from app.errors import UserError
from app.jobs.cluster import connect_ray
from data_pipeline.prepare.clean import Batch
from data_pipeline.sources.record import Record

# Each CPU has this many batches ahead, so that it never waits for this process.
_BATCHES_AHEAD = 3
# The number of CPUs is counted again after this many batches, because a cluster may grow.
_COUNT_BATCHES = 25


def map_on_ray(
    clean: Callable[[list[Record]], Batch], batches: Iterable[list[Record]]
) -> Iterator[Batch]:
    """Yield `clean(batch)` of each batch, in their order.

    Connects to Ray (see `connect_ray`) until the last batch. Ray repeats the tasks of a lost node.
    Raises UserError if the cluster cannot be joined or has no CPU, or if a task was killed.
    """
    task: Any = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(_clean)
    running: deque[Any] = deque()
    with connect_ray() as cluster:
        sent_clean = ray.put(clean)
        try:
            for number, batch in enumerate(batches):
                if number % _COUNT_BATCHES == 0:
                    max_running = _BATCHES_AHEAD * _count_cpus(cluster.address)
                running.append(task.remote(sent_clean, pickle.dumps(batch)))
                if len(running) > max_running:
                    yield ray.get(running.popleft())
            while running:
                yield ray.get(running.popleft())
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"a Ray task that cleans drawings was lost ({reason}): "
                "give the nodes more memory, or unset RAY_ADDRESS to clean on this machine"
            ) from error


def _clean(clean: Callable[[list[Record]], Batch], pickled: bytes) -> Batch:
    """Clean a batch. Ray itself pickles each record of a list alone, which is slow."""
    return clean(pickle.loads(pickled))


def _count_cpus(address: str) -> int:
    num_cpus = int(ray.cluster_resources().get("CPU", 0))
    if not num_cpus:
        raise UserError(
            f"the Ray cluster at {address} has no CPU to clean drawings: "
            "start a node that has, or unset RAY_ADDRESS to clean on this machine"
        )
    return num_cpus
