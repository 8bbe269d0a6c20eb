"""Read finished or running jobs, and write one page about them."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.config import Config, flatten_config, make_absolute, mask_config
from app.errors import UserError
from app.evaluation.facts import check_claims
from app.evaluation.report import CURVES, GENERATOR, render_report
from app.evaluation.report_style import MAX_RUNS
from app.evaluation.report_views import CaptionView, DrawingView, RunView
from app.jobs.job_dir import read_job_file, read_newest_checkpoint
from app.jobs.trained_model import find_model
from app.storage import join_uri, read_value, require_writable, write_text
from app.tracking import TrackingConfig
from app.tracking.history import RunHistory, read_history
from data_pipeline.masking import mask_secrets

MAX_DRAWINGS = 60
"""Drawings on the page, at equal distances over those of the evaluation."""

_EVALUATIONS = ("evaluation-test.json", "evaluation.json")
_STEP_SECONDS = ("speed/step_seconds", "speed/data_wait_seconds")
_PLACES = ("train.run_name", "train.output_dir")
"""Settings that differ in all jobs and say nothing about them."""


@dataclass(frozen=True)
class _Job:
    """Files of a job's folder; an empty object for a file that is not there."""

    folder: str
    result: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    config: Config | None
    history: RunHistory | None
    notices: list[str]


def run_report(arguments: argparse.Namespace) -> str:
    """Run the command `report`. Return the path of the page."""
    out = Path(arguments.out).absolute()
    _require_report_file(out)
    write_report(arguments.runs, out)
    return str(out)


def write_report(folders: Sequence[str], out: Path) -> None:
    """Write the page about the jobs in these folders. Parts that a job lacks are left out.

    Raises UserError if a folder is no job's folder.
    """
    if len(folders) > MAX_RUNS:
        raise UserError(f"report takes at most {MAX_RUNS} jobs, not {len(folders)}: name fewer")
    jobs = [_read_job(make_absolute(folder)) for folder in folders]
    _note_different_data(jobs)
    names = _name_jobs(jobs)
    runs = [_view_run(job, name) for job, name in zip(jobs, names, strict=True)]
    page = render_report(runs, _view_drawings(jobs), defaults=_list_settings(Config()))
    write_text(str(out), mask_secrets(page))


def _require_report_file(out: Path) -> None:
    """Raise UserError unless `out` is a new file, or an earlier report."""
    if out.suffix != ".html" or not out.parent.is_dir():
        raise UserError(f"--out {out}: name a file that ends in .html, in a folder that exists")
    if out.exists() and (out.is_dir() or GENERATOR not in out.read_text(errors="replace")[:1000]):
        raise UserError(f"--out {out} exists and is no report: name a new file")
    require_writable(f"--out {out}", out.parent)


def _read_job(folder: str) -> _Job:
    """Read a job's files and its MLflow run. A part that cannot be read becomes a notice."""
    files = (read_job_file(folder, name) for name in _EVALUATIONS)
    evaluation = next((found for found in files if found), {})
    result = read_job_file(folder, "result.json") or {}
    newest = read_newest_checkpoint(folder)
    if not (evaluation or result or newest):
        raise UserError(
            f"{folder} holds no job: give the folder of a job that was trained or evaluated"
        )

    notices = [] if evaluation else ["it was not evaluated: run `evaluate` for its scores"]
    config = history = None
    try:
        config = find_model(folder).config
    except UserError as error:
        notices.append(f"its settings are not known: {str(error).partition(': ')[0]}")
    try:
        history = _read_run(folder, config)
    except UserError as error:
        notices.append(f"its curves are missing: {error}")
    metrics = result or ({} if newest is None else newest.metrics)
    return _Job(folder, metrics, evaluation, config, history, notices)


def _read_run(folder: str, config: Config | None) -> RunHistory | None:
    """Return the history of the job's MLflow run; None if nothing was tracked.

    Its file names the server without credentials. MLflow takes them from its own variables.
    """
    run = read_job_file(folder, "mlflow_run.json")
    if run is None:
        return None
    tracking = TrackingConfig() if config is None else config.tracking
    file = join_uri(folder, "mlflow_run.json")
    uri, run_id = (read_value(file, run, name, str) for name in ("tracking_uri", "run_id"))
    tracking = tracking.model_copy(update={"uri": uri})
    return read_history(tracking, run_id, [*CURVES, *_STEP_SECONDS, "memory/peak_mib"])


def _note_different_data(jobs: Sequence[_Job]) -> None:
    """Add a notice to each job that was evaluated on other drawings than the first one."""
    evaluated = [job for job in jobs if job.evaluation]
    keys = [
        (job.evaluation.get("dataset_digest"), job.evaluation.get("split")) for job in evaluated
    ]
    for job, key in zip(evaluated, keys, strict=True):
        if key != keys[0]:
            job.notices.append("it was evaluated on other drawings: its scores are not comparable")


