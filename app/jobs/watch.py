"""Watch the model at each evaluation of a job: probes, and captions of the same few drawings."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence

from app.config import Config
from app.errors import UserError
from app.evaluation.behaviour import Output
from app.evaluation.generate import generate_outputs
from app.evaluation.probes.heat_map import render_heat_map
from app.evaluation.probes.model import list_metrics, probe_model
from app.gemma.load import CaptionLoss, autocast, evaluation_mode
from app.jobs.train_context import JobContext
from app.training.parallel import reshard_model
from data_pipeline.shards import ShardRecord
from data_pipeline.stream.encode import Example
from data_pipeline.stream.token_stream import Stream


def build_watch(
    config: Config, stream: Stream, objective: CaptionLoss, context: JobContext
) -> Callable[[int], Mapping[str, float]]:
    """Return a function of the step that looks at the model, and returns its metrics.

    It logs a heat map and a table of captions to the MLflow run, as `evaluate` configures. All
    workers call it, because a sharded model needs all of them. A whole model computes on rank 0.
    """
    examples = _read_examples(config, stream)
    num_captions = min(config.evaluate.watch_captions, stream.shards.num_records("validation"))
    records = stream.shards.read("validation", 0, num_captions)
    is_whole = config.parallel.strategy == "ddp"

    def watch(step: int) -> Mapping[str, float]:
        if context.rank != 0 and is_whole:
            return {}
        metrics: dict[str, float] = {}
        if examples:
            probe = probe_model(objective, examples)
            metrics = list_metrics(probe)
            page = render_heat_map(probe, title=f"{config.train.run_name}, step {step}")
            context.tracker.log_text(page, f"probes/step-{step:06d}.svg")
        if records:
            table = _write_table(records, _caption(config, stream, objective, records))
            context.tracker.log_text(table, f"captions/step-{step:06d}.csv")
        reshard_model(objective)
        return metrics

    return watch


def _read_examples(config: Config, stream: Stream) -> list[Example]:
    """Return the first examples of the validation split, cut to the length of a sequence."""
    num_examples = min(config.evaluate.probes, stream.shards.num_records("validation"))
    records = stream.shards.read("validation", 0, num_examples)
    encoder, limit = stream.encoder, config.data.sequence_tokens
    fitting = [
        example if len(example.input_ids) <= limit else encoder.truncate(example, limit)
        for example in encoder.encode_batch([(record.svg, record.caption) for record in records])
    ]
    examples = [example for example in fitting if example is not None]
    if records and not examples:
        raise UserError(
            f"evaluate.probes={config.evaluate.probes}: the captions of these drawings do not fit "
            f"into data.sequence_tokens={limit}: raise it, or set evaluate.probes=0"
        )
    return examples


def _caption(
    config: Config, stream: Stream, objective: CaptionLoss, records: Sequence[ShardRecord]
) -> list[Output]:
    encoder, settings = stream.encoder, config.evaluate
    prompts = [encoder.encode_prompt(record.svg, config.data.sequence_tokens) for record in records]
    device = objective.model.device
    with evaluation_mode(objective), autocast(device, objective.dtype):
        return generate_outputs(
            objective.model,
            encoder,
            prompts,
            batch_size=settings.generation_batch_size,
            max_new_tokens=settings.max_new_tokens,
            max_cache_tokens=settings.max_cache_tokens,
        )


def _write_table(records: Sequence[ShardRecord], outputs: Sequence[Output]) -> str:
    """Return the captions as CSV, which MLflow's page shows as a table."""
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["id", "reference", "caption", "is_finished"])
    for record, output in zip(records, outputs, strict=True):
        table.writerow([record.id, record.caption, output.text, output.is_finished])
    return text.getvalue()
