"""Base against tuned on the held-out split: loss, perplexity, BLEU-4, named fields, and a page to look at."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray
import ray.train
import torch

from app.config import Config
from app.errors import UserError
from app.evaluation.gallery import GalleryItem, render_gallery
from app.evaluation.generate import generate_captions
from app.evaluation.metrics import compute_bleu4, find_best_constant_caption, score_fields
from app.gemma.base_model import pin_base_model
from app.gemma.load import (
    DTYPES,
    CaptionLoss,
    autocast,
    evaluation_mode,
    load_adapter,
    load_base_model,
    unwrap_gemma,
)
from app.jobs.job import build_stream, get_job_dir, track_run
from app.storage import join_uri, read_json, write_json, write_text
from app.training.checkpoint import require_same_base_model
from app.training.parallel import LocalContext
from app.training.step import compute_mean_loss
from data_pipeline.shards import ShardRecord, Shards
from data_pipeline.stream.encode import PromptEncoder
from data_pipeline.stream.token_stream import Stream
from data_pipeline.stream.worker_batches import validation_batches

T = TypeVar("T")


@dataclass(frozen=True)
class ModelEvaluation:
    """What one model, base or tuned, does on the held-out split."""

    eval_loss: float
    """Nats per target token."""
    captions: list[str]
    """One for each of the first `evaluate.max_captions` held-out drawings."""


def evaluate_job(config: Config, shards: Shards, adapter: str | None = None) -> dict[str, Any]:
    """Judge base and tuned model of the job `train.run_name`, by default its best checkpoint.

    The base is the same 4-bit base without the adapter, captioning the same drawings. Figures and `gallery.html`
    go to the job's folder and its MLflow run. Needs a connected Ray; each of the two models takes what a training
    worker takes. Raises UserError when there is no adapter.
    """
    folder = get_job_dir(config)
    result = read_json(join_uri(folder, "result.json")) or {}
    adapter = adapter or result.get("adapter")
    if adapter is None:
        raise UserError(
            f"{folder} holds no trained adapter: run `train` with this config first, or give --adapter"
        )
    with track_run(config, folder) as tracker:
        rows, before, after = evaluate_both(config, shards, adapter)
        report = compute_figures(config, shards, rows, before, after)
        numbers = {name: value for name, value in report.items() if isinstance(value, float)}
        items = [
            GalleryItem(row.id, row.svg, row.caption, base, tuned)
            for row, base, tuned in zip(rows, before.captions, after.captions, strict=True)
        ]
        page = render_gallery(
            _spread(items, config.evaluate.max_gallery_items),
            title=f"Captions by {config.train.run_name}",
            summary={name.replace("_", " "): f"{value:.3f}" for name, value in numbers.items()},
        )
        report["gallery"] = join_uri(folder, "gallery.html")
        write_text(report["gallery"], page)
        write_json(join_uri(folder, "evaluation.json"), report)
        tracker.log_metrics(
            result.get("step", 0), {f"held_out/{name}": value for name, value in numbers.items()}
        )
        tracker.log_text(page, "evaluation/gallery.html")
    return report


def evaluate_both(
    config: Config, shards: Shards, adapter: str
) -> tuple[list[ShardRecord], ModelEvaluation, ModelEvaluation]:
    """(held-out drawings, base, tuned), the two models side by side; each takes what a training worker takes."""
    stream, scaling = build_stream(config, shards), config.scaling
    judge = ray.remote(num_cpus=scaling.cpus_per_worker, num_gpus=1 if scaling.use_gpu else 0)(
        _judge
    )
    try:
        before, after = ray.get(
            [judge.remote(config, stream, None), judge.remote(config, stream, adapter)]
        )
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error  # the sentence, without the task's traceback around it
    return read_held_out(config, shards), before, after


def read_held_out(config: Config, shards: Shards) -> list[ShardRecord]:
    """The drawings that are captioned: the first of the validation split."""
    return shards.read(
        "validation", 0, min(config.evaluate.max_captions, shards.num_records("validation"))
    )


def compute_figures(
    config: Config,
    shards: Shards,
    rows: Sequence[ShardRecord],
    before: ModelEvaluation,
    after: ModelEvaluation,
) -> dict[str, Any]:
    """The comparison as numbers, each beside its baseline."""
    report: dict[str, Any] = {
        "eval_loss_before": before.eval_loss,
        "eval_loss_after": after.eval_loss,
        "perplexity_before": math.exp(min(before.eval_loss, 80.0)),
        "perplexity_after": math.exp(min(after.eval_loss, 80.0)),
        "num_captions": len(rows),
    }
    if not rows:
        return report
    references = [row.caption for row in rows]
    constant, constant_score = find_best_constant_caption(shards.captions("train"), references)
    report |= {
        "bleu4_before": compute_bleu4(before.captions, references),
        "bleu4_after": compute_bleu4(after.captions, references),
        "bleu4_constant": constant_score,
        "constant_caption": constant,
    }
    for name, score in score_fields(after.captions, references, config.evaluate.fields).items():
        report |= {
            f"{name}_accuracy": score.accuracy,
            f"{name}_chance": score.chance,
            f"{name}_majority": score.majority,
        }
    for name, score in score_fields(before.captions, references, config.evaluate.fields).items():
        report[f"{name}_accuracy_before"] = score.accuracy
    return report


def _judge(config: Config, stream: Stream, adapter: str | None) -> ModelEvaluation:
    """A Ray task: load one model, measure its loss, write its captions."""
    device = torch.device("cuda" if config.scaling.use_gpu else "cpu")
    torch.set_num_threads(config.scaling.threads_per_worker)
    dtype = DTYPES[config.train.precision]
    base = load_base_model(config.model, config.quantization, device=device, dtype=dtype)
    model: Any = base
    if adapter is not None:
        with ray.train.Checkpoint(adapter).as_directory() as local:
            require_same_base_model(Path(local), pin_base_model(config.model, config.quantization))
            model = load_adapter(base, local)
    batches = validation_batches(
        stream, micro_batch_size=config.evaluate.micro_batch_size, rank=0, num_workers=1
    )
    loss = compute_mean_loss(CaptionLoss(model, dtype), batches, LocalContext(device))
    name = "base" if adapter is None else "tuned"
    print(f"{name} model: evaluation loss {loss:.4f}", flush=True)
    rows = read_held_out(config, stream.shards)
    unwrap_gemma(model).set_attn_implementation(
        "eager"
    )  # batches of prompts have a mask and a cache, unlike packed rows
    with evaluation_mode(model), autocast(device, dtype):
        captions = generate_captions(
            model,
            PromptEncoder(stream.tokenizer, config.data.system_prompt),
            [row.svg for row in rows],
            batch=config.evaluate.generation_batch_size,
            max_new_tokens=config.evaluate.max_new_tokens,
            on_progress=lambda done: print(
                f"{name} model: {done}/{len(rows)} captions", flush=True
            ),
        )
    return ModelEvaluation(loss, captions)


def _spread(items: Sequence[T], number: int) -> list[T]:
    """An even sample, so that the gallery does not show one corner of the split."""
    number = min(number, len(items))
    return [items[i * len(items) // number] for i in range(number)]
