"""Compute attention block by block on a CPU, with an online softmax, in O(S) memory.

The online softmax is that of Milakov and Gimelshein 2018 (arXiv:1805.02867). The backward pass
recomputes the scores (Dao et al. 2022, arXiv:2205.14135).

Letters of shapes, also in names: B batch, H query heads, K key-value heads, G = H / K query heads
of one group, S positions of a sequence, Q positions of a block, D width of a head. KQD stands for
[K, Q · G, D]: the queries of one group are neighbours, because they see the same keys.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from app.gemma.block_mask import Block, BlockPlan

UNDERFLOW = -80.0
"""Smallest exponent: e^-80 vanishes beside the 1 in every softmax.

Below e^-87 fp32 numbers are subnormal, and ~50 times slower.
"""


def blockwise_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: BlockPlan,
    *,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """Compute the attention of query [B, H, S, D] to key and value [B, K, S, D]: [B, H, S, D].

    `plan` holds the blocks of each sequence. The computation is in fp32 at least.
    """
    attended: Tensor = _Blockwise.apply(query, key, value, plan, scale, softcap)  # type: ignore[no-untyped-call]
    return attended


@dataclass(frozen=True)
class _Cap:
    """Scale and softcap of the scores: softcap · tanh(query · key · scale / softcap)."""

    scale: float
    softcap: float | None

    @property
    def unit(self) -> float:
        """Unit in which scores are kept: the softcap, or 1 without one."""
        return self.softcap or 1.0


class _Sequence(NamedTuple):
    """The tensors of one sequence, or their gradients."""

    query_HSD: Tensor
    key_KSD: Tensor
    value_KSD: Tensor


class _Blockwise(torch.autograd.Function):
    """Keeps its inputs, its output and one log-sum-exp per query."""

    @staticmethod
    def forward(
        ctx: Any,
        query_BHSD: Tensor,
        key_BKSD: Tensor,
        value_BKSD: Tensor,
        plan: BlockPlan,
        scale: float,
        softcap: float | None,
    ) -> Tensor:
        batch, heads, length, width = query_BHSD.shape
        # the layout that the projection after it reads
        output_BHSD = query_BHSD.new_empty(batch, length, heads, width).transpose(1, 2)
        lse_BHS1 = query_BHSD.new_empty(
            batch, heads, length, 1, dtype=_compute_dtype(query_BHSD.dtype)
        )
        cap = _Cap(scale, softcap)
        with torch.autocast("cpu", enabled=False):
            for i in range(batch):
                inputs = _Sequence(query_BHSD[i], key_BKSD[i], value_BKSD[i])
                _forward_sequence(inputs, plan[i], cap, output_BHSD[i], lse_BHS1[i])

        ctx.save_for_backward(query_BHSD, key_BKSD, value_BKSD, output_BHSD, lse_BHS1)
        ctx.plan, ctx.cap = plan, cap
        return output_BHSD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output_BHSD: Tensor) -> tuple[Tensor | None, ...]:
        query_BHSD, key_BKSD, value_BKSD, output_BHSD, lse_BHS1 = ctx.saved_tensors
        grad_query = torch.empty_like(query_BHSD)
        grad_key = torch.zeros_like(key_BKSD, dtype=lse_BHS1.dtype)
        grad_value = torch.zeros_like(value_BKSD, dtype=lse_BHS1.dtype)

        with torch.autocast("cpu", enabled=False):
            for i in range(len(query_BHSD)):
                inputs = _Sequence(query_BHSD[i], key_BKSD[i], value_BKSD[i])
                grads = _Sequence(grad_query[i], grad_key[i], grad_value[i])
                _backward_sequence(
                    inputs,
                    ctx.plan[i],
                    ctx.cap,
                    output_BHSD[i],
                    lse_BHS1[i],
                    grad_output_BHSD[i],
                    grads,
                )

        grad_key, grad_value = grad_key.to(key_BKSD.dtype), grad_value.to(value_BKSD.dtype)
        return grad_query, grad_key, grad_value, None, None, None


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return fp32, or fp64 for fp64. Matrix products of small blocks are no faster in bf16."""
    return torch.promote_types(dtype, torch.float32)


def _get_block(x_HSD: Tensor, queries: slice, kv_heads: int) -> Tensor:
    """Return the queries of one block, grouped: [H, S, D] → [K, Q · G, D]."""
    x_KGQD = x_HSD[:, queries].unflatten(0, (kv_heads, -1))
    x_KQGD: Tensor = x_KGQD.transpose(1, 2).to(_compute_dtype(x_HSD.dtype))
    return x_KQGD.flatten(1, 2)


def _put_block(x_KQD: Tensor, x_HSD: Tensor, queries: slice) -> None:
    """Write the queries of one block into x_HSD: the inverse of `_get_block`."""
    x_KQGD = x_HSD[:, queries].unflatten(0, (len(x_KQD), -1)).transpose(1, 2)
    x_KQGD.copy_(x_KQD.view(x_KQGD.shape))


