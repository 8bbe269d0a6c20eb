"""Compare one optimizer step of QLoRA with Hugging Face's libraries, on real icon lengths.

    python -m benchmarks.step --json outputs/bench/step.json

`default` has Trainer's defaults: a batch padded to its longest document, eager attention, and
logits of every position. `expert` has documents joined without padding (`position_ids`), every
layer recomputed, and logits only of positions with a label. All candidates have the same bf16
Gemma 2 on an NF4 base model, the same LoRA and AdamW, and PEFT's and bitsandbytes' layers. Speed is
the number of tokens in documents a CPU second, without padding. Memory is the growth in one step of
one document of 4,096 tokens.
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

from app.config import load_config
from app.gemma.activation_checkpoint import apply_memory_config
from app.gemma.config import LoraConfig, MemoryConfig, ModelConfig, QuantizationConfig
from app.gemma.load import CaptionLoss, add_lora, autocast, load_base_model, unwrap_gemma
from app.gemma.loss import IGNORE_INDEX, apply_softcap
from app.jobs.memory_policy import choose_memory, get_host_limit
from app.training.config import OptimConfig
from app.training.optim import build_optimizer
from benchmarks.corpus import open_corpus
from benchmarks.measure import medians, one_thread, peak_bytes, write
from data_pipeline.config import DataConfig
from data_pipeline.stream.encode import Example, PromptEncoder
from data_pipeline.stream.pack import pack_examples
from data_pipeline.svg import SVGRefused, canonicalise

CPU, DTYPE = torch.device("cpu"), torch.bfloat16
SEQUENCE_TOKENS, LONG = 1024, 4096
"""Length of the sequences of the time measurement and of the document of the memory measurement."""
Batch = dict[str, Tensor]
T = TypeVar("T")


@dataclass(frozen=True)
class Candidate:
    """One way of training."""

    attention: Literal["eager", "blockwise"] = "blockwise"
    memory: MemoryConfig | None = None
    """Argument of `apply_memory_config`; None: transformers' and PEFT's modules are unchanged."""
    checkpointing: bool = False
    """Use transformers' checkpointing."""
    theirs: bool = False
    """Use the loss of transformers."""


KEPT, WHOLE = MemoryConfig(gradient_checkpointing=False), MemoryConfig(tile_tokens=LONG)
CANDIDATES = {
    "default": Candidate("eager", theirs=True),
    "expert": Candidate("eager", checkpointing=True, theirs=True),
    "ours": Candidate(memory=MemoryConfig()),  # as memory.policy chooses on this machine
    "tiled": Candidate(memory=MemoryConfig(tile_tokens=1024)),
    # One technique after the other, for the ablation; all have our attention and loss.
    "kept": Candidate(),
    "kept, lean": Candidate(memory=KEPT),
    "checkpointed": Candidate(checkpointing=True),
    "recomputed, lean": Candidate(memory=WHOLE),
}


@dataclass(frozen=True)
class Case:
    """A model and its documents."""

    words: int
    documents: int
    """Number of documents in one step; Trainer's `per_device_train_batch_size` is 8."""
    longest: int
    """Length above which documents are dropped (tokens)."""
    candidates: tuple[str, ...]


CASES = {
    # The head is a tenth of the matmul parameters, as in the 9B.
    "9b_share": Case(
        words=3072, documents=8, longest=SEQUENCE_TOKENS, candidates=tuple(CANDIDATES)
    ),
    # `default` has the logits of all positions at once: they must fit into this machine.
    "256k": Case(words=256_000, documents=4, longest=320, candidates=("default", "expert", "ours")),
}


