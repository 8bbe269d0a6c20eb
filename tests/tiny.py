"""A very small real Gemma 2, and sequences to train it on.

It has both softcaps, sliding window, grouped queries and tied embeddings.
"""

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM

from app.config import Config
from app.gemma.activation_checkpoint import apply_memory_config
from app.gemma.base_model import pin_base_model
from app.gemma.config import LoraConfig, ModelConfig, QuantizationConfig
from app.gemma.load import CaptionLoss, add_lora, load_base_model
from app.jobs.trained_model import save_config
from app.training.checkpoint import STATE_FILE
from data_pipeline.stream.encode import IGNORE_INDEX, Example
from data_pipeline.stream.pack import pack_examples
from data_pipeline.stream.token_stream import Position

VOCABULARY = 96
CPU = torch.device("cpu")


def gemma2_config(**changes):
    return Gemma2Config(
        **{
            "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8,
            "attn_logit_softcapping": 5.0, "final_logit_softcapping": 10.0,
            "max_position_embeddings": 256, "tie_word_embeddings": True,
            "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
            "attn_implementation": "eager", **changes,
        }
    )  # fmt: skip


def save_model(folder: Path, **changes) -> str:
    torch.manual_seed(0)
    Gemma2ForCausalLM(gemma2_config(**changes)).save_pretrained(folder)
    return str(folder)


def objective(
    folder: str,
    *,
    kind="nf4",
    double_quant=True,
    dtype=torch.float32,
    attention="eager",
    memory=None,
    device=CPU,
    **lora,
) -> CaptionLoss:
    """Return the loss of a saved model with a new adapter.

    Without a MemoryConfig transformers' and PEFT's modules stay as they are.
    """
    base_model = load_base_model(
        ModelConfig(name=folder, attention=attention),
        QuantizationConfig(kind=kind, double_quant=double_quant),
        device=device,
        dtype=dtype,
    )
    model = add_lora(base_model, LoraConfig(**{"rank": 4, "alpha": 8, **lora}), seed=3)
    if memory is not None:
        apply_memory_config(base_model, memory)
    return CaptionLoss(model, dtype).train()


def examples(num: int, *, seed: int = 0) -> list[Example]:
    """Return learnable examples: a counter with a random start, with targets in its second half."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(num):
        length = int(random.integers(8, 20))
        ids = ((random.integers(3, 60) + np.arange(length)) % VOCABULARY).astype(np.int32)
        targets = np.full(length, IGNORE_INDEX, np.int32)
        targets[length // 2 : -1] = ids[length // 2 + 1 :]
        made.append(Example(ids, targets))
    return made


def batches(
    num: int,
    *,
    micro_batch_size: int = 1,
    rank: int = 0,
    num_workers: int = 1,
    seed: int = 0,
    sequence_tokens: int = 48,
):
    """Return (batch, position) pairs as the stream does.

    The sequences of one micro-batch of all workers are one shuffle block.
    """
    packed = pack_examples(examples(num, seed=seed), sequence_tokens)
    group = micro_batch_size * num_workers
    made = []
    for start in range(0, len(packed) - len(packed) % group, group):
        own = packed[start + rank * micro_batch_size : start + (rank + 1) * micro_batch_size]
        batch = {
            "input_ids": _stack([s.input_ids for s in own], sequence_tokens),
            "position_ids": _stack([s.position_ids for s in own], sequence_tokens),
            "targets": _stack([s.targets for s in own], sequence_tokens, fill=IGNORE_INDEX),
            "num_tokens": np.array([len(s.input_ids) for s in own]),
            "num_examples": np.array([len(s.members) for s in own]),
            "num_dropped": np.zeros(len(own), np.int32),
            "num_truncated": np.zeros(len(own), np.int32),
        }
        made.append((batch, Position(0, start + group, len(packed))))
    return made


def _stack(columns, length, *, fill=0):
    padded = [np.pad(column, (0, length - len(column)), constant_values=fill) for column in columns]
    return np.stack(padded)


class Recorder:
    """A TrainContext that keeps every metric and report."""

    def __init__(self, rank=0, size=1, device=CPU):
        self.rank, self.size, self.device = rank, size, device
        self.metrics, self.reports, self.states = [], [], []

    def record(self, step, metrics):
        self.metrics.append((step, dict(metrics)))

    def report(self, state, eval_loss, *, save):
        self.reports.append((state.step, eval_loss, save))
        self.states.append(state)

    def losses(self):
        return [metrics["train/loss"] for _, metrics in self.metrics if "train/loss" in metrics]


def save_trained_model(folder: Path, config: Config) -> str:
    """Write a checkpoint of a job on the shipped tiny model, with a random adapter."""
    base_model = load_base_model(config.model, config.quantization, device=CPU, dtype=torch.float32)
    model = add_lora(base_model, config.lora, seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)

    model.save_pretrained(str(folder))
    pin = pin_base_model(config.model, config.quantization)
    (folder / STATE_FILE).write_text(json.dumps({"state": {"step": 7}, "base": pin}))
    save_config(folder, config)
    return str(folder)


def run_two_processes(work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Run `work(rank, *arguments)` in two processes, forked from one that has imported this."""
    multiprocessing.set_forkserver_preload([__name__])
    torch.multiprocessing.start_processes(work, arguments, nprocs=2, start_method="forkserver")
