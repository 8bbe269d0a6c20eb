"""Look up and register models of MLflow's registry, and bring their files to this machine."""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.errors import UserError
from app.tracking.config import TrackingConfig, get_artifact_folder, resolve_uri
from app.tracking.mlflow_client import describe_error, extend_timeout_for_upload, make_client
from app.tracking.mlflow_run import to_params
from app.tracking.mlflow_store import get_experiment_id

REGISTRY_SCHEME = "models:/"
CHECKPOINT_TAG = "checkpoint"
"""Tag of a model without files: the folder or URI of its checkpoint."""
MODEL_NAME = "svgscribe"
CHAMPION = "champion"
"""Alias of the version that other commands take."""
_SERVED = ("mlflow-artifacts:", "http://", "https://")
_REFERENCE = re.compile(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))")


class ModelNotRegistered(UserError):
    """The registry has no model, version or alias of this name."""


def find_registered_checkpoint(config: TrackingConfig, reference: str) -> str:
    """Return the folder or URI of the checkpoint of `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Files on the tracking server are copied once to the cache of this machine. A model without files
    names its checkpoint in the tag `checkpoint`, of the version or of the logged model. Raises
    UserError if there is no such model.
    """
    config = resolve_uri(config)
    matched = _REFERENCE.fullmatch(reference)
    if matched is None:
        raise UserError(
            f"{reference!r} is not a model of the registry: write models:/NAME@ALIAS or "
            "models:/NAME/VERSION, such as models:/svgscribe@champion"
        )
    _require_database(config, reference)

    try:
        found = _find_checkpoint(config, *matched.groups())
    except Exception as error:
        code = getattr(error, "error_code", None)  # of an MlflowException
        is_missing = code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
        raise (ModelNotRegistered if is_missing else UserError)(
            f"{reference} cannot be read from tracking.uri={str(config.uri)!r} "
            f"({describe_error(error)}): correct the name or tracking.uri"
        ) from error
    if found is None:
        raise UserError(
            f"{reference} has neither files nor the tag {CHECKPOINT_TAG!r}: name the folder of "
            "its checkpoint instead"
        )
    return found


def _require_database(config: TrackingConfig, reference: str) -> None:
    """Raise UserError if nothing is tracked, or if MLflow would create a new database."""
    uri = str(config.uri)
    is_file = uri.startswith("sqlite:///")
    file = uri.removeprefix("sqlite:///").partition("?")[0]
    if config.uri is None or (is_file and not os.path.isfile(file)):
        raise UserError(
            f"{reference} needs the registry of MLflow, but tracking.uri={uri!r} is no database: "
            "set tracking.uri to the one of the training"
        )


def _find_checkpoint(
    config: TrackingConfig, name: str, alias: str | None, number: str | None
) -> str | None:
    """Return the place of a version's files, or of the checkpoint in its tag, or None."""
    client = make_client(str(config.uri), config.timeout_seconds)
    if alias is not None:
        version = client.get_model_version_by_alias(name, alias)
    else:
        version = client.get_model_version(name, str(number))

    # a version of a logged model has the source models:/ID
    location, tags = str(version.source), dict(version.tags)
    if location.startswith(REGISTRY_SCHEME):
        model = client.get_logged_model(location.removeprefix(REGISTRY_SCHEME))
        location, tags = str(model.artifact_location), {**model.tags, **tags}

    folder = location.removeprefix("file://")
    if location.startswith(_SERVED):
        folder = _download(config, location)
    if "://" in folder:
        return folder
    for place in (folder, _find_beside_database(str(config.uri), folder)):
        if os.path.isdir(place) and os.listdir(place):
            return place
    return tags.get(CHECKPOINT_TAG)


def _find_beside_database(uri: str, folder: str) -> str:
    """Return the place of a folder of artifacts if a database was copied or moved with them.

    MLflow stores their absolute path.
    """
    if not uri.startswith("sqlite:///"):
        return folder
    artifacts = get_artifact_folder(uri)
    return f"{artifacts}/{folder.rpartition(f'/{os.path.basename(artifacts)}/')[2]}"


