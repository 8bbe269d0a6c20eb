"""The one Ray that the tests share."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

# Two threads of one test on two busy cores wait for one another: 41 tests took 324 s instead of 10.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest

from app.cluster import ConnectedRay, connect


@pytest.fixture(scope="session")
def ray_local() -> Iterator[ConnectedRay]:
    """A private Ray with 4 logical CPUs, the same that the command line starts."""
    with pytest.MonkeyPatch.context() as environment:
        # Workers unpickle functions of the test modules by their names.
        environment.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        with connect(num_cpus=4) as cluster:
            yield cluster


@pytest.fixture
def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
