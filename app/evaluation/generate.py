"""Greedy captions of drawings, in batches.

This module does not switch between training and evaluation mode.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate

import torch
from torch import Tensor
from transformers import Gemma2ForCausalLM

from app.evaluation.caption_cache import CaptionCache, plan_batches
from app.gemma.load import unwrap_gemma
from app.gemma.loss import apply_softcap
from data_pipeline.stream.encode import PromptEncoder

HEAD_TILE_WORDS = 16_384
"""Rows of an output head in host memory that are copied to the GPU at a time (words)."""


def generate_captions(
    model: torch.nn.Module,
    encoder: PromptEncoder,
    svgs: Sequence[str],
    *,
    batch_size: int,
    max_new_tokens: int,
    max_prompt_tokens: int | None = None,
    max_cache_tokens: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Return the model's caption of each drawing by greedy decoding, in the order of `svgs`.

    Captions are deterministic. Except for rounding in low precision, they do not depend on the
    other drawings of a batch.

    `model` is a Gemma 2, with an adapter or without. The caller sets evaluation mode and autocast.
    A batch has at most `batch_size` drawings and, unless it has one drawing only, at most
    `max_cache_tokens` tokens in its cache. The SVG of a longer prompt is cut to
    `max_prompt_tokens`. After each batch `on_progress` is called with the number of drawings
    captioned so far.
    """
    gemma = unwrap_gemma(model)
    prompts = [encoder.encode_prompt(svg, max_prompt_tokens) for svg in svgs]
    batches = plan_batches(
        [len(prompt) for prompt in prompts],
        max_prompts=batch_size,
        max_new_tokens=max_new_tokens,
        max_cache_tokens=max_cache_tokens,
    )

    captions = [""] * len(prompts)
    num_done = 0
    with _use_blockwise_attention(gemma):
        for indices in batches:
            batch = [prompts[i] for i in indices]
            generated = _generate_ids(gemma, encoder.stop_ids, batch, max_new_tokens)
            for i, ids in zip(indices, generated, strict=True):
                captions[i] = encoder.decode(ids).strip()
            num_done += len(indices)
            if on_progress:
                on_progress(num_done)
    return captions


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

    Prompts are packed into sequences, as in training. No sequence is longer than the longest
    prompt, so that a batch needs no more memory for its activations than that prompt alone.
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
    """Group neighbours into sequences that are at most as long as the longest prompt."""
    longest, used = max(lengths), 0
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
