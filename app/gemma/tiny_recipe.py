"""Make the shipped tiny Gemma 2: train its tokenizer and all its weights on procedural drawings.

    python -m app.gemma.tiny_recipe --out app/gemma/tiny

It takes forty minutes on one idle core. The base model learns to describe drawings in several
caption styles, so that fine-tuning learns a style instead of a language. Its training data holds no
icon, no caption of the learning benchmark's `list` style, and no composition that a split by
concept puts into validation.
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

from app.gemma.loss import apply_softcap
from data_pipeline.config import DataConfig
from data_pipeline.prepare.splits import choose_split
from data_pipeline.sources.line_drawings import generate_line_drawings
from data_pipeline.sources.record import Record
from data_pipeline.sources.scenes import BASE_STYLES, generate_scenes
from data_pipeline.stream.encode import IGNORE_INDEX, PromptEncoder
from data_pipeline.stream.pack import PackedSequence, pack_examples
from data_pipeline.svg import canonicalise

VOCABULARY = 2048
PRE_TOKEN = r'[- ]?\d{1,3}| [\w:-]+="| ?\p{L}+| ?[^\s\p{L}\d]+?(?=-?\d|[\s\p{L}]|$)|\s'
"""A number of up to three digits with its sign or space, an attribute name, a word, punctuation."""
CONTROL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
SYSTEM: str = DataConfig.model_fields["system_prompt"].default
SEED = 20_261_122
VALIDATION_SHARE = 0.05
SEQUENCE_TOKENS = 256  # longer sequences only add the cost of attention across documents
LABEL_SMOOTHING = 0.05

STEPS = 6_000
COMPARISON_STEPS = 500  # the first ones: see `_generate_comparisons`
PEAK_LEARNING_RATE = 1.5e-3
BATCH_SEQUENCES = 12
NUMBER_FORMS = ("{}", " {}", "-{}")
ICON_WEIGHTS = ("thin hairline", "light fine", "regular medium", "bold heavy", "solid filled",
                "duotone tint")  # fmt: skip


def train_tokenizer() -> Tokenizer:
    """Train byte-level BPE over the pre-tokens of PRE_TOKEN.

    The corpus is procedural drawings and icon captions.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    split = pre_tokenizers.Split(Regex(PRE_TOKEN), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(CONTROL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_generate_tokenizer_corpus(), trainer)
    return tokenizer


def _generate_tokenizer_corpus() -> Iterator[str]:
    # Most of a drawing is coordinates: each grid value up to 256 becomes one token in every form.
    grid = "".join(f"h{form.format(n)}" for n in range(257) for form in NUMBER_FORMS)
    yield from itertools.repeat(grid, 2_000)
    yield from itertools.repeat(f"user\n{SYSTEM}\n\nmodel\n", 1_000)

    # drawings
    for style in BASE_STYLES:
        for record in generate_scenes(500, seed=SEED, style=style):
            yield f"{record.svg!s}\n{record.caption}"
    for record in generate_line_drawings(1_000, seed=SEED):
        yield f"{canonicalise(record.svg)}\n{record.caption}"

    # words of icon captions
    metadata = resources.files("py_phosphor_icons") / "search" / "metadata.json"
    for icon in json.loads(metadata.read_text()):
        names = [icon["name"].replace("-", " "), *icon["categories"], *icon["tags"]]
        words = ", ".join(names).lower()
        for weight in ICON_WEIGHTS:
            yield f"A {weight} icon of {words}, drawn in outlines, from the category, about and."
        yield '<path opacity=".2" fill="currentColor" d="m"/>'


def _generate_comparisons(seed: int) -> Iterator[Record]:
    """Generate the first drawings: scenes with a caption of one word that compares coordinates.

    The model learns the comparison here in 300 steps, and then keeps it. From whole captions, with
    their many easier words, it does not learn it in 8,000 steps.
    """
    return generate_scenes(512, seed=seed, style="where")


def _generate_drawings(seed: int) -> Iterator[Record]:
    """Generate scenes in all of the base model's styles, and as many line drawings."""
    styled = (
        generate_scenes(512 // len(BASE_STYLES), seed=seed + k, style=style)
        for k, style in enumerate(BASE_STYLES)
    )
    return chain(generate_line_drawings(512, seed=seed), *styled)


def generate_sequences(
    encoder: PromptEncoder, generate: Callable[[int], Iterator[Record]]
) -> Iterator[dict[str, Tensor]]:
    """Generate packed sequences [SEQUENCE_TOKENS] of new drawings of the training split, forever.

    See `_make_tensors` for the tensors.
    """
    for chunk in itertools.count():
        pairs = [
            (canonicalise(record.svg), record.caption)
            for record in generate(SEED + chunk * len(BASE_STYLES))
            if choose_split(record.concept, seed=0, validation_share=VALIDATION_SHARE) == "train"
        ]
        examples = [e for e in encoder.encode_batch(pairs) if len(e.input_ids) <= SEQUENCE_TOKENS]
        packed = pack_examples(examples, SEQUENCE_TOKENS)
        for i in np.random.default_rng((SEED, chunk)).permutation(len(packed)):
            yield _make_tensors(packed[i])


def _make_tensors(sequence: PackedSequence) -> dict[str, Tensor]:
    """Return the tensors of one sequence, padded to SEQUENCE_TOKENS.

    `weights` is 1 / number of targets of the caption, so that each caption counts the same whatever
    its length, and 0 where there is no target. `next_ids` is the next token of the document, in its
    drawing too.
    """
    document = np.cumsum(sequence.position_ids == 0) - 1
    is_target = sequence.targets != IGNORE_INDEX
    weights = is_target / np.bincount(document, weights=is_target)[document]
    has_next = np.append(sequence.position_ids[1:], 0) > 0
    next_ids = np.where(has_next, np.append(sequence.input_ids[1:], 0), IGNORE_INDEX)

    columns = {
        "input_ids": (sequence.input_ids, 0, torch.int64),
        "position_ids": (sequence.position_ids, 0, torch.int64),
        "targets": (sequence.targets, IGNORE_INDEX, torch.int64),
        "next_ids": (next_ids, IGNORE_INDEX, torch.int64),
        "weights": (weights, 0, torch.float32),
    }
    num_padding = SEQUENCE_TOKENS - len(sequence.input_ids)
    return {
        name: torch.from_numpy(np.pad(column, (0, num_padding), constant_values=fill)).to(dtype)
        for name, (column, fill, dtype) in columns.items()
    }


def build_tiny_config() -> Gemma2Config:
    """Return Gemma 2's architecture at 2 M parameters.

    It has both softcaps, sliding window, grouped queries and tied embeddings.
    """
    return Gemma2Config(
        vocab_size=VOCABULARY, hidden_size=192, intermediate_size=576, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, query_pre_attn_scalar=64,
        sliding_window=256, max_position_embeddings=8192,
        attn_logit_softcapping=50.0, final_logit_softcapping=30.0,
        tie_word_embeddings=True, pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip


def start_numbers_in_order(embeddings: Tensor, tokenizer: Tokenizer) -> None:
    """Add a common part to the embeddings [VOCABULARY, hidden] of numbers, in place.

    It makes near numbers start with near embeddings: it is the position of n on a line and on five
    circles. It is the same for all forms of n ("12", " 12", "-12"), which otherwise are unrelated
    tokens. Without it the model never learns to compare two coordinates.
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


def compute_loss(
    model: Gemma2ForCausalLM, batch: dict[str, Tensor], *, drawing_weight: float
) -> Tensor:
    """Return the mean cross-entropy of captions plus the weighted one of all tokens.

    Both are in nats per token; labels of captions are smoothed. Without smoothing the logits of
    words that are in no caption end at the softcap's lower limit. Fine-tuning on other captions
    would need a learning rate so high, to raise them again, that it ruins the rest.

    The prediction of a drawing's next token teaches the meaning of its numbers: a drawing has ten
    times as many tokens as its caption.
    """
    has_next = batch["next_ids"] != IGNORE_INDEX
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
        ).last_hidden_state
        logits = model.lm_head(hidden[has_next])
    logits = apply_softcap(logits.float(), model.config.final_logit_softcapping)

    drawing = cross_entropy(logits, batch["next_ids"][has_next])
    targets, weights = batch["targets"][has_next], batch["weights"][has_next]
    is_target = targets != IGNORE_INDEX
    caption = cross_entropy(
        logits[is_target], targets[is_target], label_smoothing=LABEL_SMOOTHING, reduction="none"
    )
    return (caption * weights[is_target]).sum() / weights.sum() + drawing_weight * drawing


def _compute_rate_factor(step: int) -> float:
    warm_up = min(1.0, (step + 1) / (0.02 * STEPS))
    return warm_up * (0.55 + 0.45 * math.cos(math.pi * step / STEPS))


def train_base_model(tokenizer: Tokenizer, out: Path) -> None:
    """Train the base model, and save it in bf16.

    AdamW, with linear warm-up over 2 % of the steps, then cosine to a tenth of the peak.
    """
    # model
    torch.manual_seed(SEED)
    encoder = PromptEncoder(str(out), SYSTEM)
    model = Gemma2ForCausalLM._from_config(build_tiny_config(), attn_implementation="eager")
    model = model.float()
    with torch.no_grad():
        start_numbers_in_order(model.get_input_embeddings().weight, tokenizer)
    print(f"{model.num_parameters() / 1e6:.2f} M parameters", flush=True)

    # optimizer
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _compute_rate_factor)

    # data
    comparisons = itertools.islice(
        generate_sequences(encoder, _generate_comparisons), COMPARISON_STEPS * BATCH_SEQUENCES
    )
    stream = chain(comparisons, generate_sequences(encoder, _generate_drawings))

    # steps
    started = time.monotonic()
    for step in range(STEPS):
        chosen = list(itertools.islice(stream, BATCH_SEQUENCES))
        batch = {name: torch.stack([s[name] for s in chosen]) for name in chosen[0]}
        loss = compute_loss(model, batch, drawing_weight=1.0 if step < COMPARISON_STEPS else 0.2)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

        if step % 50 == 0 or step == STEPS - 1:
            took = time.monotonic() - started
            left = took / (step + 1) * (STEPS - step - 1)
            progress = f"step {step}/{STEPS} loss {loss.item():.4f} {took:.0f} s, {left:.0f} s left"
            print(progress, flush=True)
        if (step + 1) % 500 == 0 or step == STEPS - 1:  # saved for inspection while it runs
            copy.deepcopy(model).to(torch.bfloat16).save_pretrained(out)


def main() -> None:
    """Make the tokenizer, then the model."""
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
    train_base_model(tokenizer, arguments.out)


if __name__ == "__main__":
    main()
