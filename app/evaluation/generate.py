"""Greedy captions of drawings, in batches.

This module does not switch between training and evaluation mode.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate

import torch
from torch import Tensor
from transformers import Gemma2ForCausalLM

from app.evaluation.behaviour import Output
from app.evaluation.caption_cache import CaptionCache, plan_batches
from app.gemma.fused_layers import keep_dequantised
from app.gemma.load import unwrap_gemma
from app.gemma.loss import apply_softcap
from data_pipeline.stream.encode import PromptEncoder

HEAD_TILE_WORDS = 16_384
"""Rows of an output head in host memory that are copied to the GPU at a time (words)."""

MIN_PACKED_TOKENS = 2048
"""Prompts are read in sequences of this length: a layer's fixed costs are paid once for many."""

MAX_DEQUANTISED_BYTES = 256 * 2**20
"""Memory of weights that a CPU dequantises once for all captions, and not once for each token."""


def generate_captions(
    model: torch.nn.Module,
    encoder: PromptEncoder,
    svgs: Sequence[str],
    *,
    batch_size: int,
    max_new_tokens: int,
    max_prompt_tokens: int | None = None,
    max_cache_tokens: int | None = None,
    on_batch: Callable[[dict[int, str]], None] | None = None,
) -> list[str]:
    """Return the model's caption of each drawing, in the order of `svgs`.

    The SVG of a longer prompt is cut to `max_prompt_tokens`. The rest is that of
    `generate_outputs`.
    """
    outputs = generate_outputs(
        model,
        encoder,
        [encoder.encode_prompt(svg, max_prompt_tokens) for svg in svgs],
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        max_cache_tokens=max_cache_tokens,
        on_batch=on_batch,
    )
    return [output.text for output in outputs]


def generate_outputs(
    model: torch.nn.Module,
    encoder: PromptEncoder,
    prompts: Sequence[Sequence[int]],
    *,
    batch_size: int,
    max_new_tokens: int,
    max_cache_tokens: int | None = None,
    on_batch: Callable[[dict[int, str]], None] | None = None,
) -> list[Output]:
    """Return the model's answer to each prompt (ids) by greedy decoding, in the order of `prompts`.

    Answers are deterministic. Except for rounding in low precision, they do not depend on the
    other prompts of a batch. An answer of `max_new_tokens` tokens counts as cut.

    `model` is a Gemma 2, with an adapter or without. The caller sets evaluation mode and autocast.
    A batch has at most `batch_size` prompts and, unless it has one prompt only, at most
    `max_cache_tokens` tokens in its cache. After each batch `on_batch` is called with the texts of
    its answers, by the index of the prompt.
    """
    gemma = unwrap_gemma(model)
    batches = plan_batches(
        [len(prompt) for prompt in prompts],
        max_prompts=batch_size,
        max_new_tokens=max_new_tokens,
        max_cache_tokens=max_cache_tokens,
    )

    outputs = [Output("", is_finished=False)] * len(prompts)
    with _use_blockwise_attention(gemma), keep_dequantised(gemma, MAX_DEQUANTISED_BYTES):
        for indices in batches:
            batch = [prompts[i] for i in indices]
            generated = _generate_ids(gemma, encoder.stop_ids, batch, max_new_tokens)
            for i, ids in zip(indices, generated, strict=True):
                text = encoder.decode(ids).strip()
                outputs[i] = Output(text, is_finished=len(ids) < max_new_tokens)
            if on_batch:
                on_batch({i: outputs[i].text for i in indices})
    return outputs


@contextmanager
def _use_blockwise_attention(gemma: Gemma2ForCausalLM) -> Iterator[None]:
    """Compute with the attention that reads a CaptionCache; restore the configured one after it."""
    before = gemma.config._attn_implementation
    gemma.set_attn_implementation("blockwise")
    try:
        yield
    finally:
        gemma.set_attn_implementation(before)


