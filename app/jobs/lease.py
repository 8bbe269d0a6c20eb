"""The lease of a job's folder: one process at a time trains in it.

Each process writes its own file into lease/ in the folder. The file says first that the process
claims the folder, then that it holds it. Among claims that are made at the same time, the lowest
token wins: the others withdraw, and the winner waits until they are gone. This needs no atomic
operation of the file system, only that a listing shows every file that was written before.

The holder renews its file. A file that is not renewed expires. Ages are differences of the file
system's own times, so that the clocks of two hosts do not matter.
"""

import contextlib
import getpass
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from types import FrameType
from typing import Any

import pyarrow.fs

from app.errors import UserError
from app.storage import join_uri, read_json, write_json
from data_pipeline.filesystem import open_filesystem

RENEW_SECONDS = 10.0
EXPIRE_SECONDS = 60.0
_POLL_SECONDS = 0.1
_READ_TRIES = 50
_LOSS_SIGNAL = signal.SIGUSR1


@contextlib.contextmanager
def hold_lease(job_dir: str) -> Iterator[None]:
    """Run a block while this process holds the lease of a job's folder.

    Raises UserError if another process holds it, or if this process loses it in the block. A loss
    interrupts the main thread.
    """
    lease = _Lease(job_dir)
    lease.acquire()
    stop = threading.Event()
    renewer = threading.Thread(target=lease.renew_until, args=(stop,), daemon=True)

    with _raise_on_loss():
        renewer.start()
        try:
            yield
            lease.require_held()
        except BaseException:
            lease.require_held()
            raise
        finally:
            stop.set()
            renewer.join()
            lease.release()


@contextlib.contextmanager
def _raise_on_loss() -> Iterator[None]:
    """Let the signal of a loss raise KeyboardInterrupt in the main thread, during a block.

    It is not SIGINT: the command must not take the loss for a stop by the user.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(_LOSS_SIGNAL, _interrupt)
    try:
        yield
    finally:
        signal.signal(_LOSS_SIGNAL, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt("the lease is lost")


class _Lease:
    """The file of this process in lease/."""

    def __init__(self, job_dir: str) -> None:
        self._job_dir, self._folder = job_dir, join_uri(job_dir, "lease")
        self._loss: str | None = None
        self._claim: dict[str, Any] = {
            "token": uuid.uuid4().hex,
            "user": _get_user(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "pid_namespace": _get_pid_namespace(),
            "since": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
            "held": False,
        }

    def acquire(self) -> None:
        """Write the file. Raises UserError if another process holds the lease or claims it too."""
        try:
            # claim
            self._write()
            while others := self._read_others():
                for other in others:
                    if other["held"] or other["token"] < self._claim["token"]:
                        raise UserError(self._describe(other))
                time.sleep(_POLL_SECONDS)
                self._write()

            # hold
            self._claim["held"] = True
            self._write()
        except OSError as error:
            self.release()
            reason = " ".join(str(error).split())
            raise UserError(
                f"cannot write into {self._job_dir} ({reason}): choose another train.output_dir"
            ) from error
        except BaseException:
            self.release()
            raise

    def renew_until(self, stop: threading.Event) -> None:
        """Renew the file until `stop` is set, or until the lease is lost."""
        renewed_at = time.time()
        while self._loss is None and not stop.wait(RENEW_SECONDS):
            with contextlib.suppress(OSError, UserError):  # the next turn tries again
                if read_json(self._locate(self._claim["token"])) is None:
                    self._loss = "another process has removed it"
                elif time.time() - renewed_at <= EXPIRE_SECONDS:
                    self._write()
                    renewed_at = time.time()

            if time.time() - renewed_at > EXPIRE_SECONDS:
                self._loss = f"it was not renewed for {EXPIRE_SECONDS:.0f} s"
        if self._loss is not None and signal.getsignal(_LOSS_SIGNAL) is _interrupt:
            os.kill(os.getpid(), _LOSS_SIGNAL)

    def require_held(self) -> None:
        """Raise UserError if the lease is lost."""
        if self._loss is not None:
            raise UserError(
                f"the job has lost its lease of {self._job_dir} ({self._loss}), so "
                "that another process may train there: start it again to continue from its newest "
                "checkpoint"
            )

    def release(self) -> None:
        """Delete the file."""
        self._delete(self._claim["token"])

    def _read_others(self) -> list[dict[str, Any]]:
        """Return the claims of other living processes, and delete the files of dead ones."""
        fs, path = open_filesystem(self._folder)
        files = fs.get_file_info(pyarrow.fs.FileSelector(path, allow_not_found=True))
        times = {
            info.base_name.removesuffix(".json"): info.mtime
            for info in files
            if info.base_name.endswith(".json")
        }
        now = times.pop(self._claim["token"], None)

        others = []
        for token, written_at in times.items():
            claim = self._read_claim(token)
            if claim is None:
                continue
            # Some file systems of fsspec have no times: there a lease ends by its process only.
            age = (now - written_at).total_seconds() if now and written_at else 0.0
            if age > EXPIRE_SECONDS or self._is_dead(claim):
                self._delete(token)
            else:
                others.append(claim)
        return others

    def _read_claim(self, token: str) -> dict[str, Any] | None:
        """Return a claim, None if its file is gone, or stays incomplete or damaged.

        Outside local disks and object stores, a file is visible while it is written.
        """
        for _ in range(_READ_TRIES):
            try:
                claim = read_json(self._locate(token))
            except UserError:
                time.sleep(_POLL_SECONDS)
                continue
            return claim if claim is not None and claim.keys() >= self._claim.keys() else None
        return None

    def _is_dead(self, claim: dict[str, Any]) -> bool:
        """Return True if the process of a claim ran on this machine and has ended."""
        if any(claim[key] != self._claim[key] for key in ("host", "pid_namespace")):
            return False
        try:
            os.kill(claim["pid"], 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # a process of another user
            return False
        return False

    def _describe(self, claim: dict[str, Any]) -> str:
        return (
            f"the job in {self._job_dir} is running: {claim['user']} started it on "
            f"{claim['host']} (pid {claim['pid']}) at {claim['since']}; wait for it, stop it, or "
            f"set train.run_name to another name (the lease of a dead process expires after "
            f"{EXPIRE_SECONDS:.0f} s)"
        )

    def _locate(self, token: str) -> str:
        return join_uri(self._folder, f"{token}.json")

    def _write(self) -> None:
        write_json(self._locate(self._claim["token"]), self._claim)

    def _delete(self, token: str) -> None:
        with contextlib.suppress(OSError):  # deleted already, or the storage is gone
            fs, path = open_filesystem(self._folder)
            fs.delete_file(f"{path}/{token}.json")


def _get_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without an entry for this user
        return f"user {os.getuid()}"


def _get_pid_namespace() -> str:
    """Return an id of the processes whose pids this process sees; two containers have two."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        return ""
