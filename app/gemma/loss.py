"""Gemma 2's loss: cross-entropy over softcapped logits, only where there is a label and never all at once.

The gradient is computed with the loss, tile by tile, as in Wijmans et al. 2024 (arXiv:2411.09009) and Liger's fused
linear cross-entropy (arXiv:2410.10989); here with the softcap and its derivative.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from app.gemma.tiles import iterate_tiles

IGNORE_INDEX = -100
BUDGET = 256 * 2**20
"""What the logits and what is computed from them may take at a time (bytes)."""
BYTES_PER_LOGIT = 12
"""A tile's tanh, its weights and one copy of either, in fp32."""
FEW_TOKENS = 32
"""Whole rows of logits are computed once; where fewer rows than this fit the budget, in parts and twice."""
MANY_TOKENS = 512
"""Rows of logits in one tile that has a part of the vocabulary."""


def apply_softcap(x: Tensor, cap: float | None) -> Tensor:
    """`cap · tanh(x / cap)` (Gemma 2 report, arXiv:2408.00118, §2); None: x itself."""
    return x if cap is None else cap * torch.tanh(x / cap)


def softcapped_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    softcap: float | None,
    budget: int = BUDGET,
) -> tuple[Tensor, Tensor]:
    """Sum of the negative log-likelihoods (nats) over the positions that have a label, and their number.

    hidden [N, H], weight [V, H] (the output head), labels [N] with IGNORED where nothing is predicted. The sum
    and the count stay apart: whoever reduces over micro-batches and workers divides once, at the end. Products are
    computed in hidden's dtype, softcap and log-softmax in fp32 (fp64 for fp64), in tiles of tokens and vocabulary
    that take `budget` bytes; of a frozen weight on the host, tiles are copied. The weight's gradient is summed in the
    weight's dtype. One backward pass per forward.
    """
    where = (labels != IGNORE_INDEX).nonzero(as_tuple=True)[0]
    with_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    loss_sum: Tensor = _CrossEntropy.apply(
        hidden, weight, labels, where, softcap, budget, with_gradient
    )  # type: ignore[no-untyped-call]
    return loss_sum, torch.tensor(len(where), device=hidden.device)


