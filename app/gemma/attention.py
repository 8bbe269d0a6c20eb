"""Gemma 2's attention in O(S) memory: softcap, window, packed documents, grouped queries; registered as `blockwise`.

CPU: block by block with an online softmax (Milakov and Gimelshein 2018, arXiv:1805.02867), recomputed in the backward
pass (Dao et al. 2022, arXiv:2205.14135). CUDA: FlexAttention. What lies outside document, window or past is not
computed. transformers' `eager` is the reference.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface

from app.errors import UserError
from app.gemma import flex_attention
from app.gemma.block_mask import Block, BlockPlan, cache_per_tensor, plan_blocks

UNDERFLOW = -80.0
"""Smallest exponent: e^-80 is nothing beside the 1 in every softmax, and fp32 below e^-87 is ~50 times slower."""


def describe_attention(name: str) -> str:
    """What a configured attention is, for the log."""
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
    """Causal attention with Gemma 2's softcap, within documents: [B, Hq, S, D] → [B, Hq, S, D].

    query [B, Hq, S, D]; key, value [B, Hkv, S, D] with Hq a multiple of Hkv (grouped queries); document_ids [B, S]:
    a document is a run of equal ids, None: one document a row. A query sees itself and the keys of its own document
    before it, of which the last `window` - 1 (None: all). On a CPU computed in fp32 at least, whatever the inputs are.
    Which blocks that needs is planned once for a `document_ids` tensor, not once a layer.
    """
    assert key.shape[2] == query.shape[2], "packed rows have no cache"
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
        known = None if isinstance(query, FakeTensor) else document_ids
        plan = cache_per_tensor(
            document_ids, ("blocks", window), lambda: plan_blocks(known, batch, length, window)
        )
    attended: Tensor = _Blockwise.apply(query, key, value, plan, scale, softcap)  # type: ignore[no-untyped-call]
    return attended


@torch.compiler.disable  # type: ignore[untyped-decorator]
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
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: returns [B, S, Hq, D]. As in its own masks, a document ends where
    position_ids [B or 1, S] do not go on by one."""
    assert attention_mask is None, (
        "packed rows have no mask: documents are told apart by position_ids"
    )
    if dropout:
        raise UserError(
            f"attention_dropout={dropout} of the model: blockwise has none, set model.attention=eager"
        )
    rows = len(query)
    document_ids = cache_per_tensor(
        position_ids, ("documents", rows), lambda: _documents(position_ids).expand(rows, -1)
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


def _documents(position_ids: Tensor) -> Tensor:
    """[0, 1, 2, 0, 1] → [0, 0, 0, 1, 1], row by row."""
    return (torch.diff(position_ids, prepend=position_ids[:, :1] - 1) != 1).cumsum(dim=1)


AttentionInterface.register("blockwise", _attend)


class _Blockwise(torch.autograd.Function):
    """Keeps its inputs, its output and one log-sum-exp a query."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        plan: BlockPlan,
        scale: float,
        softcap: float | None,
    ) -> Tensor:
        batch, heads, length, width = query.shape
        output = query.new_empty(batch, length, heads, width).transpose(
            1, 2
        )  # as the projection after it reads it
        lse = query.new_empty(batch, heads, length, 1, dtype=_exact(query.dtype))
        with torch.autocast("cpu", enabled=False):
            for i in range(batch):
                _forward_row(query[i], key[i], value[i], output[i], lse[i], plan[i], scale, softcap)
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.plan, ctx.scale, ctx.softcap = plan, scale, softcap
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        query_gradient = torch.empty_like(query)
        key_gradient, value_gradient = (
            torch.zeros_like(tensor, dtype=lse.dtype) for tensor in (key, value)
        )
        with torch.autocast("cpu", enabled=False):
            for i in range(len(query)):
                _backward_row(
                    query[i], key[i], value[i], output[i], lse[i], upstream[i],
                    query_gradient[i], key_gradient[i], value_gradient[i], ctx.plan[i], ctx.scale, ctx.softcap,
                )  # fmt: skip
        return (
            query_gradient,
            key_gradient.to(key.dtype),
            value_gradient.to(value.dtype),
            None,
            None,
            None,
        )


def _exact(dtype: torch.dtype) -> torch.dtype:
    """fp32, or fp64 for fp64. Matrix products of small blocks are no faster in bf16."""
    return torch.promote_types(dtype, torch.float32)


def _rows(tensor: Tensor, own: slice, kv_heads: int) -> Tensor:
    """[Hq, S, D] → [Hkv, queries · G, D]: queries of one group are neighbours, and see the same keys."""
    grouped: Tensor = tensor[:, own].unflatten(0, (kv_heads, -1))
    return grouped.transpose(1, 2).to(_exact(tensor.dtype)).flatten(1, 2)


def _put(rows: Tensor, tensor: Tensor, own: slice) -> None:
    """The inverse of `_rows`."""
    block = tensor[:, own].unflatten(0, (len(rows), -1)).transpose(1, 2)
    block.copy_(rows.view(block.shape))


def _forward_row(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
    blocks: tuple[Block, ...],
    scale: float,
    softcap: float | None,
) -> None:
    """One row: writes output [Hq, S, D] and the log-sum-exps of its scores, lse [Hq, S, 1]."""
    kv_heads, groups = len(key), len(query) // len(key)
    key, value = key.to(lse.dtype), value.to(lse.dtype)
    cap = softcap or 1.0
    for block in blocks:
        own = slice(block.first, block.last)
        rows = _rows(query, own, kv_heads) * (scale / cap)
        top = torch.full_like(rows[..., :1], torch.finfo(rows.dtype).min)
        total, attended = torch.zeros_like(top), torch.zeros_like(rows)
        for tile in block.tiles:
            seen = slice(tile.first, tile.last)
            scores = torch.bmm(rows, key[:, seen].transpose(1, 2))  # in units of cap
            if softcap is not None:
                scores.tanh_()
            by_group = scores.view(kv_heads, -1, groups, scores.shape[2])
            if tile.bias is not None:
                by_group += tile.bias
            highest = torch.maximum(top, scores.amax(dim=-1, keepdim=True))
            torch.add(highest * -cap, scores, alpha=cap, out=scores).clamp_min_(UNDERFLOW).exp_()
            if tile.seen is not None:
                by_group *= tile.seen
            fade = top.sub_(highest).mul_(cap).clamp_min_(UNDERFLOW).exp_()
            total.mul_(fade).add_(scores.sum(dim=-1, keepdim=True))
            attended.mul_(fade).baddbmm_(scores, value[:, seen])
            top = highest
        _put(attended.div_(total), output, own)
        _put(total.log_().add_(top, alpha=cap), lse, own)


def _backward_row(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
    upstream: Tensor,
    query_gradient: Tensor,
    key_gradient: Tensor,
    value_gradient: Tensor,
    blocks: tuple[Block, ...],
    scale: float,
    softcap: float | None,
) -> None:
    """One row: writes query_gradient [Hq, S, D], adds to key_gradient and value_gradient [Hkv, S, D]."""
    kv_heads, groups = len(key), len(query) // len(key)
    key, value = key.to(lse.dtype), value.to(lse.dtype)
    cap = softcap or 1.0
    for block in blocks:
        own = slice(block.first, block.last)
        rows, rows_upstream = (
            _rows(query, own, kv_heads) * (scale / cap),
            _rows(upstream, own, kv_heads),
        )
        rows_delta = (rows_upstream * _rows(output, own, kv_heads)).sum(dim=-1, keepdim=True)
        rows_lse, rows_gradient = -_rows(lse, own, kv_heads), torch.zeros_like(rows)
        for tile in block.tiles:
            seen = slice(tile.first, tile.last)
            scores = torch.bmm(rows, key[:, seen].transpose(1, 2))  # in units of cap
            if softcap is not None:
                scores.tanh_()
            weights = torch.add(rows_lse, scores, alpha=cap).clamp_(UNDERFLOW, 0.0).exp_()
            if tile.seen is not None:
                weights.view(kv_heads, -1, groups, weights.shape[2]).mul_(tile.seen)
            value_gradient[:, seen].baddbmm_(weights.transpose(1, 2), rows_upstream)
            gradient = (
                torch.bmm(rows_upstream, value[:, seen].transpose(1, 2))
                .sub_(rows_delta)
                .mul_(weights)
            )
            if softcap is not None:  # times 1 - tanh²
                torch.ops.aten.tanh_backward.grad_input(gradient, scores, grad_input=gradient)
            rows_gradient.baddbmm_(gradient, key[:, seen])
            key_gradient[:, seen].baddbmm_(gradient.transpose(1, 2), rows, alpha=cap)
        _put(rows_gradient.mul_(scale), query_gradient, own)
