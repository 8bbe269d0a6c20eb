"""Stop of a job by SIGTERM or SIGINT: keep the handlers that raise, and leave Ray at once."""

import contextlib
import functools
import signal
import threading
from collections.abc import Iterator

import psutil
import ray


def leave_ray(kind: type[BaseException] | None, *_: object) -> None:
    """Shut Ray down; at once if the process was interrupted."""
    if kind is not None and issubclass(kind, KeyboardInterrupt):
        stop_ray_at_once()
    else:
        ray.shutdown()


@functools.cache  # once: ray.shutdown would wait for the killed processes
def stop_ray_at_once() -> None:
    """Kill the processes of a private Ray, or leave a cluster, which then stops this job's actors.

    ray.shutdown takes 6 s and more for a private Ray: it waits for each process.
    """
    processes = psutil.Process().children(recursive=True)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    if not processes:
        ray.shutdown()


@contextlib.contextmanager
def keep_signal_handler() -> Iterator[None]:
    """Restore the handler of SIGTERM, which ray.init replaces by one that raises SystemExit."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as stop:  # Ray's handler was called
        raise KeyboardInterrupt(stop.code) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
