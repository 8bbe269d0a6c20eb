"""Simulate the memory peaks of an evaluation: the loss of packed sequences, and captions."""

import dataclasses
import functools
from collections.abc import Callable

import torch
from transformers import Gemma2Config

from app.evaluation.caption_cache import CaptionCache
from app.evaluation.config import EvaluateConfig
from app.evaluation.generate import MIN_PACKED_TOKENS, read_prompts, read_tokens
from app.gemma.config import MemoryConfig
from app.gemma.load import DTYPES, CaptionLoss, autocast, evaluation_mode, unwrap_gemma
from app.gemma.published import load_model_config_offline
from app.memory_plan.peak import (
    FEW_LAYERS,
    MORE_LAYERS,
    TRAINING_DEVICE,
    StepSettings,
    build_fake_objective,
    make_fake_batch,
    with_layers,
)
from app.memory_plan.simulate import MemoryTimeline, list_frozen_tensors
from app.training.config import OptimConfig
from app.training.step import move_to_device


def simulate_loss_bytes(settings: StepSettings, evaluate: EvaluateConfig) -> int:
    """Return the peak of the evaluation loss of one micro-batch, with weights and adapter.

    The settings of training that an evaluation does not read have one value here, so that the
    search for settings that fit simulates an evaluation once.
    """
    train = settings.train.model_copy(update={"micro_batch_size": evaluate.micro_batch_size})
    memory = MemoryConfig(embedding=settings.memory.settings.embedding)
    return _simulate_loss(
        dataclasses.replace(
            settings, train=train, memory=memory, optim=OptimConfig(), num_workers=1
        )
    )


@functools.cache
def _simulate_loss(settings: StepSettings) -> int:
    def compute_loss(objective: CaptionLoss, _timeline: MemoryTimeline) -> None:
        objective(**move_to_device(make_fake_batch(settings), TRAINING_DEVICE))

    return _simulate(settings, compute_loss)


def simulate_caption_bytes(settings: StepSettings, evaluate: EvaluateConfig) -> int:
    """Return the peak of captioning, with weights and adapter.

    The cache has the most tokens that it may have. The longest packed sequence of prompts is read
    into it; then it is divided among the largest number of short prompts.
    """
    model = settings.model.model_copy(update={"attention": "blockwise"})  # as generate_captions
    settings = dataclasses.replace(settings, model=model)
    dtype = DTYPES[settings.train.precision]
    batch_size = evaluate.generation_batch_size
    longest = settings.sequence_tokens + evaluate.max_new_tokens
    num_slots = max(longest, min(evaluate.max_cache_tokens, batch_size * longest))
    packed_tokens = max(settings.sequence_tokens, min(MIN_PACKED_TOKENS, num_slots))
    num_prompts = min(batch_size, max(1, num_slots // (evaluate.max_new_tokens + 1)))

    def caption(objective: CaptionLoss, timeline: MemoryTimeline) -> None:
        gemma = unwrap_gemma(objective.model)
        with autocast(TRAINING_DEVICE, dtype):
            read_prompts(gemma, CaptionCache(1, num_slots), [[0] * packed_tokens])
            timeline.begin_stage("tokens")
            tokens = torch.zeros(num_prompts, 1, dtype=torch.int64)
            cache = CaptionCache(num_prompts, num_slots // num_prompts)
            read_tokens(gemma, cache, tokens, torch.zeros_like(tokens))

    return _simulate(settings, caption)


def _simulate(settings: StepSettings, run: Callable[[CaptionLoss, MemoryTimeline], None]) -> int:
    """Return the peak (bytes) of a run without gradients.

    Every pair of layers adds the same bytes to the peak of a stage: its weights, its adapter and
    its part of the cache.
    """

    def find_peaks(model: Gemma2Config) -> list[float]:
        with build_fake_objective(settings, model) as (objective, timeline):
            trained = [p for p in objective.parameters() if p.requires_grad]
            timeline.start({"weights": list_frozen_tensors(objective), "lora": trained})
            with evaluation_mode(objective):
                run(objective, timeline)
            return [live.sum(axis=1).max() for live in timeline.by_stage().values()]

    model = load_model_config_offline(settings.model)
    num_layers = model.num_hidden_layers
    if num_layers <= MORE_LAYERS or num_layers % 2:
        return round(max(find_peaks(model)))
    few, more = (find_peaks(with_layers(model, n)) for n in (FEW_LAYERS, MORE_LAYERS))
    factor = (num_layers - FEW_LAYERS) / (MORE_LAYERS - FEW_LAYERS)
    return round(max(a + (b - a) * factor for a, b in zip(few, more, strict=True)))
