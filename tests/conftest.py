"""The Ray that all tests of a process share, and the order of the test files."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

# Two threads of one test on two busy cores wait for each other: 41 tests took 324 s instead of 10.
os.environ["OMP_NUM_THREADS"] = "1"
# as `python -m app ui` sets it: an MLflow server starts fewer processes
os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"

import forked_workers
import hypothesis
import pytest
import torch

from app.jobs.cluster import ConnectedRay, connect_ray

forked_workers.fork_workers()

hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

collect_ignore = [] if torch.cuda.is_available() else ["test_gpu.py"]


@pytest.fixture(scope="session")
def ray_local() -> Iterator[ConnectedRay]:
    """A private Ray with 4 logical CPUs, started as by the command line."""
    with pytest.MonkeyPatch.context() as environment:
        # Workers unpickle functions of the test modules by their names.
        environment.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        with connect_ray(num_cpus=4) as cluster:
            yield cluster


@pytest.fixture
def free_port() -> int:
    """A free loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


SLOW = (
    "test_train.py",
    "test_launch.py",
    "test_search_campaign.py",
    "test_stop.py",
    "test_tracking.py",
    "test_promote.py",
    "test_search.py",
)
"""Files that take longest. They start first, so that no process ends long after the others."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slow files first, and then those that use Ray.

    In a process that had not used its Ray for eight minutes, a call of Ray's client once waited for
    ever, on a busy machine.
    """
    rank = {name: i for i, name in enumerate(SLOW)}
    on_ray = {item.path for item in items if "ray_local" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: rank.get(item.path.name, len(SLOW) + (item.path not in on_ray)))


class _FileNames:
    """Print the name of each test file that starts, so that a test that hangs can be found."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._seen: set[str] = set()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        name = nodeid.partition("::")[0]
        if name not in self._seen:
            self._seen.add(name)
            self._config.get_terminal_writer().line(f"\n{name}")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # not in the processes of pytest-xdist
        config.pluginmanager.register(_FileNames(config))
