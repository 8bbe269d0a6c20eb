"""One optimizer step of QLoRA on real icon lengths: ours against Hugging Face's libraries as they are used.

    python -m benchmarks.step --json outputs/bench/step.json

`default`: Trainer's defaults: a batch padded to its longest document, eager attention, logits of every position.
`expert`: documents joined without padding (`position_ids`), every layer recomputed, logits where there is a label.
All have the same bf16 Gemma 2 on an NF4 base, the same LoRA and AdamW, and PEFT's and bitsandbytes' layers. Speed is
documents' tokens a CPU second, without padding; memory is what one step of one document of 4,096 tokens adds.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2ForCausalLM

from app.gemma.activation_checkpoint import apply_memory_config
from app.gemma.config import LoraConfig, MemoryConfig, ModelConfig, QuantizationConfig
from app.gemma.load import CaptionLoss, add_lora, autocast, load_base_model, unwrap_gemma
from app.gemma.loss import IGNORE_INDEX, apply_softcap
from app.training.config import OptimConfig
from app.training.optim import build_optimizer
from benchmarks.corpus import open_corpus
from benchmarks.measure import medians, one_thread, peak_bytes, write
from data_pipeline.config import DataConfig
from data_pipeline.stream.encode import Example, PromptEncoder
from data_pipeline.stream.pack import pack_examples
from data_pipeline.svg import SVGRefused, canonicalise

CPU, DTYPE = torch.device("cpu"), torch.bfloat16
ROW_TOKENS, LONG = 1024, 4096
"""Packed rows where time is measured, and the document where memory is (tokens)."""
Batch = dict[str, Tensor]
T = TypeVar("T")


@dataclass(frozen=True)
class Candidate:
    attention: Literal["eager", "blockwise"] = "blockwise"
    memory: MemoryConfig | None = None
    """What `save_memory` is told; None: transformers' and PEFT's modules as they are."""
    checkpointing: bool = False
    """transformers' own."""
    theirs: bool = False
    """The loss as well."""


KEPT, WHOLE = MemoryConfig(gradient_checkpointing=False), MemoryConfig(tile_tokens=LONG)
CANDIDATES = {
    "default": Candidate("eager", theirs=True),
    "expert": Candidate("eager", checkpointing=True, theirs=True),
    "ours": Candidate(memory=MemoryConfig(tile_tokens=1024)),
    # One technique after the other, for the ablation; all have our attention and loss.
    "kept": Candidate(),
    "kept, lean": Candidate(memory=KEPT),
    "checkpointed": Candidate(checkpointing=True),
    "recomputed, lean": Candidate(memory=WHOLE),
}


@dataclass(frozen=True)
class Case:
    words: int
    documents: int
    """In one step; Trainer's `per_device_train_batch_size` is 8."""
    longest: int
    """Longer documents are left out (tokens)."""
    candidates: tuple[str, ...]


CASES = {
    # The head is a tenth of the matmul parameters, as in the 9B.
    "9b_share": Case(words=3072, documents=8, longest=ROW_TOKENS, candidates=tuple(CANDIDATES)),
    # `default` has the logits of all positions at once: they must fit into this machine.
    "256k": Case(words=256_000, documents=4, longest=320, candidates=("default", "expert", "ours")),
}


def save_model(words: int, folder: Path) -> str:
    """A random Gemma 2 with the 9B's proportions, 12.4 M parameters in its layers."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=words, hidden_size=448, intermediate_size=1792, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=128, query_pre_attn_scalar=128, sliding_window=4096,
        attn_logit_softcapping=50.0, final_logit_softcapping=30.0,
    )  # fmt: skip
    Gemma2ForCausalLM(config).to(DTYPE).save_pretrained(folder)
    return str(folder)


def documents(case: Case, folder: Path) -> tuple[list[Example], str]:
    """Examples of the corpus's lengths and labels, spread over all of it; token ids are random."""
    corpus = open_corpus(folder, 4000)
    encoder, random = (
        PromptEncoder(corpus.tokenizer, DataConfig().system_prompt),
        np.random.default_rng(0),
    )
    chosen: list[Example] = []
    rows = pq.read_table(corpus.parquet).to_pylist()
    for i in random.permutation(len(rows)):
        try:
            example = encoder.encode(canonicalise(rows[i]["svg"]), rows[i]["caption"])
        except SVGRefused:
            continue
        if len(example.input_ids) > case.longest:
            continue
        ids = random.integers(3, case.words, len(example.input_ids)).astype(np.int32)
        chosen.append(Example.of(ids, example.num_prompt_tokens))
        if len(chosen) == case.documents:
            break
    return chosen, corpus.says


