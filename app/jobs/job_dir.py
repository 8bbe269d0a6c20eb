"""Files of a job's folder that other commands read. Imports neither torch nor Ray."""

import time
from dataclasses import dataclass
from typing import Any

from app.config import Config, make_absolute
from app.errors import UserError
from app.jobs.checkpoint_files import read_state, require_whole_checkpoint
from app.storage import join_uri, read_json, read_value
from data_pipeline.errors import DataError

SNAPSHOT = "checkpoint_manager_snapshot.json"
"""File in the run's folder in which Ray Train 2.60 keeps its list of checkpoints."""
ADAPTER_FILE = "adapter_config.json"
"""File that PEFT writes into every adapter."""
_NUM_READS = 5
_SECONDS_BETWEEN_READS = 0.1


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint of a job."""

    folder: str
    """Folder or URI."""
    metrics: dict[str, Any]
    """Metrics that the workers reported with it: step, eval_loss, position, precision, …"""


def get_job_dir(config: Config) -> str:
    """Return the folder or URI of the job's files."""
    return join_uri(config.train.output_dir, config.train.run_name)


def read_job_file(folder: str, name: str) -> dict[str, Any] | None:
    """Return the object in a JSON file of a job, None if there is no such file.

    Raises UserError if the folder cannot be read, or if the file is damaged.
    """
    file = join_uri(folder, name)
    try:
        return read_json(file)
    except (OSError, DataError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"cannot read {file} ({reason}): correct train.output_dir or its credentials"
        ) from error


def read_snapshot(job_dir: str) -> dict[str, Any] | None:
    """Return Ray Train's list of checkpoints, None if there is none.

    Ray Train writes this file in place, so a reader can see half of it while a job runs: then read
    it again. Raises UserError if it stays damaged.
    """
    for _ in range(_NUM_READS - 1):
        try:
            return read_job_file(job_dir, SNAPSHOT)
        except UserError:
            time.sleep(_SECONDS_BETWEEN_READS)
    return read_job_file(job_dir, SNAPSHOT)


def read_newest_checkpoint(job_dir: str) -> SavedCheckpoint | None:
    """Return the newest checkpoint of a job that runs, was interrupted or has ended."""
    snapshot = read_snapshot(job_dir) or {}
    if snapshot.get("latest_checkpoint_result") is None:
        return None
    file = join_uri(job_dir, SNAPSHOT)
    newest = read_value(file, snapshot, "latest_checkpoint_result", dict)
    folder = read_value(file, newest, "checkpoint_dir_name", str)
    metrics = read_value(file, newest, "metrics", dict)
    read_value(file, metrics, "step", int)
    return SavedCheckpoint(join_uri(job_dir, folder), metrics)


def find_lowest_checkpoint(folder: str, run_id: str) -> SavedCheckpoint | None:
    """Return the checkpoint of an MLflow run with the lowest evaluation loss, None without one.

    It reads all checkpoints below the folder: a trial that was stopped has no list of its own, and
    Ray Train and Ray Tune keep checkpoints in different folders. Raises UserError that names a
    damaged file.
    """
    from pyarrow.fs import FileSelector  # this and the next import pyarrow

    from data_pipeline.filesystem import open_filesystem

    filesystem, root = open_filesystem(folder)
    files = filesystem.get_file_info(FileSelector(root, recursive=True, allow_not_found=True))
    paths = [file.path.removeprefix(f"{root}/") for file in files]
    end = f"/{ADAPTER_FILE}"
    found = []
    for path in paths:
        if not path.endswith(end):
            continue
        checkpoint = join_uri(folder, path.removesuffix(end))
        if read_state(checkpoint).get("run_id") == run_id:
            saved = read_state(checkpoint, needed=("state", "eval_loss"))
            metrics = {"step": saved["state"]["step"], "eval_loss": saved["eval_loss"]}
            found.append(SavedCheckpoint(checkpoint, metrics))
    return min(found, key=lambda each: float(each.metrics["eval_loss"]), default=None)


def find_adapter(config: Config, given: str | None = None) -> str:
    """Return the folder or URI of the adapter to evaluate.

    It is the given one, or the best checkpoint of a finished job, or the newest one of another job.
    Raises UserError if there is none.
    """
    adapter = find_job_adapter(get_job_dir(config)) if given is None else make_absolute(given)
    try:
        reason = None if read_json(join_uri(adapter, ADAPTER_FILE)) else f"no {ADAPTER_FILE} in it"
    except (OSError, UserError, DataError) as error:
        reason = str(error).splitlines()[0]
    if reason:
        raise UserError(
            f"{adapter} is not an adapter ({reason}): give --adapter the folder of a checkpoint"
        )
    require_whole_checkpoint(adapter)
    return adapter


def find_job_adapter(job_dir: str) -> str:
    """Return the best checkpoint of a finished job, or the newest one of another job.

    Raises UserError if there is none.
    """
    file = join_uri(job_dir, "result.json")
    result = {"step": -1, "adapter": None, **(read_job_file(job_dir, "result.json") or {})}
    result_step = read_value(file, result, "step", int)
    newest = read_newest_checkpoint(job_dir)

    # a finished job that was continued has checkpoints that are newer than its result
    is_current = newest is None or newest.metrics["step"] <= result_step
    if result["adapter"] and is_current:
        best = read_value(file, result, "adapter", str)
        # result.json names the checkpoint without the credentials of train.output_dir
        path = best.partition("?")[0] if "://" in best else best
        adapter = join_uri(job_dir, path.rpartition("/")[2])
    elif newest is not None:
        adapter = newest.folder
    else:
        raise UserError(
            f"{job_dir} holds no trained adapter: "
            "run `train` with this config first, or give --adapter"
        )
    return adapter


def read_step(adapter: str) -> int:
    """Return the optimizer step of a checkpoint; 0 for an adapter that PEFT alone saved."""
    step: int = read_state(adapter).get("state", {}).get("step", 0)
    return step
