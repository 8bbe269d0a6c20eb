"""Read the trials of an earlier search."""

from typing import TYPE_CHECKING

from app.errors import UserError
from app.tracking.config import TrackingConfig, resolve_uri
from app.tracking.mlflow_client import describe_error, make_client
from data_pipeline.masking import mask_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

SEARCHED = "searched."
"""Start of the tags that have the values of a trial, by config path."""


def read_finished_trials(
    config: TrackingConfig, reference: str
) -> list[tuple[dict[str, str], float]]:
    """Return the values, as texts by config path, and the lowest loss of each finished trial.

    `reference` is the id of the MLflow run of a search, or EXPERIMENT/RUN_NAME, of which the newest
    one counts. Raises UserError if MLflow cannot be read, or has no such search.
    """
    config = resolve_uri(config)
    name = f"search.warm_start={reference!r}"
    if config.uri is None:
        raise UserError(f"{name} needs the runs of MLflow: set tracking.uri")
    where = f"tracking.uri={mask_secrets(config.uri)!r}"

    try:
        client = make_client(config.uri, config.timeout_seconds)
        parent = _find_run(client, reference)
        children = [] if parent is None else _list_finished(client, parent)
        trials = [trial for run in children if (trial := _read_trial(client, run)) is not None]
    except Exception as error:
        raise UserError(f"{name} cannot be read from {where} ({describe_error(error)})") from error

    if parent is None:
        raise UserError(
            f"{name} is not in {where}: give the id of the run of a search, or EXPERIMENT/RUN_NAME"
        )
    if not trials:
        raise UserError(f"{name} has no finished trials in {where}: remove it")
    return trials


def _find_run(client: "MlflowClient", reference: str) -> "Run | None":
    experiment_name, slash, run_name = reference.rpartition("/")
    if not slash:
        known = client.search_experiments()
        runs = client.search_runs(
            [experiment.experiment_id for experiment in known],
            f"attributes.run_id = '{reference}'",
        )
        return runs[0] if runs else None

    experiment = client.get_experiment_by_name(experiment_name)
    if experiment is None:
        return None
    is_search = f"attributes.run_name = '{run_name}' AND tags.kind = 'search'"
    runs = client.search_runs(
        [experiment.experiment_id], is_search, order_by=["attributes.start_time DESC"]
    )
    return runs[0] if runs else None


def _list_finished(client: "MlflowClient", parent: "Run") -> "list[Run]":
    finished = f"tags.mlflow.parentRunId = '{parent.info.run_id}' AND tags.trial_state = 'finished'"
    runs: list[Run] = []
    token = None
    while True:
        page = client.search_runs([parent.info.experiment_id], finished, page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs


def _read_trial(client: "MlflowClient", run: "Run") -> tuple[dict[str, str], float] | None:
    values = {
        tag.removeprefix(SEARCHED): value
        for tag, value in run.data.tags.items()
        if tag.startswith(SEARCHED)
    }
    losses = [point.value for point in client.get_metric_history(run.info.run_id, "eval/loss")]
    return (values, min(losses)) if values and losses else None
