"""Section `tracking`."""

import os
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class TrackingConfig(BaseModel):
    """Section `tracking`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str | None = Field(
        "sqlite:///outputs/mlflow.db",
        description="MLflow tracking URI (sqlite:///file.db, http://host:port, …); null: track nothing",
    )
    experiment: str = Field("svgscribe", min_length=1, description="MLflow experiment")
    timeout_seconds: Annotated[int, Field(ge=1, le=600)] = Field(
        10,
        description="longest wait for the tracking server before the job says that it is unreachable",
    )


def resolve_uri(config: TrackingConfig) -> TrackingConfig:
    """A relative sqlite path made absolute, so that it means the same file to Ray's workers."""
    if config.uri is None or not config.uri.startswith("sqlite:///"):
        return config
    return config.model_copy(
        update={"uri": "sqlite:///" + os.path.abspath(config.uri[len("sqlite:///") :])}
    )
