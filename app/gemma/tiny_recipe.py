"""Makes the shipped tiny Gemma 2: its tokenizer, and a base trained in full on procedural drawings.

    python -m app.gemma.tiny_recipe --out app/gemma/tiny

About half an hour on one core. The base learns to say what is drawn in several caption styles, so that fine-tuning
has a style to learn and not a language. It never sees an icon, nor the `list` style of the learning benchmark, nor
a composition that a split by concept holds out.
"""

import argparse
import copy
import itertools
import json
import math
import time
from collections.abc import Iterator
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

from app.gemma.loss import IGNORED, softcap
from data_pipeline.config import DataConfig
from data_pipeline.drawings import line_drawings
from data_pipeline.encode import PromptEncoder
from data_pipeline.pack import pack
from data_pipeline.rows import split_of
from data_pipeline.scenes import BASE_STYLES, scenes
from data_pipeline.svg import canonicalise

VOCABULARY = 2048
PRE_TOKEN = r'[- ]?\d{1,3}| [\w:-]+="| ?\p{L}+| ?[^\s\p{L}\d]+?(?=-?\d|[\s\p{L}]|$)|\s'
"""A number of up to three digits with its sign or space, the name of an attribute, a word, punctuation."""
CONTROL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
SYSTEM: str = DataConfig.model_fields["system"].default
SEED = 20_261_122
VALIDATION_SHARE = 0.05
ROW_TOKENS = 256  # longer rows only pay for attention across documents
LABEL_SMOOTHING = 0.05


class Phase(NamedTuple):
    """Part of the training, with an optimizer and drawings of its own."""

    steps: int
    peak: float  # learning rate
    line_share: float  # of line drawings among all
    focus: float  # exponent of the focal loss


PHASES = (Phase(8_000, 2e-3, 0.5, 0.0), Phase(2_000, 2e-3, 0.1, 2.0))
"""What is drawn, its colour, its size and its pen are learnt in the first, the relations in the second."""
BATCH_ROWS = 8


def train_tokenizer() -> Tokenizer:
    """Byte-level BPE over the pre-tokens of PRE_TOKEN, learnt from procedural drawings and icon captions."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKEN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(CONTROL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_tokenizer_corpus(), trainer)
    return tokenizer


def _tokenizer_corpus() -> Iterator[str]:
    # Coordinates are what a drawing consists of: each grid value up to 256 becomes one token, in every form.
    grid = "".join(f"h{n} {n}-{n}" for n in range(257))
    yield from itertools.repeat(grid, 2_000)
    yield from itertools.repeat(f"user\n{SYSTEM}\n\nmodel\n", 1_000)
    for style in BASE_STYLES:
        for row in scenes(500, seed=SEED, style=style):
            yield f"{row.svg!s}\n{row.caption}"
    for row in line_drawings(1_000, seed=SEED):
        yield f"{canonicalise(row.svg)}\n{row.caption}"
    for icon in json.loads((resources.files("py_phosphor_icons") / "search" / "metadata.json").read_text()):
        words = [icon["name"].replace("-", " "), *icon["categories"], *icon["tags"]]
        for weight in (
            "thin hairline",
            "light fine",
            "regular medium",
            "bold heavy",
            "solid filled",
            "duotone tint",
        ):
            yield f"A {weight} icon of {', '.join(words).lower()}, drawn in outlines, from the category, about and."
        yield '<path opacity=".2" fill="currentColor" d="m"/>'


def drawn_rows(encoder: PromptEncoder, *, seed: int, line_share: float) -> Iterator[dict[str, Tensor]]:
    """Endless packed rows [ROW_TOKENS] of fresh drawings from the training side, that share of them line drawings."""
    for chunk in itertools.count():
        each = seed + chunk * len(BASE_STYLES)
        num_scenes = int(1024 * (1 - line_share)) // len(BASE_STYLES)
        styled = (scenes(num_scenes, seed=each + k, style=style) for k, style in enumerate(BASE_STYLES))
        drawn = chain(line_drawings(int(1024 * line_share), seed=each), *styled)
        rows = [row for row in drawn if split_of(row.concept, seed=0, validation_share=VALIDATION_SHARE) == "train"]
        pairs = [(canonicalise(row.svg), row.caption) for row in rows]
        packed = pack([e for e in encoder.encode_batch(pairs) if len(e.input_ids) <= ROW_TOKENS], ROW_TOKENS)
        for i in np.random.default_rng((seed, chunk)).permutation(len(packed)):
            gap = ROW_TOKENS - len(packed[i].input_ids)
            yield {
                "input_ids": torch.from_numpy(np.pad(packed[i].input_ids, (0, gap))).long(),
                "position_ids": torch.from_numpy(np.pad(packed[i].position_ids, (0, gap))).long(),
                "targets": torch.from_numpy(np.pad(packed[i].targets, (0, gap), constant_values=IGNORED)).long(),
            }


def tiny_config() -> Gemma2Config:
    """Gemma 2's architecture at 2 M parameters: both softcaps, sliding window, grouped queries, tied embeddings."""
    return Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=576,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        query_pre_attn_scalar=64,
        sliding_window=256,
        max_position_embeddings=8192,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )


