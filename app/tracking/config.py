"""Configuration section `tracking`."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from data_pipeline.home import expand_home


class TrackingConfig(BaseModel):
    """MLflow tracking server or database that records the job."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str | None = Field(
        "sqlite:///outputs/mlflow.db",
        description="MLflow tracking URI (sqlite:///file.db, http://host:port, …); null: no "
        "tracking",
        json_schema_extra={"counterpart": "TrainingArguments.report_to"},
    )
    experiment: str = Field("svgscribe", min_length=1, description="name of the MLflow experiment")
    timeout_seconds: Annotated[int, Field(ge=1, le=600)] = Field(
        10,
        description="longest wait for an answer of the tracking server (seconds)",
    )


def resolve_uri(config: TrackingConfig) -> TrackingConfig:
    """Return the config with an absolute sqlite path, the same file for all of Ray's workers.

    `sqlite:///~/mlflow.db` is a file in the user's home folder.
    """
    if config.uri is None or not config.uri.startswith("sqlite:///"):
        return config
    path = os.path.abspath(expand_home(config.uri.removeprefix("sqlite:///")))
    return config.model_copy(update={"uri": f"sqlite:///{path}"})


def get_sqlite_file(uri: str) -> str:
    """Return the absolute path of the file of a database `sqlite:///…`."""
    return os.path.abspath(uri.removeprefix("sqlite:///").partition("?")[0])


def get_artifact_folder(uri: str) -> str:
    """Return the folder with the artifacts of a database `sqlite:///…`, beside its file."""
    return str(Path(get_sqlite_file(uri)).with_name("mlartifacts"))