def padded(examples: Sequence[Example]) -> list[Batch]:
    """One batch as a collator for causal language models makes it: labels are input ids, shifted by the model."""
    longest = max(len(example.input_ids) for example in examples)
    batch = {
        name: torch.zeros(len(examples), longest, dtype=torch.int64)
        for name in ("input_ids", "attention_mask")
    }
    batch["labels"] = torch.full_like(batch["input_ids"], IGNORE_INDEX)
    for i, example in enumerate(examples):
        length = len(example.input_ids)
        ids = torch.from_numpy(example.input_ids).long()
        batch["input_ids"][i, :length], batch["attention_mask"][i, :length] = ids, 1
        batch["labels"][i, example.num_prompt_tokens : length] = ids[example.num_prompt_tokens :]
    return [batch]


def packed(examples: Sequence[Example]) -> list[Batch]:
    """Rows of at most ROW_TOKENS tokens, or of one longer document; each as long as its documents."""
    limit = max(ROW_TOKENS, *(len(example.input_ids) for example in examples))
    names = ("input_ids", "position_ids", "targets")
    return [
        {name: torch.from_numpy(getattr(row, name))[None].long() for name in names}
        for row in pack_examples(examples, limit)
    ]


def default_loss(model: nn.Module, batch: Batch) -> Tensor:
    with autocast(CPU, DTYPE):
        loss: Tensor = model(**batch, use_cache=False).loss
    return loss


def expert_loss(model: nn.Module, batch: Batch) -> Tensor:
    inner = unwrap_gemma(model)
    with autocast(CPU, DTYPE):
        hidden = inner.model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
        ).last_hidden_state
        labelled = batch["targets"] != IGNORE_INDEX
        logits = apply_softcap(
            inner.lm_head(hidden[labelled]), inner.config.final_logit_softcapping
        ).float()
        return nn.functional.cross_entropy(logits, batch["targets"][labelled], reduction="sum")


def step(name: str, folder: str, examples: Sequence[Example]) -> Callable[[], float]:
    """One optimizer step of a candidate on all the documents; returns the loss before it."""
    candidate = CANDIDATES[name]
    base = load_base_model(
        ModelConfig(name=folder, attention=candidate.attention),
        QuantizationConfig(),
        device=CPU,
        dtype=DTYPE,
    )
    model = add_lora(base, LoraConfig(rank=16), seed=0).train()
    objective, optimizer = CaptionLoss(model, DTYPE), build_optimizer(model, OptimConfig())
    if candidate.memory is not None:
        apply_memory_config(base, candidate.memory)
    if candidate.checkpointing:
        base.activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": False}
        )
    num_labels = sum(len(example.input_ids) - example.num_prompt_tokens for example in examples)

    def loss(batch: Batch) -> Tensor:
        if name == "default":
            return default_loss(model, batch)
        return (
            expert_loss(model, batch) if candidate.theirs else objective(**batch)[0]
        ) / num_labels

    def run() -> float:
        total = 0.0
        for batch in padded(examples) if name == "default" else packed(examples):
            part = loss(batch)
            part.backward()
            total += float(part.detach())
        optimizer.step()
        optimizer.zero_grad()
        return total

    return run


def timed(case: Case, folder: Path) -> dict[str, Any]:
    """CPU seconds and tokens a CPU second of each candidate; the first losses, which must be alike."""
    folder.mkdir()
    model = save_model(case.words, folder / "model")
    examples, says = documents(case, folder)
    candidates = {name: step(name, model, examples) for name in case.candidates}
    losses = {name: run() for name, run in candidates.items()}
    seconds = say(f"{case.words} words, seconds", medians(candidates))
    lengths = [len(example.input_ids) for example in examples]
    return {
        "corpus": says, "document_tokens": lengths, "losses": losses, "seconds": seconds,
        "tokens_per_second": {name: sum(lengths) / taken for name, taken in seconds.items()},
    }  # fmt: skip


def say(what: str, measured: T) -> T:
    """To the screen at once: the whole takes minutes."""
    print(what, measured, file=sys.stderr, flush=True)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    one_thread()
    with tempfile.TemporaryDirectory(prefix="bench-step-") as name:
        cases = {
            case_name: timed(case, Path(name) / case_name) for case_name, case in CASES.items()
        }
        ids = np.random.default_rng(0).integers(3, CASES["9b_share"].words, LONG).astype(np.int32)
        long = [Example.of(ids, LONG - 64)]
        model = str(Path(name) / "9b_share" / "model")
        extra = {each: say(each, peak_bytes(step, each, model, long)) for each in CANDIDATES}
    figures = {
        f"speedup_vs_{other}_{case}": measured["seconds"][other] / measured["seconds"]["ours"]
        for case, measured in cases.items() for other in ("default", "expert")
    } | {f"memory_vs_{other}_{LONG}": extra["ours"] / extra[other] for other in ("default", "expert")}  # fmt: skip
    write({"figures": figures, "cases": cases, "extra_bytes_4096": extra}, arguments.json)


if __name__ == "__main__":
    main()
