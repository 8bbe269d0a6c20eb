"""Learning curves of the tiny model on procedural scenes, in one process without Ray."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from app.config import load_config
from app.gemma.activation_checkpoint import apply_memory_config
from app.gemma.base_model import TINY
from app.gemma.config import LoraConfig, MemoryConfig, ModelConfig, QuantizationConfig
from app.gemma.load import CaptionLoss, add_lora, evaluation_mode, load_base_model
from app.training.config import OptimConfig
from app.training.optim import build_optimizer, compute_learning_rate
from data_pipeline.config import PrepareConfig
from data_pipeline.prepare.dataset import prepare_dataset
from data_pipeline.shards import open_shards
from data_pipeline.stream.encode import PromptEncoder
from data_pipeline.stream.pack import pack_examples

Batch = dict[str, Tensor]
SEQUENCE_TOKENS = 256
SCENES = "scenes:700:77:list"
"""Scenes with captions in a style that the tiny model was not trained on."""


@dataclass(frozen=True)
class Task:
    """Packed sequences of 256 tokens; one is one optimizer step."""

    train: list[Batch]
    validation: list[Batch]


def build_task(folder: Path, *, num_steps: int, num_validation: int) -> Task:
    """Prepare scenes in the folder, and return sequences of their train and validation split."""
    prepare_dataset(
        [SCENES],
        PrepareConfig(out=str(folder), validation_share=0.06, test_share=0),
        progress=False,
    )
    shards = open_shards(str(folder))
    encoder = PromptEncoder(str(TINY), load_config("demo").data.system_prompt)

    def pack(split: str, num_records: int) -> list[Batch]:
        records = shards.read(split, 0, min(num_records, shards.num_records(split)))
        examples = [encoder.encode(record.svg, record.caption) for record in records]
        fitting = [each for each in examples if len(each.input_ids) <= SEQUENCE_TOKENS]
        names = ("input_ids", "position_ids", "targets")
        return [
            {name: torch.from_numpy(getattr(sequence, name))[None].long() for name in names}
            for sequence in pack_examples(fitting, SEQUENCE_TOKENS)
        ]

    # about two documents fit into a sequence
    train = pack("train", 3 * num_steps)[:num_steps]
    validation = pack("validation", 3 * num_validation)[:num_validation]
    assert (len(train), len(validation)) == (num_steps, num_validation)
    return Task(train, validation)


def record_curve(
    task: Task, lora: LoraConfig, optim: OptimConfig, *, eval_steps: int, seed: int = 0
) -> list[tuple[int, float]]:
    """Train an adapter on all sequences of the task, one a step.

    Return (step, validation loss in nats per target) every `eval_steps` steps, as a job computes
    it: the schedule of `optim`, gradients clipped, fp32 on an NF4 base model.
    """
    base_model = load_base_model(
        ModelConfig(name="tiny"),
        QuantizationConfig(),
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    objective = CaptionLoss(add_lora(base_model, lora, seed=seed), torch.float32).train()
    apply_memory_config(base_model, MemoryConfig(gradient_checkpointing=False))
    optimizer = build_optimizer(objective, optim)
    trained = [each for each in objective.parameters() if each.requires_grad]

    curve = []
    num_steps = len(task.train)
    for step, batch in enumerate(task.train, start=1):
        # step
        rate = compute_learning_rate(optim, (step - 0.5) / num_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss_sum, num_targets = objective(**batch)
        (loss_sum / num_targets).backward()
        torch.nn.utils.clip_grad_norm_(trained, optim.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

        # evaluate
        if step % eval_steps == 0:
            curve.append((step, _evaluate(objective, task.validation)))
    return curve


def _evaluate(objective: CaptionLoss, batches: Sequence[Batch]) -> float:
    loss_sum = num_targets = 0.0
    with evaluation_mode(objective):
        for batch in batches:
            batch_loss, count = objective(**batch)
            loss_sum += float(batch_loss)
            num_targets += float(count)
    return loss_sum / num_targets
