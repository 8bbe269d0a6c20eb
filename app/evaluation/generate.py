"""Greedy captions of drawings, in batches.

This module does not switch between training and evaluation mode.
"""

from collections.abc import Callable, Sequence

import torch

from data_pipeline.stream.encode import PromptEncoder


def generate_captions(
    model: torch.nn.Module,
    encoder: PromptEncoder,
    svgs: Sequence[str],
    *,
    batch_size: int,
    max_new_tokens: int,
    on_progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Return the model's caption of each drawing by greedy decoding, in the order of `svgs`.

    Captions are deterministic. Except for rounding in low precision, they do not depend on the
    other drawings of a batch.

    `model` is a causal language model with the signature of transformers. The caller sets
    evaluation mode and autocast. `batch_size` is the number of drawings in one batch. After each
    batch `on_progress` is called with the number of drawings captioned so far.
    """
    prompts = [encoder.encode_prompt(svg) for svg in svgs]

    # Sort by length for little padding. The longest come first, so that an out-of-memory error
    # occurs in the first batch.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)

    captions = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        generated = _generate_ids(model, encoder, [prompts[i] for i in indices], max_new_tokens)
        for i, ids in zip(indices, generated, strict=True):
            captions[i] = encoder.decode(ids).strip()
        if on_progress:
            on_progress(start + len(indices))
    return captions


@torch.no_grad()  # not inference_mode: tensors that the model caches are used in training later
def _generate_ids(
    model: torch.nn.Module,
    encoder: PromptEncoder,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
) -> list[list[int]]:
    """Return the ids after each prompt, up to its first stop id (excluded) or `max_new_tokens`."""
    # pad left
    device = next(model.parameters()).device
    width = max(map(len, prompts))
    padding = [width - len(prompt) for prompt in prompts]
    ids = torch.tensor(
        [[encoder.pad_id] * n + [*prompt] for n, prompt in zip(padding, prompts, strict=True)],
        device=device,
    )  # [prompts, width]
    mask = torch.tensor([[0] * n + [1] * (width - n) for n in padding], device=device)
    positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)  # every prompt starts at 0, as in training

    generated: list[list[int]] = [[] for _ in prompts]
    unfinished = generated
    cache = None
    for _ in range(max_new_tokens):
        # next token
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values
        ids = output.logits[:, -1].argmax(dim=-1, keepdim=True)  # [unfinished, 1]

        # remove finished captions from the batch, so that a long one costs only its own work
        tokens = ids[:, 0].tolist()
        kept = [i for i, token in enumerate(tokens) if token not in encoder.stop_ids]
        if not kept:
            break
        if len(kept) < len(ids):
            index = torch.tensor(kept, device=device)
            cache.batch_select_indices(index)
            ids, mask, positions = ids[index], mask[index], positions[index]
            unfinished = [unfinished[i] for i in kept]

        # append
        for new_ids, token in zip(unfinished, ids[:, 0].tolist(), strict=True):
            new_ids.append(token)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=-1)
        positions = positions[:, -1:] + 1
    return generated