def loss_of(model: Gemma2ForCausalLM, batch: dict[str, Tensor], focus: float) -> Tensor:
    """Mean cross-entropy (nats per caption token), with labels smoothed over the vocabulary, weighted by
    (1 - p)^focus where p is the probability of the token (focal loss, Lin et al. 2017): what is not known yet counts.

    Without smoothing the logits of words that no caption has end at the softcap's floor, from which fine-tuning on
    other captions must first dig them out, at a rate that ruins the rest.
    """
    where = batch["targets"] != IGNORED
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
        ).last_hidden_state
        logits = model.lm_head(hidden[where])
    logits = softcap(logits.float(), model.config.final_logit_softcapping)
    targets = batch["targets"][where]
    losses = cross_entropy(logits, targets, label_smoothing=LABEL_SMOOTHING, reduction="none")
    known = logits.detach().softmax(dim=-1).gather(1, targets[:, None])[:, 0]
    weights = (1 - known) ** focus
    return (losses * weights).sum() / weights.sum()


def train_base(encoder: PromptEncoder, out: Path, number: int) -> None:
    """AdamW on caption tokens only; linear warm-up over 2 %, then cosine to a tenth of the peak; saved as bf16.

    Phase 0 starts from random weights, a later one from those in `out`.
    """
    steps, peak, line_share, focus = PHASES[number]
    torch.manual_seed(SEED)
    model = (
        Gemma2ForCausalLM.from_pretrained(out, attn_implementation="eager")
        if number
        else Gemma2ForCausalLM._from_config(tiny_config(), attn_implementation="eager")
    ).float()
    print(f"phase {number + 1} of {len(PHASES)}: {model.num_parameters() / 1e6:.2f} M parameters", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda k: min(1.0, (k + 1) / (0.02 * steps)) * (0.55 + 0.45 * math.cos(math.pi * k / steps)),
    )
    stream = drawn_rows(encoder, seed=SEED + 1_000_000 * number, line_share=line_share)
    started = time.monotonic()
    for step in range(steps):
        chosen = list(itertools.islice(stream, BATCH_ROWS))
        batch = {name: torch.stack([row[name] for row in chosen]) for name in chosen[0]}
        loss = loss_of(model, batch, focus)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            took = time.monotonic() - started
            left = took / (step + 1) * (steps - step - 1)
            print(
                f"step {step}/{steps} loss {loss.item():.4f} {took:.0f} s, {left:.0f} s left",
                flush=True,
            )
        if (step + 1) % 500 == 0 or step == steps - 1:  # to look at while it runs
            copy.deepcopy(model).to(torch.bfloat16).save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(),
        bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>",
        additional_special_tokens=["<start_of_turn>", "<end_of_turn>"],
        clean_up_tokenization_spaces=False,
    ).save_pretrained(arguments.out)  # fmt: skip
    for number in range(len(PHASES)):
        train_base(PromptEncoder(str(arguments.out), SYSTEM), arguments.out, number)


if __name__ == "__main__":
    main()
