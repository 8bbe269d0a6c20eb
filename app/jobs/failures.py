"""Errors that would occur again after every restart of the workers: they end the job at once."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import ray.exceptions
import torch
from ray.train import UserCallback

from app.errors import UserError
from app.full_disk import find_full_disk
from data_pipeline.errors import DataError

_EXIT_DETAIL = re.compile(r"Worker exit detail: ([^\n.]+)")


def find_lasting_error(error: BaseException) -> UserError | None:
    """Return the error that the user has to correct, among an error and its causes; None if none.

    Ray wraps the errors of workers and of data tasks.
    """
    for cause in _iterate_causes(error, set()):
        # Ray's wrapper is an instance of the error's class too, but its text is a traceback.
        if isinstance(cause, ray.exceptions.RayTaskError):
            continue
        if isinstance(cause, UserError | DataError):
            # Ray Data appends lines about its retries to the error of a data task.
            return UserError(str(cause).partition("\n")[0])
        full = find_full_disk(cause)
        if full is not None:
            return full
    return None


class OutOfMemory(UserError):
    """Memory of the GPU or of the host did not suffice for a tensor."""


def find_out_of_memory(error: BaseException) -> OutOfMemory | None:
    """Return the lack of memory among an error and its causes, with its reason; None if none."""
    found = None
    for cause in _iterate_causes(error, set()):
        if isinstance(cause, OutOfMemory):
            return cause
        is_named = isinstance(cause, torch.OutOfMemoryError | MemoryError)
        if is_named or "can't allocate memory" in str(cause):  # torch's RuntimeError on the host
            found = cause  # the last one has the bare reason
    if found is None:
        return None
    reason = str(found).strip().partition("\n")[0] or type(found).__name__
    return OutOfMemory(f"out of memory ({reason}): lower train.micro_batch_size")


def find_lost_process(error: BaseException) -> UserError | None:
    """Return the error of a process, node or object that Ray lost, among an error and its causes.

    An exception that our own code raised in a task is none.
    """
    for cause in _iterate_causes(error, set()):
        is_ours = isinstance(cause, ray.exceptions.RayTaskError)
        if is_ours or not isinstance(cause, ray.exceptions.RayError):
            continue
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        detail = _EXIT_DETAIL.search(str(cause))
        reason = lines[0].rstrip(".") + (f"; {detail[1]}" if detail else "")
        return UserError(
            f"Ray lost a process of this command ({reason}): start it again; if it is lost again, "
            "give the workers more memory, or set smaller batches (`plan` shows the memory)"
        )
    return None


class StopAtLastingErrors(UserCallback):
    """End the job when a worker fails with a lasting error, instead of restarting the workers.

    Ray Train restarts the workers after every exception of a worker, but not after one of a
    callback. `is_trial`: a lack of memory is lasting too, because a trial answers it itself.
    """

    def __init__(self, *, is_trial: bool = False) -> None:
        self._is_trial = is_trial

    def after_exception(
        self, run_context: Any, worker_exceptions: Mapping[int, BaseException]
    ) -> None:
        """Raise the lasting error of a worker, if there is one."""
        for error in worker_exceptions.values():
            lasting = find_lasting_error(error)
            if lasting is None and self._is_trial:
                lasting = find_out_of_memory(error)
            if lasting is not None:
                raise lasting


def _iterate_causes(error: BaseException, seen: set[int]) -> Iterator[BaseException]:
    """Yield an error and all errors that it wraps or that led to it."""
    if id(error) in seen:
        return
    seen.add(id(error))
    yield error

    inner = [
        *getattr(error, "worker_failures", {}).values(),  # of Ray Train's WorkerGroupError
        getattr(error, "controller_failure", None),  # of its ControllerError
        getattr(error, "_base_exc", None),  # of its wrapper around a worker's error
        getattr(error, "cause", None),  # of Ray's RayTaskError
        error.__cause__,
        error.__context__,
    ]
    for one in inner:
        if isinstance(one, BaseException):
            yield from _iterate_causes(one, seen)
