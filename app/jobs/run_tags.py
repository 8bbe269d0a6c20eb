"""Tags of an MLflow run that MLflow's pages show: description, source, user and git commit."""

import getpass
import re
import shlex
import sys
from contextlib import suppress

from app.config import Config
from app.gemma.base_model import describe_quantization
from app.jobs.materials import describe_code
from data_pipeline.shards import Shards

NOTE = "mlflow.note.content"
"""Tag of the description of a run."""


def describe_source() -> dict[str, str]:
    """Return the tags about the command of this process, its user and its git commit.

    Call it on the driver: the arguments of a Ray worker are Ray's own. MLflow's pages cut the name
    of a source off at its last slash, so it has no paths.
    """
    tags = {
        "mlflow.source.name": " ".join(["python -m app", *sys.argv[1:2]]),
        "mlflow.source.type": "LOCAL",
        "command": shlex.join(["python", "-m", "app", *sys.argv[1:]]),
    }
    with suppress(KeyError, OSError):  # a container may run as a user without a name
        tags["mlflow.user"] = getpass.getuser()

    commit = re.search(r"\b([0-9a-f]{40})(-dirty)?$", describe_code())
    if commit:
        tags["mlflow.source.git.commit"] = commit[1]
        tags["mlflow.source.git.dirty"] = str(commit[2] is not None)
    return tags


def describe_job(config: Config, shards: Shards, work: str) -> str:
    """Return the description of a run: its work, such as `Training`, its model and its data."""
    model = f"{config.model.name} ({describe_quantization(config.quantization)})"
    num_train, num_validation = (shards.num_records(split) for split in ("train", "validation"))
    return (
        f"{work} of {model} with LoRA rank {config.lora.rank} on {num_train:,} drawings of "
        f"`{shards.folder}`, evaluated on {num_validation:,}."
    )


def add_result(note: str, result: str) -> str:
    """Return a run's description with its result."""
    return f"{note}\n\nResult: {result}"


def describe_end(error: BaseException) -> str:
    """Return the end of a job that an error or a signal ended, in one sentence."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped by a signal before its end."
    lines = str(error).strip().splitlines()
    return f"failed: {lines[-1] if lines else type(error).__name__}"