def _download(config: TrackingConfig, location: str) -> str:
    """Return a local folder with the files that a tracking server keeps.

    They are copied once: the files of a registered model do not change.
    """
    from mlflow.artifacts import download_artifacts

    from data_pipeline.fetch import get_cache_folder  # imports pyarrow

    key = hashlib.sha256(f"{config.uri} {location}".encode()).hexdigest()[:32]
    folder = get_cache_folder() / key
    if folder.is_dir():
        return str(folder)

    partial = Path(f"{folder}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        with extend_timeout_for_upload():
            download_artifacts(
                artifact_uri=location, dst_path=str(partial), tracking_uri=config.uri
            )
        if os.listdir(partial) and not folder.is_dir():
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return str(folder)


def find_champion(config: TrackingConfig) -> str | None:
    """Return the version of the champion as `models:/svgscribe/VERSION`, None if there is none."""
    from mlflow.exceptions import MlflowException

    client = make_client(str(config.uri), config.timeout_seconds)
    try:
        version = client.get_model_version_by_alias(MODEL_NAME, CHAMPION)
    except MlflowException as error:
        # sqlite answers the second if there is a model without this alias
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    return f"{REGISTRY_SCHEME}{MODEL_NAME}/{version.version}"


def register_model(config: TrackingConfig, folder: Path, materials: Mapping[str, Any]) -> str:
    """Copy the files of a folder to a new version; return it as `models:/svgscribe/VERSION`.

    The version is that of a logged model of its own, with the materials as its params.
    """
    from mlflow.exceptions import MlflowException

    client = make_client(str(config.uri), config.timeout_seconds)
    params = to_params(materials)
    model = client.create_logged_model(
        get_experiment_id(client, config), MODEL_NAME, params.get("run_id"), params=params
    )
    with extend_timeout_for_upload():
        client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, "READY")

    try:
        client.create_registered_model(MODEL_NAME)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    with _set_global_uri(str(config.uri)):
        source = f"{REGISTRY_SCHEME}{model.model_id}"
        version = client.create_model_version(MODEL_NAME, source, model.source_run_id)
    return f"{REGISTRY_SCHEME}{MODEL_NAME}/{version.version}"


def find_registered_version(config: TrackingConfig, materials: Mapping[str, Any]) -> str | None:
    """Return the version with the adapter and the run of the materials, None if there is none."""
    client = make_client(str(config.uri), config.timeout_seconds)
    wanted = to_params(materials)
    of_run = f"name = '{MODEL_NAME}' AND run_id = '{wanted.get('run_id', '')}'"
    for version in client.search_model_versions(of_run):
        if not str(version.source).startswith(REGISTRY_SCHEME):
            continue  # registered by another program
        model = client.get_logged_model(str(version.source).removeprefix(REGISTRY_SCHEME))
        if model.params.get("adapter.sha256") == wanted["adapter.sha256"]:
            return f"{REGISTRY_SCHEME}{MODEL_NAME}/{version.version}"
    return None


def set_champion(
    config: TrackingConfig, version: str, tags: Mapping[str, Any], *, before: str | None
) -> None:
    """Move the alias `champion` to `models:/svgscribe/VERSION`, and set tags of the version.

    `before` is the version that the new one was compared with. Raises UserError if the alias is not
    there any more. MLflow cannot compare and move in one request: two processes whose requests
    meet within milliseconds could both move it.
    """
    client = make_client(str(config.uri), config.timeout_seconds)
    number = version.rpartition("/")[2]
    for key, value in to_params(tags).items():
        client.set_model_version_tag(MODEL_NAME, number, key, value)

    champion = find_champion(config)
    if champion != before:
        raise UserError(
            f"another process moved the champion from {before or 'none'} to {champion or 'none'} "
            f"during the comparison: compare again with `promote {version}`"
        )
    client.set_registered_model_alias(MODEL_NAME, CHAMPION, number)


@contextmanager
def _set_global_uri(uri: str) -> Iterator[None]:
    """Set MLflow's global tracking URI: its databases look up a version's model there."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = uri
    try:
        yield
    finally:
        if before is None:
            del os.environ["MLFLOW_TRACKING_URI"]
        else:
            os.environ["MLFLOW_TRACKING_URI"] = before