def choose_tile(
    num_tokens: int, vocabulary: int, bytes_per_word: int, budget: int
) -> tuple[int, int]:
    """(tokens, words) of one tile; bytes_per_word: what a word takes besides its logits.

    >>> tile_of(700, 1024, 0, 256 * 2**20), tile_of(8192, 256_000, 0, 256 * 2**20), tile_of(8192, 256_000, 0, 2**26)
    ((700, 1024), (87, 256000), (512, 10922))
    """
    rows = (budget - vocabulary * bytes_per_word) // (vocabulary * BYTES_PER_LOGIT)
    if rows >= min(num_tokens, FEW_TOKENS):
        return min(num_tokens, rows), vocabulary
    rows = min(num_tokens, MANY_TOKENS)
    return rows, max(1, min(vocabulary, budget // (bytes_per_word + rows * BYTES_PER_LOGIT)))


class _CrossEntropy(torch.autograd.Function):
    """Keeps the gradients for the labelled rows of hidden and for the weight."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        where: Tensor,
        cap: float | None,
        budget: int,
        with_gradient: bool,
    ) -> Tensor:
        rows, targets = hidden.index_select(0, where), labels.index_select(0, where).long()
        of_rows = torch.empty_like(rows) if with_gradient and ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(weight) if with_gradient and ctx.needs_input_grad[1] else None
        here = (weight.device, weight.dtype) == (hidden.device, hidden.dtype)
        copied = 0 if here else hidden.shape[1] * hidden.element_size()
        tokens, words = choose_tile(
            len(rows), len(weight), copied * (1 if of_weight is None else 2), budget
        )
        loss_sum = rows.new_zeros((), dtype=torch.promote_types(rows.dtype, torch.float32))
        with torch.autocast(hidden.device.type, enabled=False):
            for first in iterate_tiles(range(0, len(rows), max(1, tokens)), hidden):
                part = slice(first, first + tokens)
                loss_sum += _chunk(
                    rows[part], weight, targets[part], cap, words,
                    of_rows=None if of_rows is None else of_rows[part], of_weight=of_weight,
                )  # fmt: skip
        ctx.save_for_backward(where, of_rows, of_weight)
        ctx.num_rows = len(hidden)
        return loss_sum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        where, of_rows, of_weight = ctx.saved_tensors
        of_hidden = None
        if of_rows is not None:
            of_hidden = of_rows.new_zeros(ctx.num_rows, of_rows.shape[1])
            of_hidden.index_copy_(0, where, of_rows * upstream.to(of_rows.dtype))
        if of_weight is not None:
            of_weight *= upstream  # in place: the head's gradient exists once
        return of_hidden, of_weight, None, None, None, None, None


def _chunk(
    rows: Tensor,
    weight: Tensor,
    targets: Tensor,
    cap: float | None,
    words: int,
    *,
    of_rows: Tensor | None,
    of_weight: Tensor | None,
) -> Tensor:
    """The loss of rows [T, H] with targets [T]; writes their gradient and adds the weight's, where wanted."""
    parts = [
        slice(first, min(first + words, len(weight))) for first in range(0, len(weight), words)
    ]
    kept = _tile(rows, weight, cap) if len(parts) == 1 else None

    def tile(part: slice) -> Tensor:
        return _tile(rows, weight[part], cap) if kept is None else kept

    lse = rows.new_full(
        (len(rows), 1), -torch.inf, dtype=torch.promote_types(rows.dtype, torch.float32)
    )
    likely = torch.zeros_like(lse)  # logit of the target
    for part in parts:
        logits = tile(part) if cap is None else tile(part) * cap
        lse = torch.logaddexp(lse, logits.logsumexp(dim=1, keepdim=True))
        own, inside = _own(targets, part)
        likely = torch.where(inside, logits.gather(1, own), likely)
        del logits
    if of_rows is not None or of_weight is not None:
        summed = torch.zeros_like(rows, dtype=lse.dtype)
        for part in parts:
            gradient = _gradient(tile(part), lse, *_own(targets, part), cap).to(rows.dtype)
            if of_rows is not None:
                summed += gradient @ weight[part].to(rows, non_blocking=True)
            if of_weight is not None and of_weight.dtype == rows.dtype:
                of_weight[part].addmm_(gradient.T, rows)
            elif of_weight is not None:
                of_weight[part] += gradient.T @ rows
        if of_rows is not None:
            of_rows.copy_(summed)
    return (lse - likely).sum()


def _gradient(tile: Tensor, lse: Tensor, own: Tensor, inside: Tensor, cap: float | None) -> Tensor:
    """Of the loss for the logits before the softcap: (softmax - 1 at the target) · (1 - tanh²)."""
    gradient = torch.add(-lse, tile, alpha=1.0 if cap is None else cap).exp_()
    gradient.scatter_add_(1, own, -inside.to(gradient.dtype))
    if cap is not None:
        torch.ops.aten.tanh_backward.grad_input(gradient, tile, grad_input=gradient)
    return gradient


def _tile(rows: Tensor, weight: Tensor, cap: float | None) -> Tensor:
    """Logits [T, words] before the softcap, or their tanh in units of cap; fp32 at least."""
    logits = (rows @ weight.to(rows, non_blocking=True).T).to(
        torch.promote_types(rows.dtype, torch.float32)
    )
    return logits if cap is None else logits.div_(cap).tanh_()


def _own(targets: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """[T, 1] each: where in this part of the vocabulary the target is, and whether it is in it at all."""
    inside = (targets >= part.start) & (targets < part.stop)
    return (targets - part.start).clamp(0, part.stop - part.start - 1)[:, None], inside[:, None]
