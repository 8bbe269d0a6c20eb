"""Gemma 2's attention for packed rows, block by block: what lies outside document, window or past is not computed.

Registered with transformers as `blockwise`; `eager` is the reference that it is tested against.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from app.gemma.loss import softcap as softcapped

BLOCK = 128
"""Queries in one block (tokens)."""


def softcapped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    softcap: float | None,
    window: int | None,
    position_ids: Tensor,
) -> Tensor:
    """Causal attention with Gemma 2's softcap, within documents: [B, Hq, S, D] → [B, Hq, S, D].

    query [B, Hq, S, D]; key, value [B, Hkv, S, D] with Hq a multiple of Hkv (grouped queries); position_ids
    [B, S] restart at 0 with every document. A query sees itself and the keys of its own document before it, of
    which the last `window` - 1 (None: all). The softmax is fp32, as in transformers' eager attention.
    """
    batch, heads, length, width = query.shape
    groups = heads // key.shape[1]
    places = torch.arange(length, device=query.device)
    starts = torch.where(position_ids == 0, places, 0).cummax(dim=1).values  # [B, S] first token of the document
    if window is not None:
        starts = torch.maximum(starts, places - (window - 1))
    rows = []
    for row in range(batch):
        blocks = []
        for first in range(0, length, BLOCK):
            last = min(first + BLOCK, length)
            low = int(starts[row, first])  # starts never fall, so no later query of the block sees further back
            queries = query[row, :, first:last].reshape(key.shape[1], groups * (last - first), width)
            scores = softcapped(queries @ key[row, :, low:last].transpose(1, 2) * scale, softcap)
            seen = places[low:last]
            hidden = (seen > places[first:last, None]) | (seen < starts[row, first:last, None])  # [queries, keys]
            scores = scores.masked_fill(hidden.repeat(groups, 1), torch.finfo(scores.dtype).min)
            weights = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
            blocks.append((weights @ value[row, :, low:last]).view(heads, last - first, width))
        rows.append(torch.cat(blocks, dim=1))
    return torch.stack(rows)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    softcap: float | None,
    sliding_window: int | None,
    position_ids: Tensor,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: returns [B, S, Hq, D]."""
    assert attention_mask is None, "packed rows have no mask: documents are told apart by position_ids"
    assert query.shape[2] == key.shape[2], "packed rows have no cache"
    attended = softcapped_attention(
        query, key, value, scale=scaling, softcap=softcap, window=sliding_window, position_ids=position_ids
    )
    return attended.transpose(1, 2), None


AttentionInterface.register("blockwise", _attend)
