"""Evaluation of base and tuned model on a held-out split: scores, baselines, a gallery page."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from app.config import Config, override_config
from app.evaluation.gallery import GalleryItem, render_gallery
from app.evaluation.scores import BASE, TUNED
from app.jobs.evaluation_actors import ModelEvaluation, evaluate_models
from app.jobs.evaluation_report import make_report
from app.jobs.held_out import HeldOut, make_baselines, read_held_out
from app.jobs.job import build_stream, track_run
from app.jobs.job_dir import get_job_dir, read_step
from app.storage import join_uri, write_json, write_text
from app.tracking import Tracker, reopen_run
from data_pipeline.errors import DataError
from data_pipeline.shards import Shards

T = TypeVar("T")


def use_split(config: Config, shards: Shards, split: str) -> tuple[Config, Shards]:
    """Return config and shards in which `split` takes the place of the validation split.

    Raises DataError if the dataset has no such split.
    """
    if split == "validation":
        return config, shards
    if not shards.files.get(split):
        raise DataError(
            f"{shards.folder!r} has no {split} split: prepare it with --test or --test-share, or "
            "evaluate with --split validation"
        )
    config = override_config(config, {"data.max_validation_records": None})
    files = {**shards.files, "validation": shards.files[split]}
    return config, dataclasses.replace(shards, files=files)


def evaluate_job(
    config: Config,
    shards: Shards,
    adapter: str,
    *,
    split: str = "validation",
    name: str | None = None,
) -> dict[str, Any]:
    """Evaluate base and tuned model of the job `train.run_name`; return the report.

    `adapter` is the folder or URI of a checkpoint, and `name` the user's reference to it. The base
    model is the same 4-bit model without the adapter, and it captions the same drawings. Write
    report and gallery to the job's folder, and log figures and page to its MLflow run, whose status
    stays. Needs a connected Ray with room for one training worker.
    """
    job_dir, suffix = get_job_dir(config), "" if split == "validation" else f"-{split}"
    config, shards = use_split(config, shards, split)

    # evaluate
    held_out, evaluations = evaluate_base_and_tuned(config, shards, adapter)
    captions = {
        model: [output.text for output in held_out.list_captions(one.outputs)]
        for model, one in evaluations.items()
    }
    if held_out.records:
        captions |= make_baselines(shards, held_out.records)
    report = {
        "model": name or adapter,
        "adapter": adapter,
        "split": split,
        "dataset_digest": shards.digest,
        **make_report(config, held_out, evaluations, captions),
    }

    # write
    numbers = {key: value for key, value in report.items() if isinstance(value, float)}
    page = _render_page(config, held_out, captions, numbers)
    report["gallery"] = join_uri(job_dir, f"gallery{suffix}.html")
    write_text(report["gallery"], page)
    write_json(join_uri(job_dir, f"evaluation{suffix}.json"), report)

    # log
    with _track_evaluation(config, job_dir) as tracker:
        prefix = "held_out" if split == "validation" else split
        metrics = {f"{prefix}/{key}": value for key, value in numbers.items()}
        tracker.log_scores(read_step(adapter), metrics | _list_values(report, prefix))
        tracker.log_text(page, f"evaluation/gallery{suffix}.html")
    return report


def _list_values(report: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """Return each score, and the ends of its interval, as metrics of MLflow."""
    return {
        f"{prefix}/{name}{end}": metric[key]
        for name, metric in report["metrics"].items()
        for key, end in (("value", ""), ("low", "_low"), ("high", "_high"))
        if metric[key] is not None
    }


@contextmanager
def _track_evaluation(config: Config, job_dir: str) -> Iterator[Tracker]:
    """Log to the job's MLflow run without a change of its status; create a run if it has none."""
    tracker = reopen_run(config.tracking, job_dir=job_dir)
    if tracker is None:
        with track_run(config, job_dir) as created:
            yield created
        return
    yield tracker
    tracker.flush()


def evaluate_base_and_tuned(
    config: Config, shards: Shards, adapter: str
) -> tuple[HeldOut, dict[str, ModelEvaluation]]:
    """Return the held-out drawings, and the results of both models on them.

    Each actor takes the resources of a training worker.
    """
    stream = build_stream(config, shards)
    held_out = read_held_out(config, stream)
    if held_out.too_long:
        action = {"drop": "get no caption", "truncate": "are cut"}[config.data.too_long]
        print(
            f"{len(held_out.too_long)} held-out drawings {action}, because their prompts exceed "
            f"data.sequence_tokens={config.data.sequence_tokens}: {', '.join(held_out.too_long)}",
            flush=True,
        )
    return held_out, evaluate_models(config, stream, adapter, held_out.prompts)


def _render_page(
    config: Config,
    held_out: HeldOut,
    captions: Mapping[str, Sequence[str]],
    numbers: Mapping[str, float],
) -> str:
    """Return the gallery page of an even sample of the drawings."""
    items = [
        GalleryItem(record.id, record.svg, record.caption, base_caption, tuned_caption)
        for record, base_caption, tuned_caption in zip(
            held_out.records, captions[BASE], captions[TUNED], strict=True
        )
    ]
    return render_gallery(
        _sample_evenly(items, config.evaluate.max_gallery_items),
        title=f"Captions by {config.train.run_name}",
        summary={name.replace("_", " "): f"{value:.3f}" for name, value in numbers.items()},
    )


def _sample_evenly(items: Sequence[T], num_items: int) -> list[T]:
    """Return `num_items` items, or all, at equal distances over the whole split."""
    num_items = min(num_items, len(items))
    return [items[i * len(items) // num_items] for i in range(num_items)]
