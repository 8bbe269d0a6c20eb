"""Forked Ray workers draw ids and numbers of their own."""

import os

import numpy as np
import ray
from ray._raylet import WorkerID

from app.jobs.cluster import ConnectedRay


class Draws:
    def draw(self) -> tuple[int, str, float]:
        return os.getpid(), WorkerID.from_random().hex(), float(np.random.rand())


def test_no_two_workers_draw_the_same_ids_or_numbers(ray_local: ConnectedRay) -> None:
    actors = [ray.remote(Draws).options(num_cpus=0).remote() for _ in range(4)]
    drawn = ray.get([actor.draw.remote() for actor in actors])
    assert all(len(set(column)) == len(actors) for column in zip(*drawn, strict=True))
    for actor in actors:
        ray.kill(actor)
