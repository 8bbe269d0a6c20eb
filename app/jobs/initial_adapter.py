"""The adapter that a new job starts from: `lora.init_from`.

The process that starts the job reads and checks it, and sends the weights to the workers. The nodes
of a cluster therefore need no access to the folder.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.fs

from app.config import Config
from app.errors import UserError
from app.gemma.adapter import WEIGHT_FILES, SavedAdapter, read_adapter
from app.gemma.adapter_check import require_same_adapter
from app.gemma.base_model import BaseModelPin, load_model_config
from app.jobs.checkpoint_files import read_state
from app.jobs.job_dir import get_job_dir, read_newest_checkpoint
from app.jobs.trained_model import find_model
from app.tracking import REGISTRY_SCHEME, ModelNotRegistered
from data_pipeline.fetch import fetch_folder
from data_pipeline.filesystem import open_filesystem
from data_pipeline.masking import mask_secrets

ADAPTER_SETTINGS = (
    "lora.rank",
    "lora.alpha",
    "lora.use_rslora",
    "lora.target_modules",
    "lora.train_embeddings",
)
"""Settings whose values are those of the initial adapter."""


@dataclass(frozen=True)
class InitialAdapter:
    """A checked adapter, in a form that Ray sends without copies."""

    weights: dict[str, npt.NDArray[np.float32]]
    """By PEFT's names."""
    base: BaseModelPin | None
    """Pin of the base model it was trained on; None if its folder does not name one."""
    tags: dict[str, str]
    """Record of its origin, for the job's MLflow run."""


def read_initial_adapter(config: Config) -> InitialAdapter | None:
    """Return the adapter that the job starts from, None for a new one.

    A job with a checkpoint continues from that one. Raises UserError if `lora.init_from` is not
    there, cannot be read, or is not an adapter of the job's settings and base model.
    """
    reference = config.lora.init_from
    if reference is None or read_newest_checkpoint(get_job_dir(config)) is not None:
        return None

    name = mask_secrets(f"lora.init_from={reference}")
    folder = _find_folder(config, reference)
    if folder is None:
        if config.lora.init_from_missing == "fresh":
            return None
        raise UserError(
            f"{name} is not there: correct it, or set lora.init_from_missing=fresh to start from "
            "a new adapter"
        )
    adapter = read_adapter(folder, name)
    require_same_adapter(adapter, config.lora, load_model_config(config.model))
    return InitialAdapter(
        {key: weight.numpy() for key, weight in adapter.weights.items()},
        read_state(str(folder)).get("base"),
        _make_tags(adapter, reference),
    )


def require_one_adapter(config: Config) -> None:
    """Raise UserError if a search varies a setting that the initial adapter fixes."""
    for path in config.search.space if config.lora.init_from else ():
        if path in ADAPTER_SETTINGS:
            raise UserError(
                f"search.space.{path} varies the adapter of lora.init_from, which has one value: "
                "search over other settings, or set lora.init_from=null"
            )


def print_start(config: Config, initial: InitialAdapter | None) -> None:
    """Print where the weights of a job with `lora.init_from` come from."""
    if config.lora.init_from is None:
        return
    newest = read_newest_checkpoint(get_job_dir(config))
    if newest is not None:
        origin = (
            f"its own checkpoint of step {newest.metrics['step']}; lora.init_from was for its start"
        )
    elif initial is not None:
        origin = f"the adapter {config.lora.init_from}"
    else:
        origin = f"a new adapter, because lora.init_from={config.lora.init_from} is not there"
    print(f"the job starts from {origin}", file=sys.stderr)


def _find_folder(config: Config, reference: str) -> Path | None:
    """Return a local folder with the adapter; None if nothing is at the place that is named."""
    if reference.startswith(REGISTRY_SCHEME):
        try:
            reference = find_model(reference, config.tracking, config=config).adapter
        except ModelNotRegistered:
            return None
    filesystem, path = open_filesystem(reference)
    if filesystem.get_file_info(path).type == pyarrow.fs.FileType.NotFound:
        return None

    inside = filesystem.get_file_info([f"{path}/{name}" for name in WEIGHT_FILES])
    if not any(info.is_file for info in inside):
        reference = find_model(reference, config=config).adapter  # the folder of a job
    return Path(fetch_folder(reference) if "://" in reference else reference)


def _make_tags(adapter: SavedAdapter, reference: str) -> dict[str, str]:
    return {"init_from": mask_secrets(reference), "init_from.sha256": adapter.sha256}
