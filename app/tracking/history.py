"""Read what a run has recorded in MLflow."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from app.errors import UserError
from app.tracking.config import TrackingConfig, resolve_uri
from app.tracking.mlflow_client import describe_error, make_client

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class RunHistory:
    """Status, duration and metrics of one run."""

    status: str
    start: datetime
    seconds: float | None
    """From its first start to its end; None if it has not ended."""
    metrics: dict[str, list[tuple[float, float]]]
    """(step, value) of each metric, by step."""


def read_history(config: TrackingConfig, run_id: str, names: Sequence[str]) -> RunHistory:
    """Return the history of a run with the metrics of these names.

    Raises UserError if the database or server cannot be read, or has no such run.
    """
    with _read_run(config, run_id) as client:
        info = client.get_run(run_id).info
        metrics = {name: client.get_metric_history(run_id, name) for name in names}
    return RunHistory(
        info.status,
        datetime.fromtimestamp(info.start_time / 1000, UTC),
        None if info.end_time is None else (info.end_time - info.start_time) / 1000,
        {
            name: sorted((float(point.step), point.value) for point in points)
            for name, points in metrics.items()
            if points
        },
    )


def read_scores(config: TrackingConfig, run_id: str, step: int) -> dict[str, float]:
    """Return the metrics of the models that a run saved at a step, by their names.

    Raises UserError if the database or server cannot be read, or has no such run.
    """
    with _read_run(config, run_id) as client:
        experiment_id = client.get_run(run_id).info.experiment_id
        of_step = f"source_run_id = '{run_id}' AND tags.step = '{step}'"
        models = client.search_logged_models([experiment_id], filter_string=of_step)
    return {metric.key: metric.value for model in models for metric in model.metrics or ()}


@contextmanager
def _read_run(config: TrackingConfig, run_id: str) -> Iterator["MlflowClient"]:
    """Give a client; turn each error of MLflow into a UserError."""
    config = resolve_uri(config)
    uri = str(config.uri)
    file = uri.removeprefix("sqlite:///").partition("?")[0]
    if uri.startswith("sqlite:///") and not os.path.isfile(file):
        raise UserError(f"tracking.uri={uri!r} is no database")  # MLflow would create one
    try:
        yield make_client(uri, config.timeout_seconds)
    except Exception as error:
        raise UserError(
            f"run {run_id} cannot be read from tracking.uri={uri!r} ({describe_error(error)})"
        ) from error


@dataclass(frozen=True)
class ChildRun:
    """A child of a run, such as a trial of a search."""

    run_id: str
    tags: Mapping[str, str]
    curve: tuple[tuple[float, float], ...]
    """(step, value) of one metric, by step."""


def read_children(
    config: TrackingConfig, parent_run_id: str, metric: str
) -> tuple[str, dict[str, ChildRun]]:
    """Return the id of the experiment, and the children of a run by their names.

    It raises whatever error MLflow raises.
    """
    client = make_client(str(config.uri), config.timeout_seconds)
    experiment_id = client.get_run(parent_run_id).info.experiment_id
    of_parent = f"tags.mlflow.parentRunId = '{parent_run_id}'"
    children = {}
    for run in client.search_runs([experiment_id], of_parent, max_results=10_000):
        points = client.get_metric_history(run.info.run_id, metric)
        curve = tuple(sorted((float(point.step), point.value) for point in points))
        children[str(run.info.run_name)] = ChildRun(run.info.run_id, run.data.tags, curve)
    return experiment_id, children
