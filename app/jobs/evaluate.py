"""Evaluation of base and tuned model on the held-out split: figures and a gallery page.

The figures are loss, perplexity, BLEU-4 and the accuracy of named fields.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray
import ray.train
import torch

from app.config import Config
from app.evaluation.gallery import GalleryItem, render_gallery
from app.evaluation.generate import generate_captions
from app.evaluation.metrics import compute_bleu4, find_best_constant_caption, score_fields
from app.gemma.activation_checkpoint import apply_memory_config
from app.gemma.base_model import pin_base_model
from app.gemma.load import (
    DTYPES,
    CaptionLoss,
    autocast,
    evaluation_mode,
    load_adapter,
    load_base_model,
)
from app.jobs.job import build_stream, track_run
from app.jobs.job_dir import find_adapter, get_job_dir, read_step
from app.jobs.worker import configure_device
from app.storage import join_uri, write_json, write_text
from app.tracking import Tracker, reopen_run
from app.training.checkpoint import require_same_base_model
from app.training.parallel import LocalContext
from app.training.step import compute_mean_loss
from data_pipeline.shards import ShardRecord, Shards
from data_pipeline.stream.encode import PromptEncoder
from data_pipeline.stream.token_stream import Stream
from data_pipeline.stream.worker_batches import read_validation_batches

T = TypeVar("T")


@dataclass(frozen=True)
class ModelEvaluation:
    """Result of one model, base or tuned, on the held-out split."""

    eval_loss: float
    """Nats per target token."""
    num_dropped: int
    """Number of examples that are too long for the loss."""
    captions: list[str]
    """One for each of the first `evaluate.max_captions` held-out drawings that is not too long."""


def evaluate_job(config: Config, shards: Shards, adapter: str) -> dict[str, Any]:
    """Evaluate base and tuned model of the job `train.run_name`; return the report.

    `adapter` is the folder or URI of a checkpoint. The base model is the same 4-bit model without
    the adapter, and it captions the same drawings. Write evaluation.json and gallery.html to the
    job's folder, and log figures and page to its MLflow run, whose status stays. Needs a connected
    Ray; each of the two models takes the resources of a training worker.
    """
    job_dir = get_job_dir(config)

    # evaluate
    records, base, tuned = evaluate_base_and_tuned(config, shards, adapter)
    report = _compute_figures(config, shards, records, base, tuned)
    numbers = {name: value for name, value in report.items() if isinstance(value, float)}
    _, too_long = _read_held_out(config, build_stream(config, shards))
    report |= {"adapter": adapter, "num_too_long": len(too_long), "too_long": too_long}

    # write
    page = _render_page(config, records, base, tuned, numbers)
    report["gallery"] = join_uri(job_dir, "gallery.html")
    write_text(report["gallery"], page)
    write_json(join_uri(job_dir, "evaluation.json"), report)

    # log
    with _track_evaluation(config, job_dir) as tracker:
        metrics = {f"held_out/{name}": value for name, value in numbers.items()}
        tracker.log_metrics(read_step(adapter), metrics)
        tracker.log_text(page, "evaluation/gallery.html")
    return report


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
) -> tuple[list[ShardRecord], ModelEvaluation, ModelEvaluation]:
    """Evaluate both models in parallel. Return (held-out drawings, base, tuned).

    Each model takes the resources of a training worker.
    """
    stream, scaling = build_stream(config, shards), config.scaling
    task = ray.remote(num_cpus=scaling.cpus_per_worker, num_gpus=1 if scaling.use_gpu else 0)(
        _evaluate_model
    )
    try:
        base, tuned = ray.get(
            [task.remote(config, stream, None), task.remote(config, stream, adapter)]
        )
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error  # the original error, without the traceback of the task
    records, too_long = _read_held_out(config, stream)
    if too_long:
        action = {"drop": "get no caption", "truncate": "are cut"}[config.data.too_long]
        print(
            f"{len(too_long)} held-out drawings {action}, because their prompts exceed "
            f"data.sequence_tokens={config.data.sequence_tokens}: "
            f"{', '.join(too_long)}",
            flush=True,
        )
    return records, base, tuned


def _read_held_out(config: Config, stream: Stream) -> tuple[list[ShardRecord], list[str]]:
    """Return the drawings that are captioned, and the ids of those with too long prompts.

    They are the first drawings of the validation split. As in training, a drawing that is too long
    is left out or cut (`data.too_long`).
    """
    num_records = min(config.evaluate.max_captions, stream.shards.num_records("validation"))
    records = stream.shards.read("validation", 0, num_records)
    encoder = PromptEncoder(stream.tokenizer, config.data.system_prompt)
    is_too_long = [
        len(encoder.encode_prompt(record.svg)) > config.data.sequence_tokens for record in records
    ]
    too_long = [record.id for record, long in zip(records, is_too_long, strict=True) if long]
    if config.data.too_long == "drop":
        records = [record for record, long in zip(records, is_too_long, strict=True) if not long]
    return records, too_long


def _compute_figures(
    config: Config,
    shards: Shards,
    records: Sequence[ShardRecord],
    base: ModelEvaluation,
    tuned: ModelEvaluation,
) -> dict[str, Any]:
    """Return the figures of both models and of their baselines, by name."""
    report: dict[str, Any] = {
        "eval_loss_before": base.eval_loss,
        "eval_loss_after": tuned.eval_loss,
        "perplexity_before": math.exp(min(base.eval_loss, 80.0)),
        "perplexity_after": math.exp(min(tuned.eval_loss, 80.0)),
        "num_captions": len(records),
        "num_validation_dropped": tuned.num_dropped,
    }
    if not records:
        return report

    # BLEU-4
    references = [record.caption for record in records]
    constant, constant_score = find_best_constant_caption(shards.read_captions("train"), references)
    report |= {
        "bleu4_before": compute_bleu4(base.captions, references),
        "bleu4_after": compute_bleu4(tuned.captions, references),
        "bleu4_constant": constant_score,
        "constant_caption": constant,
    }

    # named fields
    fields = config.evaluate.fields
    for name, score in score_fields(tuned.captions, references, fields).items():
        report |= {
            f"{name}_accuracy": score.accuracy,
            f"{name}_chance": score.chance,
            f"{name}_majority": score.majority,
        }
    for name, score in score_fields(base.captions, references, fields).items():
        report[f"{name}_accuracy_before"] = score.accuracy
    return report


def _evaluate_model(config: Config, stream: Stream, adapter: str | None) -> ModelEvaluation:
    """Load one model, measure its loss and generate its captions (a Ray task)."""
    device = torch.device("cuda" if config.scaling.use_gpu else "cpu")
    configure_device(config, device)
    dtype = DTYPES[config.train.precision]
    name = "base" if adapter is None else "tuned"

    # load
    base_model = load_base_model(config.model, config.quantization, device=device, dtype=dtype)
    model: Any = base_model
    if adapter is not None:
        # this node may lack a folder of the node that started the evaluation
        with ray.train.Checkpoint(find_adapter(config, adapter)).as_directory() as folder:
            pin = pin_base_model(config.model, config.quantization)
            require_same_base_model(Path(folder), pin)
            model = load_adapter(base_model, folder)
    apply_memory_config(base_model, config.memory)

    # measure the loss
    batches = read_validation_batches(
        stream, micro_batch_size=config.evaluate.micro_batch_size, rank=0, num_workers=1
    )
    num_dropped = sum(int(batch["num_dropped"].sum()) for batch in batches)
    loss = compute_mean_loss(CaptionLoss(model, dtype), batches, LocalContext(device))
    print(f"{name} model: evaluation loss {loss:.4f}", flush=True)

    # generate captions
    records, _ = _read_held_out(config, stream)

    def print_progress(num_done: int) -> None:
        print(f"{name} model: {num_done}/{len(records)} captions", flush=True)

    with evaluation_mode(model), autocast(device, dtype):
        captions = generate_captions(
            model,
            PromptEncoder(stream.tokenizer, config.data.system_prompt),
            [record.svg for record in records],
            batch_size=config.evaluate.generation_batch_size,
            max_new_tokens=config.evaluate.max_new_tokens,
            max_prompt_tokens=config.data.sequence_tokens,
            max_cache_tokens=config.evaluate.max_cache_tokens,
            on_progress=print_progress,
        )
    return ModelEvaluation(loss, num_dropped, captions)


def _render_page(
    config: Config,
    records: Sequence[ShardRecord],
    base: ModelEvaluation,
    tuned: ModelEvaluation,
    numbers: dict[str, float],
) -> str:
    """Return the gallery page of an even sample of the drawings."""
    items = [
        GalleryItem(record.id, record.svg, record.caption, base_caption, tuned_caption)
        for record, base_caption, tuned_caption in zip(
            records, base.captions, tuned.captions, strict=True
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
