"""Find a trained model by the one name that a user has of it. Imports neither torch nor Ray."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from app.config import (
    Config,
    config_from_yaml,
    config_to_yaml,
    load_config,
    make_absolute,
    mask_config,
    override_config,
)
from app.errors import UserError
from app.jobs.checkpoint_files import require_whole_checkpoint
from app.jobs.job_dir import ADAPTER_FILE, SNAPSHOT, find_job_adapter, read_step
from app.storage import join_uri, read_text
from app.tracking import REGISTRY_SCHEME, TrackingConfig, find_registered_checkpoint

CONFIG_FILE = "config.yaml"
"""File of a checkpoint: the resolved config of the job that saved it, without credentials."""


@dataclass(frozen=True)
class TrainedModel:
    """An adapter, and the settings that it was trained with."""

    name: str
    """Reference as the user gave it."""
    adapter: str
    """Folder or URI of the adapter."""
    step: int
    """Optimizer step of the checkpoint; 0 for an adapter that PEFT alone saved."""
    config: Config
    """Root config of the job that trained it."""


def find_model(
    reference: str, tracking: TrackingConfig | None = None, *, config: Config | None = None
) -> TrainedModel:
    """Return the trained model that `reference` names.

    It is the folder or URI of a job (its best checkpoint, or the newest one if it has not
    finished), of a checkpoint, or of a PEFT adapter; or `models:/NAME@ALIAS` or
    `models:/NAME/VERSION` of the registry at `tracking`.

    `config` takes the place of the config that is saved in a checkpoint. An adapter of another
    program needs it, and a checkpoint of an earlier version of this application.

    Raises UserError if there is no such model, or no config.
    """
    if reference.startswith(REGISTRY_SCHEME):
        folder = find_registered_checkpoint(tracking or TrackingConfig(), reference)
    else:
        folder = make_absolute(reference)

    # adapter
    adapter = folder
    if not _has_file(folder, ADAPTER_FILE, reference):
        if not any(_has_file(folder, name, reference) for name in (SNAPSHOT, "result.json")):
            raise UserError(
                f"{reference} holds neither {ADAPTER_FILE} nor a job: give the folder of a job, a "
                "checkpoint or a PEFT adapter, or models:/NAME@ALIAS"
            )
        adapter = find_job_adapter(folder)
    require_whole_checkpoint(adapter)

    # config
    if config is None:
        text = read_text(join_uri(adapter, CONFIG_FILE))
        if text is None:
            raise UserError(
                f"the adapter {adapter} has no {CONFIG_FILE}, which names its base model and its "
                "prompt: give the config of its training with --config"
            )
        config = config_from_yaml(text, join_uri(adapter, CONFIG_FILE))
    return TrainedModel(reference, adapter, read_step(adapter), config)


def find_configured_model(
    reference: str, config: str | None, overrides: Sequence[str]
) -> TrainedModel:
    """Return the model that a command names, with the overrides of its command line.

    `config` is the config of the training, for an adapter without one.
    """
    # other overrides may be valid together with the model's own config only
    of_tracking = [text for text in overrides if text.startswith("tracking.")]
    given = load_config(config, of_tracking)
    model = find_model(reference, given.tracking, config=given if config else None)
    return replace(model, config=override_config(model.config, overrides))


def save_config(folder: Path, config: Config) -> None:
    """Write the config into the folder of a checkpoint, without credentials."""
    (folder / CONFIG_FILE).write_text(config_to_yaml(mask_config(config)))


def _has_file(folder: str, name: str, reference: str) -> bool:
    try:
        return read_text(join_uri(folder, name)) is not None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{reference} cannot be read ({reason}): correct the path or its credentials"
        ) from error
