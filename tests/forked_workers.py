"""Ray workers that are forked from one process that has imported what they import.

A fit starts about ten worker processes. Each imports Ray; some import PyTorch, transformers and
PEFT: 35 CPU seconds in all. A forked worker differs from a worker of Ray only in that it has these
modules already. test_train took 600 s with Ray's workers and 190 s with forked ones.

Ray runs this file in place of its own `setup_worker.py`: see `fork_workers`. The first such process
starts the server, because the server must import Ray in an environment that Ray has made for a
worker: Ray reads its settings when it is imported.

`python tests/forked_workers.py run -m MODULE …` runs a module whose private Ray forks its workers.
"""

import fcntl
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace
from unittest import mock

FORKED = (sys.executable, __file__, "run", "-m")
"""Start of a command whose private Ray forks its workers; the module and its arguments follow."""
_MODULES = ("ray.data", "ray.train.torch", "ray.tune", "app.jobs.worker", "app.jobs.warm_trials")


def fork_workers() -> None:
    """Let the Rays that this process starts fork their workers."""
    from ray._private import ray_constants

    ray_constants.SETUP_WORKER_FILENAME = __file__


def _start_worker() -> None:
    """Let the server fork a worker with this process's arguments; return when the worker ends."""
    path = f"/tmp/ray-forks-{os.environ['RAY_RAYLET_PID']}"
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(path):
            _start_server(path)
    request = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]).encode()
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        socket.send_fds(server, [len(request).to_bytes(4, "big")], [0, 1, 2])
        server.sendall(request)
        server.recv(1)  # returns when the worker's end of the socket is closed


def _start_server(path: str) -> None:
    command = [sys.executable, __file__, "serve", path]
    server = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE)
    assert server.stdout is not None
    if not server.stdout.read(1):  # the server writes when it listens
        raise SystemExit(f"the server of forked workers ended with {server.wait()}")


def _serve(path: str) -> None:
    """Fork a worker for each connection to the socket at `path`, as long as the raylet lives."""
    _import_modules()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the workers
    raylet = f"/proc/{os.environ['RAY_RAYLET_PID']}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{path}.new")
        listener.listen(64)
        listener.settimeout(0.5)
        os.rename(f"{path}.new", path)
        os.write(1, b".")
        while os.path.exists(raylet):
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            if os.fork() == 0:
                listener.close()
                _become_worker(connection)
            connection.close()
    os.unlink(path)
    os.unlink(f"{path}.lock")


def _import_modules() -> None:
    """Import everything, without a use of Ray's random generator.

    All children of a process that has used it would draw the same ids: two tasks would be one. Ray
    draws an id for each actor class that a module defines.
    """
    import ray.actor  # not by the processes that only ask

    class_id = ray.actor.ActorClassID
    drawn = SimpleNamespace(from_random=lambda: class_id(os.urandom(class_id.size())))
    with mock.patch.object(ray.actor, "ActorClassID", drawn):
        for module in _MODULES:
            importlib.import_module(module)


def _become_worker(connection: socket.socket) -> None:
    """Run Ray's worker with the streams, environment and arguments of the process that asked.

    The connection stays open as long as this process lives.
    """
    import numpy as np

    np.random.seed()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgrp()
    connection.settimeout(None)
    length, streams, _, _ = socket.recv_fds(connection, 4, 3)
    request = b""
    while len(request) < int.from_bytes(length, "big"):
        request += connection.recv(1 << 16)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    arguments, environment, folder = json.loads(request)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)

    # As Ray's own setup_worker.py does: two arguments are for it, the others for the worker.
    runtime_env = "--serialized-runtime-env-context="
    for argument in arguments:
        if argument.startswith(runtime_env):
            os.environ.update(
                json.loads(argument.removeprefix(runtime_env) or "{}").get("env_vars", {})
            )
    sys.argv = [name for name in arguments if not name.startswith((runtime_env, "--language="))]
    sys.path[0] = os.path.dirname(sys.argv[0])
    runpy.run_path(sys.argv[0], run_name="__main__")
    os._exit(0)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        _serve(sys.argv[2])
    elif sys.argv[1] == "run":
        fork_workers()
        sys.argv = sys.argv[3:]
        sys.path[0] = os.getcwd()
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        _start_worker()
