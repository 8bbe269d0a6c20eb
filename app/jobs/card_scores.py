"""Find the scores of a trained model: in the reports of `evaluate`, or in MLflow."""

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from app.errors import UserError
from app.jobs.checkpoint_files import read_state
from app.jobs.job_dir import get_job_dir, read_job_file
from app.jobs.trained_model import TrainedModel
from app.storage import join_uri
from app.tracking import read_scores
from data_pipeline.masking import mask_secrets

REPORTS = ("evaluation-test.json", "evaluation.json")
"""Reports of `evaluate` in the folder of a job; the first one that is there counts."""


@dataclass(frozen=True)
class CardScores:
    """Scores of one checkpoint."""

    source: str
    """Place of the scores without folders of this machine, such as `evaluation.json`."""
    split: str
    metrics: Mapping[str, Mapping[str, Any]]
    """Value, interval, n and target by name."""
    signature: str | None = None
    """Signature of sacrebleu."""


def find_scores(model: TrainedModel) -> CardScores | None:
    """Return the scores of a trained model; print where none were found, and return None.

    The reports stand in the folder of the job or in that of `evaluate` for a model of the registry.
    MLflow has the scores of a checkpoint whose job is gone. A report of another checkpoint does not
    count.
    """
    places = _list_places(model)
    for place in places:
        for name in REPORTS:
            report = _read(place, name)
            if report and _is_of_model(report, place, model):
                metrics = report.get("metrics") or {
                    key: {"value": value} for key, value in report.items() if type(value) is float
                }
                split = str(report.get("split", "validation"))
                return CardScores(f"`{name}`", split, metrics, report.get("signature"))

    found = _find_tracked_scores(model)
    if found is None:
        searched = mask_secrets(", ".join([*places, f"MLflow ({model.config.tracking.uri})"]))
        print(f"no evaluation of {model.name} was found in {searched}", file=sys.stderr)
    return found


def _list_places(model: TrainedModel) -> list[str]:
    """Return the folders in which `evaluate` writes the report of a model."""
    path, mark, query = model.adapter.partition("?")
    job_dirs = [
        path.rstrip("/").rpartition("/")[0] + mark + query,
        get_job_dir(model.config),
        os.path.abspath(join_uri("outputs/evaluations", model.config.train.run_name)),
    ]
    return [place for place in dict.fromkeys(job_dirs) if "***" not in place]


def _read(folder: str, name: str) -> dict[str, Any] | None:
    """Return an object in a file; None if it cannot be read on this machine."""
    try:
        return read_job_file(folder, name)
    except UserError:
        return None


def _is_of_model(report: Mapping[str, Any], place: str, model: TrainedModel) -> bool:
    """Return whether a report is of the model: of its folder, or of a copy of its checkpoint."""
    evaluated = str(report.get("adapter") or report.get("model") or "").partition("?")[0]
    moved = join_uri(place, evaluated.rstrip("/").rpartition("/")[2])
    own = model.adapter.partition("?")[0]
    if own in (evaluated, moved.partition("?")[0]):
        return True
    identity = _identify(model.adapter)
    return identity is not None and identity in (_identify(evaluated), _identify(moved))


def _identify(adapter: str) -> tuple[str, int] | None:
    """Return the MLflow run and the step of a checkpoint."""
    try:
        state = read_state(adapter, needed=("run_id", "state"))
    except UserError:
        return None
    return (state["run_id"], state["state"]["step"]) if state.get("run_id") else None


def _find_tracked_scores(model: TrainedModel) -> CardScores | None:
    """Return the scores that MLflow has of the checkpoint, those of the test split first."""
    identity = _identify(model.adapter)
    if identity is None or model.config.tracking.uri is None:
        return None
    try:
        values = read_scores(model.config.tracking, *identity)
    except UserError as error:
        print(f"the scores in MLflow cannot be read: {error}", file=sys.stderr)
        return None
    for prefix, split in (("test/", "test"), ("held_out/", "validation")):
        metrics = dict(_list_metrics(values, prefix, model.config.evaluate.targets))
        if metrics:
            return CardScores("MLflow", split, metrics)
    return None


def _list_metrics(
    values: Mapping[str, float], prefix: str, targets: Mapping[str, float | None]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and score of each value whose interval is there too."""
    for key, value in values.items():
        ends = {end: values.get(f"{key}_{end}") for end in ("low", "high")}
        if key.startswith(prefix) and None not in ends.values():
            name = key.removeprefix(prefix)
            yield name, {"value": value, **ends, "target": targets.get(name)}
