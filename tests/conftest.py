"""The Ray that all tests share, and the printed time left."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

# Two threads of one test on two busy cores wait for each other: 41 tests took 324 s instead of 10.
os.environ["OMP_NUM_THREADS"] = "1"

import forked_workers
import hypothesis
import pytest
import torch
from ray._private import ray_constants

from app.jobs.cluster import ConnectedRay, connect_ray

hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

collect_ignore = [] if torch.cuda.is_available() else ["test_gpu.py"]


@pytest.fixture(scope="session")
def ray_local() -> Iterator[ConnectedRay]:
    """A private Ray with 4 logical CPUs, started as by the command line."""
    with pytest.MonkeyPatch.context() as environment:
        # Workers unpickle functions of the test modules by their names.
        environment.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        environment.setattr(ray_constants, "SETUP_WORKER_FILENAME", forked_workers.__file__)
        with connect_ray(num_cpus=4) as cluster:
            yield cluster


@pytest.fixture
def free_port() -> int:
    """A free loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


SECONDS = {
    "test_train.py": 250,
    "test_search.py": 60,
    "test_search_campaign.py": 90,
    "test_warm_trials.py": 30,
    "test_schedule.py": 40,
    "test_budget.py": 15,
    "test_earlier_trials.py": 10,
    "test_caption.py": 30,
    "test_campaign.py": 10,
    "test_campaign_report.py": 90,
    "test_run_tags.py": 20,
    "test_caption_on_ray.py": 75,
    "test_trained_model.py": 12,
    "test_tracking.py": 80,
    "test_launch.py": 100,
    "test_stop.py": 80,
    "test_masking.py": 15,
    "test_cli.py": 60,
    "test_stream.py": 40,
    "test_s3.py": 60,
    "test_doctor.py": 20,
    "test_cluster.py": 20,
    "test_loop.py": 15,
    "test_parallel.py": 35,
    "test_nonfinite.py": 25,
    "test_quantize.py": 20,
    "test_plan.py": 60,
    "test_memory_plan.py": 20,
    "test_serve.py": 60,
    "test_promote.py": 40,
    "test_facts.py": 22,
    "test_evaluate.py": 20,
    "test_initial_adapter.py": 8,
    "test_report.py": 8,
    "test_export.py": 20,
}
"""Seconds of the slow test files on 2 cores, for the printed estimate only."""


class _TimeLeft:
    """Print the name of each test file, and about how long the rest takes."""

    _now = ""

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._reporter = session.config.pluginmanager.getplugin("terminalreporter")
        self._files = list(dict.fromkeys(item.path.name for item in session.items))

    def pytest_runtest_logstart(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        name = Path(location[0]).name
        if name == self._now:
            return
        self._now, place = name, self._files.index(name)
        left = sum(SECONDS.get(file, 4) for file in self._files[place:])
        self._reporter.write_line(
            f"\n[{place + 1}/{len(self._files)}] {name} (about {left / 60:.1f} min left)"
        )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_TimeLeft())
