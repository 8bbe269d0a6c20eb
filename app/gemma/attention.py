"""Gemma 2's attention in O(S) memory, registered in transformers as `blockwise`.

It has softcap, sliding window, packed documents and grouped queries. On a CPU it calls the kernel
of `blockwise`, on CUDA FlexAttention. Scores outside of document, window or past are not computed.
The reference is transformers' `eager`.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from transformers import AttentionInterface

from app.errors import UserError
from app.gemma import flex_attention
from app.gemma.block_mask import cache_per_tensor, plan_blocks
from app.gemma.blockwise import blockwise_attention
from app.gemma.loss import apply_softcap


def describe_attention(name: str) -> str:
    """Return a description of a configured attention for the log."""
    if name == "eager":
        return "eager (transformers' reference: whole [S, S] scores)"
    if name == "blockwise":
        return "blockwise (on a CPU online softmax, recomputed; on a GPU FlexAttention, compiled)"
    return f"{name} (transformers')"


def softcapped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    softcap: float | None,
    window: int | None,
    document_ids: Tensor | None,
) -> Tensor:
    """Compute causal attention with Gemma 2's softcap within documents: [B, H, S, D].

    query is [B, H, S, D], key and value are [B, K, S, D]; H is a multiple of K (grouped queries).
    document_ids is [B, S]: a document is a run of equal ids; None means one document per sequence.
    A query sees itself and the keys before it in its own document, of which only the last
    `window` - 1 if there is a window. On a CPU the computation is in fp32 at least, whatever the
    dtype of the inputs. The blocks to compute are planned once per `document_ids` tensor, not once
    per layer.
    """
    assert key.shape[2] == query.shape[2], "a query that attends to a cache is alone"
    if query.device.type == "cuda":
        return flex_attention.flex_softcapped_attention(
            query,
            key,
            value,
            scale=scale,
            softcap=softcap,
            window=window,
            document_ids=document_ids,
        )

    batch, _, length, _ = query.shape
    if document_ids is None:
        plan = plan_blocks(None, batch, length, window)
    else:
        # A simulation of memory has no documents to read.
        known_ids = None if isinstance(query, FakeTensor) else document_ids
        plan = cache_per_tensor(
            document_ids,
            ("blocks", window),
            lambda: plan_blocks(known_ids, batch, length, window),
        )
    return blockwise_attention(query, key, value, plan, scale=scale, softcap=softcap)


def attend_to_cache(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor,
    *,
    scale: float,
    softcap: float | None,
    window: int | None,
) -> Tensor:
    """Compute the attention of one query per sequence to a cache: [B, H, 1, D].

    query is [B, H, 1, D], key and value are [B, K, slots, D]: slot i holds the token at position i.
    The query at position p of positions [B, 1] sees the slots up to p, of which only the last
    `window` if there is a window. Softmax is in fp32.
    """
    slots = torch.arange(key.shape[2], device=key.device)
    seen = slots <= positions
    if window is not None:
        seen &= slots > positions - window

    query_BKGD = query.squeeze(2).unflatten(1, (key.shape[1], -1))
    scores = apply_softcap(query_BKGD @ key.transpose(2, 3) * scale, softcap).float()
    weights = scores.masked_fill(~seen[:, None, None], -math.inf).softmax(dim=-1)
    attended: Tensor = weights.to(value.dtype) @ value
    return attended.flatten(1, 2).unsqueeze(2)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _attend(  # noqa: PLR0913 (the signature of transformers' attention interface)
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
    dropout: float = 0.0,
    slots_are_positions: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Implement transformers' attention interface: return [B, S, H, D] and no weights.

    One query per sequence attends to a cache. Several are packed documents, without a cache: as in
    transformers' own masks, a document ends where position_ids [B or 1, S] do not increase by one.
    Raises UserError if the model has attention dropout.
    """
    assert attention_mask is None, (
        "packed sequences have no mask: position_ids tell documents apart"
    )
    if key.shape[2] != query.shape[2]:
        assert slots_are_positions, "blockwise attention reads a CaptionCache only"
        attended = attend_to_cache(
            query, key, value, position_ids, scale=scaling, softcap=softcap, window=sliding_window
        )
        return attended.transpose(1, 2), None
    if dropout:
        raise UserError(
            f"attention_dropout={dropout} is in the model's config, but blockwise attention has no "
            "dropout: set model.attention=eager"
        )
    batch = len(query)
    document_ids = cache_per_tensor(
        position_ids,
        ("documents", batch),
        lambda: _number_documents(position_ids).expand(batch, -1),
    )
    attended = softcapped_attention(
        query,
        key,
        value,
        scale=scaling,
        softcap=softcap,
        window=sliding_window,
        document_ids=document_ids,
    )
    return attended.transpose(1, 2), None


def _number_documents(position_ids: Tensor) -> Tensor:
    """Return document ids from positions: [[0, 1, 2, 0, 1]] → [[0, 0, 0, 1, 1]]."""
    return (torch.diff(position_ids, prepend=position_ids[:, :1] - 1) != 1).cumsum(dim=1)


AttentionInterface.register("blockwise", _attend)
