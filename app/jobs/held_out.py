"""The held-out drawings with their prompts, and the captions of the baselines."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import ray
import ray.exceptions
import torch

from app.config import Config
from app.evaluation.behaviour import Output
from app.evaluation.bootstrap import Array
from app.evaluation.clip import compute_clip_cosines
from app.evaluation.instructions import InstructionPrompt, build_instruction_prompts
from app.evaluation.metrics import find_best_constant_caption
from app.evaluation.nearest import MAX_CANDIDATES, copy_nearest_captions
from app.evaluation.scores import CONSTANT, NEAREST
from data_pipeline.shards import ShardRecord, Shards
from data_pipeline.stream.token_stream import Stream

READ_RECORDS = 1024
"""Training records that are read at a time."""


@dataclass(frozen=True)
class HeldOut:
    """The drawings that are captioned, and the prompts of both models (ids)."""

    records: list[ShardRecord]
    caption_prompts: list[list[int]]
    """One for each record."""
    too_long: list[str]
    """Ids of the drawings whose prompts are too long."""
    instructions: list[InstructionPrompt]
    instruction_prompts: list[list[int]]
    """One for each of `instructions`."""

    @property
    def prompts(self) -> list[list[int]]:
        """All prompts: those of the captions, then those with instructions."""
        return [*self.caption_prompts, *self.instruction_prompts]

    def list_captions(self, outputs: Sequence[Output]) -> Sequence[Output]:
        """Return the captions among the outputs of all prompts."""
        return outputs[: len(self.caption_prompts)]

    def list_answers(self, outputs: Sequence[Output]) -> list[str]:
        """Return the answers to instructions among the outputs of all prompts."""
        return [output.text for output in outputs[len(self.caption_prompts) :]]


def read_held_out(config: Config, stream: Stream) -> HeldOut:
    """Return the first drawings of the validation split, with their prompts.

    As in training, a drawing that is too long is dropped or cut (`data.too_long`).
    """
    evaluate, limit = config.evaluate, config.data.sequence_tokens
    num_records = min(evaluate.max_captions, stream.shards.num_records("validation"))
    records = stream.shards.read("validation", 0, num_records)
    encoder = stream.encoder

    # captions
    is_too_long = [len(encoder.encode_prompt(record.svg)) > limit for record in records]
    too_long = [record.id for record, long in zip(records, is_too_long, strict=True) if long]
    if config.data.too_long == "drop":
        records = [record for record, long in zip(records, is_too_long, strict=True) if not long]
    caption_prompts = [encoder.encode_prompt(record.svg, limit) for record in records]

    # instructions
    svgs = [record.svg for record in records[: evaluate.max_instruction_prompts]]
    instructions = build_instruction_prompts(svgs, seed=0)
    instruction_prompts = [
        encoder.encode_prompt(one.svg, limit, system_prompt=one.add_to(config.data.system_prompt))
        for one in instructions
    ]
    return HeldOut(records, caption_prompts, too_long, instructions, instruction_prompts)


def make_baselines(shards: Shards, records: Sequence[ShardRecord]) -> dict[str, list[str]]:
    """Return the captions of the baselines by kind: one for each record."""
    references = [record.caption for record in records]
    constant, _ = find_best_constant_caption(shards.read_captions("train"), references)
    print(f"drawing thumbnails of {_count_candidates(shards)} training drawings", flush=True)
    nearest = copy_nearest_captions([record.svg for record in records], _read_pairs(shards))
    return {CONSTANT: [constant] * len(records), NEAREST: nearest}


def _count_candidates(shards: Shards) -> int:
    return min(MAX_CANDIDATES, shards.num_records("train"))


def _read_pairs(shards: Shards) -> Iterator[tuple[str, str]]:
    """Yield (drawing, caption) of the first training records."""
    num_records = _count_candidates(shards)
    for start in range(0, num_records, READ_RECORDS):
        for record in shards.read("train", start, min(start + READ_RECORDS, num_records)):
            yield record.svg, record.caption


def measure_clip(
    config: Config, svgs: Sequence[str], captions: Mapping[str, Sequence[str]]
) -> dict[str, Array]:
    """Return the CLIP cosines of each kind of captions; none without `evaluate.clip_model`.

    The task takes the resources of a training worker.
    """
    scaling, name = config.scaling, config.evaluate.clip_model
    if name is None or not svgs:
        return {}
    device = torch.device("cuda" if scaling.use_gpu else "cpu")
    task = ray.remote(num_cpus=scaling.cpus_per_worker, num_gpus=scaling.reserved_gpus)(
        compute_clip_cosines
    )
    try:
        cosines: dict[str, Array] = ray.get(task.remote(name, svgs, captions, device))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error  # the original error, without the traceback of the task
    return cosines