def save_model(words: int, folder: Path) -> str:
    """Save a random Gemma 2 with the 9B's proportions and 12.4 M parameters in its layers."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=words,
        hidden_size=448,
        intermediate_size=1792,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=128,
        query_pre_attn_scalar=128,
        sliding_window=4096,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
    )
    Gemma2ForCausalLM(config).to(DTYPE).save_pretrained(folder)
    return str(folder)


def documents(case: Case, folder: Path) -> tuple[list[Example], str]:
    """Return examples with the lengths and labels of the corpus; token ids are random."""
    corpus = open_corpus(folder, 4000)
    encoder = PromptEncoder(corpus.tokenizer, DataConfig().system_prompt)
    random = np.random.default_rng(0)

    chosen: list[Example] = []
    records = pq.read_table(corpus.parquet).to_pylist()
    for i in random.permutation(len(records)):
        try:
            example = encoder.encode(canonicalise(records[i]["svg"]), records[i]["caption"])
        except SVGRefused:
            continue
        if len(example.input_ids) > case.longest:
            continue
        ids = random.integers(3, case.words, len(example.input_ids)).astype(np.int32)
        chosen.append(Example.from_ids(ids, example.num_prompt_tokens))
        if len(chosen) == case.documents:
            break

    return chosen, corpus.description


def padded(examples: Sequence[Example]) -> list[Batch]:
    """Return one batch as a collator for causal language models: the model shifts the labels."""
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
    """Return sequences of at most SEQUENCE_TOKENS tokens, or of one longer document, unpadded."""
    limit = max(SEQUENCE_TOKENS, *(len(example.input_ids) for example in examples))
    names = ("input_ids", "position_ids", "targets")
    return [
        {name: torch.from_numpy(getattr(sequence, name))[None].long() for name in names}
        for sequence in pack_examples(examples, limit)
    ]


def default_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Compute the loss inside the model, over all positions."""
    with autocast(CPU, DTYPE):
        loss: Tensor = model(**batch, use_cache=False).loss
    return loss


def expert_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Compute the summed loss from the logits of labelled positions."""
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


def choose_for(model: str) -> MemoryConfig:
    """Return the memory settings that `memory.policy=auto` chooses for a job on this machine."""
    config = load_config(
        None,
        {
            "model.name": model,
            "train.precision": "bf16",
            "data.sequence_tokens": SEQUENCE_TOKENS,
            "scaling.num_workers": 1,
        },
    )
    return choose_memory(config, get_host_limit(config)).memory


def step(name: str, folder: str, examples: Sequence[Example]) -> Callable[[], float]:
    """Return one optimizer step of a candidate on all documents; it returns the loss before it."""
    candidate = CANDIDATES[name]

    # model
    base = load_base_model(
        ModelConfig(name=folder, attention=candidate.attention),
        QuantizationConfig(),
        device=CPU,
        dtype=DTYPE,
    )
    model = add_lora(base, LoraConfig(rank=16), seed=0).train()
    objective, optimizer = CaptionLoss(model, DTYPE), build_optimizer(model, OptimConfig())
    if candidate.memory is not None:
        is_open = candidate.memory == MemoryConfig()
        apply_memory_config(base, choose_for(folder) if is_open else candidate.memory)
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


def measure_case(case: Case, folder: Path) -> dict[str, Any]:
    """Return CPU seconds, tokens a CPU second and first losses (nearly equal) of each candidate."""
    folder.mkdir()
    model = save_model(case.words, folder / "model")
    examples, description = documents(case, folder)
    candidates = {name: step(name, model, examples) for name in case.candidates}
    losses = {name: run() for name, run in candidates.items()}
    seconds = report(f"{case.words} words, seconds", medians(candidates))
    lengths = [len(example.input_ids) for example in examples]
    return {
        "corpus": description,
        "document_tokens": lengths,
        "losses": losses,
        "seconds": seconds,
        "tokens_per_second": {name: sum(lengths) / taken for name, taken in seconds.items()},
    }


def report(label: str, measured: T) -> T:
    """Print a result at once, because the whole benchmark takes minutes; return it."""
    print(label, measured, file=sys.stderr, flush=True)
    return measured


def main() -> None:
    """Run the benchmark and write its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()

    one_thread()
    with tempfile.TemporaryDirectory(prefix="bench-step-") as name:
        cases = {
            case_name: measure_case(case, Path(name) / case_name)
            for case_name, case in CASES.items()
        }
        ids = np.random.default_rng(0).integers(3, CASES["9b_share"].words, LONG).astype(np.int32)
        long = [Example.from_ids(ids, LONG - 64)]
        model = str(Path(name) / "9b_share" / "model")
        extra = {each: report(each, peak_bytes(step, each, model, long)) for each in CANDIDATES}

    figures = {}
    for case_name, measured in cases.items():
        for other in ("default", "expert"):
            seconds = measured["seconds"]
            figures[f"speedup_vs_{other}_{case_name}"] = seconds[other] / seconds["ours"]
    for other in ("default", "expert"):
        figures[f"memory_vs_{other}_{LONG}"] = extra["tiled"] / extra[other]
    write({"figures": figures, "cases": cases, "extra_bytes_4096": extra}, arguments.json)


if __name__ == "__main__":
    main()
