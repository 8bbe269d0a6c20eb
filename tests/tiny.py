"""A very small real Gemma 2 (both softcaps, sliding window, grouped queries, tied) and rows to feed it."""

from pathlib import Path

import numpy as np
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from app.gemma.activation_checkpoint import apply_memory_config
from app.gemma.config import LoraConfig, ModelConfig, QuantizationConfig
from app.gemma.load import CaptionLoss, add_lora, load_base_model
from data_pipeline.stream.encode import Example
from data_pipeline.stream.pack import pack_examples
from data_pipeline.stream.token_stream import Position

VOCABULARY = 96
CPU = torch.device("cpu")


def gemma2_config(**changes):
    return Gemma2Config(
        **{
            "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "query_pre_attn_scalar": 32,
            "sliding_window": 8, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 10.0,
            "max_position_embeddings": 256, "tie_word_embeddings": True, "pad_token_id": 0, "eos_token_id": 1,
            "bos_token_id": 2, "attn_implementation": "eager", **changes,
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
    """memory: a MemoryConfig to save activations by; None: transformers' and PEFT's modules as they are."""
    base = load_base_model(
        ModelConfig(name=folder, attention=attention),
        QuantizationConfig(kind=kind, double_quant=double_quant),
        device=device,
        dtype=dtype,
    )
    model = add_lora(base, LoraConfig(**{"rank": 4, "alpha": 8, **lora}), seed=3)
    if memory is not None:
        apply_memory_config(base, memory)
    return CaptionLoss(model, dtype).train()


def examples(num: int, *, seed: int = 0) -> list[Example]:
    """Learnable documents: a counter with a random start, trained on in its second half."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(num):
        length = int(random.integers(8, 20))
        ids = ((random.integers(3, 60) + np.arange(length)) % VOCABULARY).astype(np.int32)
        targets = np.full(length, -100, np.int32)
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
    """(batch, position) pairs as the stream gives them; every global micro-batch is one window's rows."""
    rows = pack_examples(examples(num, seed=seed), sequence_tokens)
    group = micro_batch_size * num_workers
    made = []
    for start in range(0, len(rows) - len(rows) % group, group):
        own = rows[start + rank * micro_batch_size : start + (rank + 1) * micro_batch_size]
        pad = [(0, sequence_tokens - len(row.input_ids)) for row in own]
        made.append(
            (
                {
                    "input_ids": np.stack(
                        [np.pad(r.input_ids, p) for r, p in zip(own, pad, strict=True)]
                    ),
                    "position_ids": np.stack(
                        [np.pad(r.position_ids, p) for r, p in zip(own, pad, strict=True)]
                    ),
                    "targets": np.stack(
                        [
                            np.pad(r.targets, p, constant_values=-100)
                            for r, p in zip(own, pad, strict=True)
                        ]
                    ),
                    "num_tokens": np.array([len(r.input_ids) for r in own]),
                    "num_examples": np.array([len(r.members) for r in own]),
                    "num_dropped": np.zeros(len(own), np.int32),
                    "num_truncated": np.zeros(len(own), np.int32),
                },
                Position(0, start + group, len(rows)),
            )
        )
    return made


class Recorder:
    """A World that keeps what it is told."""

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
