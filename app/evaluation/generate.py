"""Greedy captions of drawings, in batches. Knows torch; knows no Ray and no MLflow, and changes no mode."""

from collections.abc import Callable, Sequence

import torch

from data_pipeline.stream.encode import PromptEncoder


def generate_captions(
    model: torch.nn.Module,
    encoder: PromptEncoder,
    svgs: Sequence[str],
    *,
    batch: int,
    max_new_tokens: int,
    on_progress: Callable[[int], None] | None = None,
) -> list[str]:
    """The model's caption of each drawing, in the order of `svgs`, by greedy decoding: no draw of chance, and
    (but for rounding in low precision) no influence of one drawing's batch on its caption.

    `model` is a causal language model with transformers' signature; evaluation mode and autocast are the
    caller's. `on_progress` gets the number of drawings captioned so far, after each batch.
    """
    prompts = [encoder.prompt(svg) for svg in svgs]
    # By length: little padding. Longest first: memory that runs out does so in the first batch.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    captions = [""] * len(prompts)
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        generated = _generate(model, encoder, [prompts[i] for i in rows], max_new_tokens)
        for i, ids in zip(rows, generated, strict=True):
            captions[i] = encoder.decode(ids).strip()
        if on_progress:
            on_progress(start + len(rows))
    return captions


@torch.no_grad()  # not inference_mode: what the model caches in it could not be used in training again
def _generate(
    model: torch.nn.Module,
    encoder: PromptEncoder,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
) -> list[list[int]]:
    """Ids that follow each prompt, up to its first stop id (left out) or to `max_new_tokens`."""
    device = next(model.parameters()).device
    width = max(map(len, prompts))
    padding = [width - len(prompt) for prompt in prompts]
    ids = torch.tensor(
        [[encoder.pad_id] * n + [*prompt] for n, prompt in zip(padding, prompts, strict=True)],
        device=device,
    )  # [rows, width]
    mask = torch.tensor([[0] * n + [1] * (width - n) for n in padding], device=device)
    positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)  # every prompt starts at 0, as in training
    generated: list[list[int]] = [[] for _ in prompts]
    unfinished = generated
    cache = None
    for _ in range(max_new_tokens):
        output = model(
            input_ids=ids, attention_mask=mask, position_ids=positions,
            past_key_values=cache, use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        cache = output.past_key_values
        ids = output.logits[:, -1].argmax(dim=-1, keepdim=True)  # [rows, 1]
        kept = [
            row for row, token in enumerate(ids[:, 0].tolist()) if token not in encoder.stop_ids
        ]
        if not kept:
            break
        if len(kept) < len(ids):
            # Finished rows leave the batch, so that one that rambles to the limit costs one row's work.
            index = torch.tensor(kept, device=device)
            cache.batch_select_indices(index)
            ids, mask, positions = ids[index], mask[index], positions[index]
            unfinished = [unfinished[row] for row in kept]
        for new_ids, token in zip(unfinished, ids[:, 0].tolist(), strict=True):
            new_ids.append(token)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=-1)
        positions = positions[:, -1:] + 1
    return generated
