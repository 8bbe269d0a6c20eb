"""Stop of a job by SIGTERM or SIGINT: keep the handlers that raise, and leave Ray at once."""

import contextlib
import signal
import threading
from collections.abc import Iterator

import psutil
import ray


def leave_ray(kind: type[BaseException] | None, *_: object) -> None:
    """Shut Ray down. After an interrupt, only kill a private Ray: the process ends at once."""
    if kind is not None and issubclass(kind, KeyboardInterrupt):
        kill_private_ray()
    else:
        ray.shutdown()


def kill_private_ray() -> None:
    """Kill the processes that this one has started, which are those of a private Ray.

    ray.shutdown takes 6 s and more for a private Ray, because it waits for each process. For a
    cluster it takes longer than the 3 s of `ray job stop`. A cluster stops the actors of a job when
    the job's process has ended.
    """
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


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
