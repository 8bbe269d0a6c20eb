"""Makes the shipped tiny Gemma 2: its tokenizer, and a base trained in full on procedural drawings.

    python -m app.gemma.tiny_recipe --out app/gemma/tiny

Forty minutes on one quiet core. The base learns to say what is drawn in several caption styles, so that fine-tuning
has a style to learn and not a language. It never sees an icon, nor the `list` style of the learning benchmark, nor
a composition that a split by concept holds out.
"""

import argparse
import copy
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from importlib import resources
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

from app.gemma.loss import IGNORE_INDEX, apply_softcap
from data_pipeline.config import DataConfig
from data_pipeline.prepare.splits import choose_split
from data_pipeline.sources.line_drawings import generate_line_drawings
from data_pipeline.sources.record import Record
from data_pipeline.sources.scenes import BASE_STYLES, generate_scenes
from data_pipeline.stream.encode import PromptEncoder
from data_pipeline.stream.pack import pack_examples
from data_pipeline.svg import canonicalise

VOCABULARY = 2048
PRE_TOKEN = r'[- ]?\d{1,3}| [\w:-]+="| ?\p{L}+| ?[^\s\p{L}\d]+?(?=-?\d|[\s\p{L}]|$)|\s'
"""A number of up to three digits with its sign or space, the name of an attribute, a word, punctuation."""
CONTROL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
SYSTEM: str = DataConfig.model_fields["system_prompt"].default
SEED = 20_261_122
VALIDATION_SHARE = 0.05
ROW_TOKENS = 256  # longer rows only pay for attention across documents
LABEL_SMOOTHING = 0.05

STEPS = 6_000
READING_STEPS = 500  # of them first: see `_where_things_are`
PEAK_LEARNING_RATE = 1.5e-3
BATCH_ROWS = 12
NUMBER_FORMS = ("{}", " {}", "-{}")


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
    grid = "".join(f"h{form.format(n)}" for n in range(257) for form in NUMBER_FORMS)
    yield from itertools.repeat(grid, 2_000)
    yield from itertools.repeat(f"user\n{SYSTEM}\n\nmodel\n", 1_000)
    for style in BASE_STYLES:
        for row in generate_scenes(500, seed=SEED, style=style):
            yield f"{row.svg!s}\n{row.caption}"
    for row in generate_line_drawings(1_000, seed=SEED):
        yield f"{canonicalise(row.svg)}\n{row.caption}"
    for icon in json.loads(
        (resources.files("py_phosphor_icons") / "search" / "metadata.json").read_text()
    ):
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


def _where_things_are(seed: int) -> Iterator[Record]:
    """To begin with: scenes that are described by one word, for which coordinates have to be compared.

    Among the many easier words of whole captions that is not learnt in 8,000 steps, here in 300, and then kept.
    """
    return generate_scenes(512, seed=seed, style="where")


