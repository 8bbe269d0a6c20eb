"""Simulate the memory of fused attention: allocate the tensors of a GPU's kernel, compute nothing.

Registered in transformers as `fused_simulated`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface

from app.gemma import flex_attention
from app.gemma.attention import attend_to_cache
from app.gemma.block_mask import cache_per_tensor

FUSED_ATTENTION = "fused_simulated"
"""Name of this attention in transformers' attention interface."""


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
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Implement transformers' attention interface: return [B, S, H, D], allocated only."""
    if key.shape[2] != query.shape[2]:
        from_cache = attend_to_cache(
            query, key, value, position_ids, scale=scaling, softcap=softcap, window=sliding_window
        )
        return from_cache.transpose(1, 2), None

    batch = len(query)
    document_ids = cache_per_tensor(
        position_ids, ("fused", batch), lambda: position_ids.expand(batch, -1)
    )
    mask = flex_attention.build_flex_arguments(
        query, scale=scaling, softcap=softcap, window=sliding_window, document_ids=document_ids
    )["block_mask"]

    attended: Tensor = _FusedAttention.apply(query, key, value, mask)  # type: ignore[no-untyped-call]
    return attended.transpose(1, 2), None


class _FusedAttention(torch.autograd.Function):
    """Allocates the tensors of FlexAttention's forward and backward pass.

    Shapes are those of torch/_higher_order_ops/flex_attention.py: the output, two fp32 numbers per
    query and head, and two more in the backward pass. FlashAttention is assumed to be alike.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any) -> Tensor:
        output = torch.empty_like(query)
        lse, highest = (query.new_empty(query.shape[:-1], dtype=torch.float32) for _ in range(2))
        ctx.save_for_backward(query, key, value, output, lse, highest)
        ctx.mask = mask
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, _, lse, _ = ctx.saved_tensors
        grad_lse, delta = torch.zeros_like(lse), torch.empty_like(lse)
        grads = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        del grad_lse, delta
        return *grads, None


AttentionInterface.register(FUSED_ATTENTION, _attend)