def _compute_scores(query_KQD: Tensor, key_KSD: Tensor, cap: _Cap) -> Tensor:
    """Return the scores of one tile in units of the cap, without a mask: [K, Q · G, keys]."""
    scores = torch.bmm(query_KQD, key_KSD.transpose(1, 2))
    return scores if cap.softcap is None else scores.tanh_()


def _view_groups(scores: Tensor, groups: int) -> Tensor:
    """View [K, Q · G, keys] as [K, Q, G, keys], to which the masks of a tile broadcast."""
    return scores.view(len(scores), -1, groups, scores.shape[2])


def _forward_sequence(
    inputs: _Sequence, blocks: tuple[Block, ...], cap: _Cap, output_HSD: Tensor, lse_HS1: Tensor
) -> None:
    """Write output [H, S, D] and the log-sum-exps of the scores [H, S, 1] of one sequence."""
    kv_heads = len(inputs.key_KSD)
    groups = len(inputs.query_HSD) // kv_heads
    key_KSD, value_KSD = (x.to(lse_HS1.dtype) for x in (inputs.key_KSD, inputs.value_KSD))

    for block in blocks:
        queries = slice(block.start, block.stop)
        query_KQD = _get_block(inputs.query_HSD, queries, kv_heads) * (cap.scale / cap.unit)
        highest = torch.full_like(query_KQD[..., :1], torch.finfo(query_KQD.dtype).min)
        total, attended_KQD = torch.zeros_like(highest), torch.zeros_like(query_KQD)

        for tile in block.tiles:
            # masked scores
            keys = slice(tile.start, tile.stop)
            scores = _compute_scores(query_KQD, key_KSD[:, keys], cap)
            scores_KQGS = _view_groups(scores, groups)
            if tile.bias is not None:
                scores_KQGS += tile.bias

            # weights relative to the highest score so far
            new_highest = torch.maximum(highest, scores.amax(dim=-1, keepdim=True))
            torch.add(new_highest * -cap.unit, scores, alpha=cap.unit, out=scores)
            scores.clamp_min_(UNDERFLOW).exp_()
            if tile.seen is not None:
                scores_KQGS *= tile.seen

            # rescale earlier sums, and add this tile
            rescale = highest.sub_(new_highest).mul_(cap.unit).clamp_min_(UNDERFLOW).exp_()
            total.mul_(rescale).add_(scores.sum(dim=-1, keepdim=True))
            attended_KQD.mul_(rescale).baddbmm_(scores, value_KSD[:, keys])
            highest = new_highest

        _put_block(attended_KQD.div_(total), output_HSD, queries)
        _put_block(total.log_().add_(highest, alpha=cap.unit), lse_HS1, queries)


def _backward_sequence(
    inputs: _Sequence,
    blocks: tuple[Block, ...],
    cap: _Cap,
    output_HSD: Tensor,
    lse_HS1: Tensor,
    grad_output_HSD: Tensor,
    grads: _Sequence,
) -> None:
    """Write the gradient of query, and add to those of key and value, of one sequence."""
    kv_heads = len(inputs.key_KSD)
    groups = len(inputs.query_HSD) // kv_heads
    key_KSD, value_KSD = (x.to(lse_HS1.dtype) for x in (inputs.key_KSD, inputs.value_KSD))

    for block in blocks:
        queries = slice(block.start, block.stop)
        query_KQD = _get_block(inputs.query_HSD, queries, kv_heads) * (cap.scale / cap.unit)
        grad_output_KQD = _get_block(grad_output_HSD, queries, kv_heads)
        delta_KQ1 = (grad_output_KQD * _get_block(output_HSD, queries, kv_heads)).sum(-1, True)
        minus_lse_KQ1 = -_get_block(lse_HS1, queries, kv_heads)
        grad_query_KQD = torch.zeros_like(query_KQD)

        for tile in block.tiles:
            # recompute scores and weights
            keys = slice(tile.start, tile.stop)
            scores = _compute_scores(query_KQD, key_KSD[:, keys], cap)
            weights = torch.add(minus_lse_KQ1, scores, alpha=cap.unit)
            weights.clamp_(UNDERFLOW, 0.0).exp_()
            if tile.seen is not None:
                _view_groups(weights, groups).mul_(tile.seen)

            # gradients of values and scores
            grads.value_KSD[:, keys].baddbmm_(weights.transpose(1, 2), grad_output_KQD)
            grad_scores = torch.bmm(grad_output_KQD, value_KSD[:, keys].transpose(1, 2))
            grad_scores.sub_(delta_KQ1).mul_(weights)
            if cap.softcap is not None:  # times 1 - tanh²
                torch.ops.aten.tanh_backward.grad_input(grad_scores, scores, grad_input=grad_scores)

            # gradients of queries and keys
            grad_query_KQD.baddbmm_(grad_scores, key_KSD[:, keys])
            grads.key_KSD[:, keys].baddbmm_(grad_scores.transpose(1, 2), query_KQD, alpha=cap.unit)

        _put_block(grad_query_KQD.mul_(cap.scale), grads.query_HSD, queries)