@torch.no_grad()  # not inference_mode: tensors that the model caches are used in training later
def _generate_ids(
    gemma: Gemma2ForCausalLM,
    stop_ids: Sequence[int],
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
) -> list[list[int]]:
    """Return the ids after each prompt, up to its first stop id (excluded) or `max_new_tokens`."""
    cache = CaptionCache(len(prompts), max(map(len, prompts)) + max_new_tokens)
    tokens = read_prompts(gemma, cache, prompts)
    positions = torch.tensor([[len(prompt)] for prompt in prompts], device=gemma.device)

    generated: list[list[int]] = [[] for _ in prompts]
    unfinished = generated
    while True:
        # remove finished captions from the batch, so that a long one costs only its own work
        new_ids = tokens[:, 0].tolist()
        kept = [i for i, new_id in enumerate(new_ids) if new_id not in stop_ids]
        if len(kept) < len(new_ids):
            rows = torch.tensor(kept, dtype=torch.int64, device=gemma.device)
            cache.select_rows(rows)
            tokens, positions = tokens[rows], positions[rows]
            unfinished = [unfinished[i] for i in kept]

        # append
        for i, ids in zip(kept, unfinished, strict=True):
            ids.append(new_ids[i])
        if not unfinished or len(unfinished[0]) == max_new_tokens:
            return generated

        # next token
        tokens = read_tokens(gemma, cache, tokens, positions)
        positions = positions + 1


def read_prompts(
    gemma: Gemma2ForCausalLM, cache: CaptionCache, prompts: Sequence[Sequence[int]]
) -> Tensor:
    """Fill the cache with the prompts, and return the token after each: [N, 1].

    Prompts are packed into sequences, as in training. A sequence is as long as the longest prompt
    or MIN_PACKED_TOKENS at most, so that the memory of its activations is bounded.
    """
    last_hidden = []
    for rows in _pack_rows([len(prompt) for prompt in prompts]):
        stops = list(accumulate(len(prompts[row]) for row in rows))
        cache.expect_prompts(
            {
                row: slice(stop - len(prompts[row]), stop)
                for row, stop in zip(rows, stops, strict=True)
            }
        )
        ids = [token for row in rows for token in prompts[row]]
        positions = [position for row in rows for position in range(len(prompts[row]))]
        hidden = _run(gemma, cache, _to_row(ids, gemma.device), _to_row(positions, gemma.device))
        last_hidden.append(hidden[0, [stop - 1 for stop in stops]])
    return _choose_tokens(gemma, torch.cat(last_hidden))


def read_tokens(
    gemma: Gemma2ForCausalLM, cache: CaptionCache, tokens: Tensor, positions: Tensor
) -> Tensor:
    """Add one token to each row, and return the token after it; all are [N, 1]."""
    cache.expect_tokens(positions)
    return _choose_tokens(gemma, _run(gemma, cache, tokens, positions)[:, 0])


def _pack_rows(lengths: Sequence[int]) -> list[list[int]]:
    """Group neighbours into sequences of MIN_PACKED_TOKENS, or of the longest prompt if longer."""
    longest, used = max(MIN_PACKED_TOKENS, *lengths), 0
    groups: list[list[int]] = [[]]
    for row, length in enumerate(lengths):
        if used + length > longest:
            groups.append([])
            used = 0
        groups[-1].append(row)
        used += length
    return groups


def _to_row(numbers: list[int], device: torch.device) -> Tensor:
    return torch.tensor([numbers], device=device)


def _run(gemma: Gemma2ForCausalLM, cache: CaptionCache, ids: Tensor, positions: Tensor) -> Tensor:
    """Return the last hidden states [.., H] of ids at positions, both [B, S]."""
    hidden: Tensor = gemma.model(
        input_ids=ids,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        slots_are_positions=True,
    ).last_hidden_state
    return hidden


def _choose_tokens(gemma: Gemma2ForCausalLM, hidden: Tensor) -> Tensor:
    """Return the most likely tokens [N, 1] for hidden [N, H]."""
    head = gemma.lm_head.weight
    if head.device == hidden.device:
        logits = gemma.lm_head(hidden)
    else:  # memory.embedding=host
        parts = head.split(HEAD_TILE_WORDS)
        logits = torch.cat([hidden @ part.to(hidden, non_blocking=True).T for part in parts], -1)
    capped = apply_softcap(logits, gemma.config.final_logit_softcapping)
    return capped.argmax(dim=-1, keepdim=True)