def _everything(seed: int) -> Iterator[Record]:
    """Scenes in all of the base's styles and as many line drawings."""
    styled = (
        generate_scenes(512 // len(BASE_STYLES), seed=seed + k, style=style)
        for k, style in enumerate(BASE_STYLES)
    )
    return chain(generate_line_drawings(512, seed=seed), *styled)


def drawn_rows(
    encoder: PromptEncoder, drawings: Callable[[int], Iterator[Record]]
) -> Iterator[dict[str, Tensor]]:
    """Endless packed rows [ROW_TOKENS] of fresh drawings from the training side.

    `weights` is 1 over the number of targets of the caption (each caption counts the same, however long) and 0 where
    there is no target; `next_ids` is the next token of the document, of its drawing too.
    """
    for chunk in itertools.count():
        rows = drawings(SEED + chunk * len(BASE_STYLES))
        trained = [
            row
            for row in rows
            if choose_split(row.concept, seed=0, validation_share=VALIDATION_SHARE) == "train"
        ]
        pairs = [(canonicalise(row.svg), row.caption) for row in trained]
        packed = pack_examples(
            [e for e in encoder.encode_batch(pairs) if len(e.input_ids) <= ROW_TOKENS], ROW_TOKENS
        )
        for i in np.random.default_rng((SEED, chunk)).permutation(len(packed)):
            row, gap = packed[i], ROW_TOKENS - len(packed[i].input_ids)
            document, is_target = np.cumsum(row.position_ids == 0) - 1, row.targets != IGNORE_INDEX
            weights = is_target / np.bincount(document, weights=is_target)[document]
            next_ids = np.where(
                np.append(row.position_ids[1:], 0) > 0,
                np.append(row.input_ids[1:], 0),
                IGNORE_INDEX,
            )
            columns = {
                "input_ids": (row.input_ids, 0, torch.int64),
                "position_ids": (row.position_ids, 0, torch.int64),
                "targets": (row.targets, IGNORE_INDEX, torch.int64),
                "next_ids": (next_ids, IGNORE_INDEX, torch.int64),
                "weights": (weights, 0, torch.float32),
            }
            yield {
                name: torch.from_numpy(np.pad(column, (0, gap), constant_values=fill)).to(dtype)
                for name, (column, fill, dtype) in columns.items()
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


def start_numbers_in_order(embeddings: Tensor, tokenizer: Tokenizer) -> None:
    """Give the embeddings [VOCABULARY, hidden] of numbers a common part, in place: near numbers start near.

    It is n on a line and on five circles, the same for all forms of n ("12", " 12", "-12"), which otherwise are
    unrelated tokens. Without it no coordinate is ever compared with another.
    """
    size = 3 * embeddings.std()
    for n in range(257):
        waves = [
            wave(math.pi * n / 256 * k) for k in (1, 2, 4, 8, 16) for wave in (math.sin, math.cos)
        ]
        common = size * torch.tensor([n / 128 - 1, *waves] * 2)
        for form in NUMBER_FORMS:
            (token,) = tokenizer.encode(form.format(n)).ids
            embeddings[token, : len(common)] += common


def loss_of(model: Gemma2ForCausalLM, batch: dict[str, Tensor], *, drawing_weight: float) -> Tensor:
    """Mean cross-entropy of captions (nats per token, labels smoothed) plus that of all tokens, weighted.

    Without smoothing the logits of words that no caption has end at the softcap's floor, from which fine-tuning on
    other captions must first dig them out, at a rate that ruins the rest. To foresee how a drawing goes on teaches
    what its numbers mean: it has ten times as many tokens as its caption.
    """
    where = batch["next_ids"] != IGNORE_INDEX
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
        ).last_hidden_state
        logits = model.lm_head(hidden[where])
    logits = apply_softcap(logits.float(), model.config.final_logit_softcapping)
    drawing = cross_entropy(logits, batch["next_ids"][where])
    said, weights = batch["targets"][where] != IGNORE_INDEX, batch["weights"][where]
    caption = cross_entropy(
        logits[said],
        batch["targets"][where][said],
        label_smoothing=LABEL_SMOOTHING,
        reduction="none",
    )
    return (caption * weights[said]).sum() / weights.sum() + drawing_weight * drawing


def train_base(tokenizer: Tokenizer, out: Path) -> None:
    """AdamW; linear warm-up over 2 %, then cosine to a tenth of the peak; saved as bf16."""
    torch.manual_seed(SEED)
    encoder = PromptEncoder(str(out), SYSTEM)
    model = Gemma2ForCausalLM._from_config(tiny_config(), attn_implementation="eager").float()
    with torch.no_grad():
        start_numbers_in_order(model.get_input_embeddings().weight, tokenizer)
    print(f"{model.num_parameters() / 1e6:.2f} M parameters", flush=True)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda k: (
            min(1.0, (k + 1) / (0.02 * STEPS)) * (0.55 + 0.45 * math.cos(math.pi * k / STEPS))
        ),
    )
    reading = itertools.islice(drawn_rows(encoder, _where_things_are), READING_STEPS * BATCH_ROWS)
    stream = chain(reading, drawn_rows(encoder, _everything))
    started = time.monotonic()
    for step in range(STEPS):
        chosen = list(itertools.islice(stream, BATCH_ROWS))
        batch = {name: torch.stack([row[name] for row in chosen]) for name in chosen[0]}
        loss = loss_of(model, batch, drawing_weight=1.0 if step < READING_STEPS else 0.2)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == STEPS - 1:
            took = time.monotonic() - started
            left = took / (step + 1) * (STEPS - step - 1)
            print(
                f"step {step}/{STEPS} loss {loss.item():.4f} {took:.0f} s, {left:.0f} s left",
                flush=True,
            )
        if (step + 1) % 500 == 0 or step == STEPS - 1:  # to look at while it runs
            copy.deepcopy(model).to(torch.bfloat16).save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tokenizer = train_tokenizer()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>",
        additional_special_tokens=["<start_of_turn>", "<end_of_turn>"],
        clean_up_tokenization_spaces=False,
    ).save_pretrained(arguments.out)  # fmt: skip
    train_base(tokenizer, arguments.out)


if __name__ == "__main__":
    main()