def _name_jobs(jobs: Sequence[_Job]) -> list[str]:
    """Return the last part of each folder, or more parts where several are the same."""
    paths = [mask_secrets(job.folder).partition("?")[0].rstrip("/").split("/") for job in jobs]
    for num_parts in range(1, max(map(len, paths)) + 1):
        names = ["/".join(path[-num_parts:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def _view_run(job: _Job, name: str) -> RunView:
    return RunView(
        name=name,
        settings=_list_settings(job.config),
        metrics=job.evaluation.get("metrics", {}),
        compared_with=job.evaluation.get("compared_with", {}),
        groups={
            name: scores
            for kind in ("by_source", "by_length")
            for name, scores in job.evaluation.get(kind, {}).items()
        },
        curves={} if job.history is None else job.history.metrics,
        figures=_list_figures(job),
        notices=job.notices,
    )


def _list_settings(config: Config | None) -> dict[str, str]:
    if config is None:
        return {}
    settings = flatten_config(mask_config(config))
    # an empty mapping has no paths of its own: its parts are listed by theirs
    return {
        path: value if isinstance(value, str) else json.dumps(value, default=str)
        for path, value in settings.items()
        if path not in _PLACES and value != {}
    }


def _list_figures(job: _Job) -> dict[str, str]:
    """Return cost, time and amounts, with their units."""
    figures = _name_origin(job)
    history, result = job.history, job.result
    if history is not None:
        figures["started"] = f"{history.start:%Y-%m-%d %H:%M} UTC"
        figures["status"] = history.status
        in_steps = [value for name in _STEP_SECONDS for _, value in history.metrics.get(name, [])]
        if history.seconds is not None:
            figures["from start to end"] = _format_seconds(history.seconds)
        if in_steps:
            figures["in training steps"] = _format_seconds(sum(in_steps))
            figures |= _name_cost(sum(in_steps), job.config)
        peaks = [value for _, value in history.metrics.get("memory/peak_mib", [])]
        if peaks:
            figures["peak memory of a worker"] = f"{max(peaks):,.0f} MiB"

    for key, title in (("step", "steps"), ("num_examples", "examples"), ("num_tokens", "tokens")):
        if key in result:
            figures[title] = f"{result[key]:,}"
    if "best_step" in result:
        figures["best step"] = f"{result['best_step']:,}"
    if "split" in job.evaluation:
        figures["evaluated split"] = str(job.evaluation["split"])
    return figures


def _name_origin(job: _Job) -> dict[str, str]:
    """Return the base model, the checkpoint, the data, and the signature of the scores."""
    evaluation, base_model = job.evaluation, None if job.config is None else job.config.model.name
    checkpoint = evaluation.get("adapter") or job.result.get("adapter")
    named = {
        "base model": base_model,
        "checkpoint": checkpoint and str(checkpoint).partition("?")[0].rpartition("/")[2],
        "digest of the data": evaluation.get("dataset_digest"),
        "BLEU by sacrebleu": evaluation.get("signature"),
    }
    return {name: str(value) for name, value in named.items() if value}


def _name_cost(seconds: float, config: Config | None) -> dict[str, str]:
    """Return the time that all workers together took in steps."""
    if config is None:
        return {}
    scaling = config.scaling
    unit, each = ("GPU", scaling.gpus_per_worker) if scaling.use_gpu else ("worker", 1.0)
    return {f"{unit}-hours": f"{seconds * scaling.num_workers * each / 3600:.3g}"}


def _format_seconds(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _view_drawings(jobs: Sequence[_Job]) -> list[DrawingView]:
    """Return an even sample of the drawings of all evaluations, with the caption of each job."""
    by_job = [{one["id"]: one for one in job.evaluation.get("drawings", [])} for job in jobs]
    ids = list(dict.fromkeys(id_ for drawings in by_job for id_ in drawings))
    num = min(MAX_DRAWINGS, len(ids))
    views = []
    for id_ in (ids[i * len(ids) // num] for i in range(num)):
        found = [drawings.get(id_) for drawings in by_job]
        first = next(one for one in found if one is not None)
        captions = [None if one is None else _view_caption(one) for one in found]
        views.append(DrawingView(id_, first["svg"], first["reference"], captions))
    return views


def _view_caption(drawing: Mapping[str, Any]) -> CaptionView:
    caption = drawing["tuned"]
    claims = check_claims(caption, drawing["svg"])
    wrong = [(claim.text, claim.reason) for claim in claims if claim.verdict == "wrong"]
    return CaptionView(caption, wrong, drawing.get("faults", ()))
