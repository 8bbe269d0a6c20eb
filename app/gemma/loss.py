"""Compute Gemma 2's loss: cross-entropy over softcapped logits of the labelled positions, in tiles.

The gradient is computed with the loss, tile by tile, as in Wijmans et al. 2024 (arXiv:2411.09009)
and Liger's fused linear cross-entropy (arXiv:2410.10989); here with the softcap and its derivative.
Letters of shapes: N positions, T labelled positions of a tile, H hidden width, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from app.gemma.tiles import iterate_tiles
from data_pipeline.stream.encode import IGNORE_INDEX

BUDGET_BYTES = 256 * 2**20
"""Memory for the logits and for tensors computed from them at a time (bytes)."""
BYTES_PER_LOGIT = 12
"""Memory of a logit: its tanh, its weight and one copy of either, in fp32 (bytes)."""
MIN_WHOLE_TILE_TOKENS = 32
"""Least tokens in a tile of the whole vocabulary, whose logits are computed once.

If fewer fit the budget, a tile has a part of the vocabulary, and its logits are computed twice.
"""
MAX_PART_TILE_TOKENS = 512
"""Most tokens in a tile of a part of the vocabulary."""


def apply_softcap(x: Tensor, cap: float | None) -> Tensor:
    """Return `cap · tanh(x / cap)` (Gemma 2 report, arXiv:2408.00118, §2), or x if cap is None."""
    return x if cap is None else cap * torch.tanh(x / cap)


def softcapped_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    softcap: float | None,
    budget: int = BUDGET_BYTES,
) -> tuple[Tensor, Tensor]:
    """Return the sum of the labels' negative log-likelihoods (nats), and the number of labels.

    hidden is [N, H], weight is [V, H] (the output head), labels is [N] with IGNORE_INDEX where
    nothing is predicted. The caller reduces sum and number over micro-batches and workers, and then
    divides once.

    Products are computed in hidden's dtype, softcap and log-softmax in fp32 (fp64 for fp64), in
    tiles of tokens and vocabulary that take `budget` bytes. Tiles of a frozen weight on the host
    are copied to hidden's device. The weight's gradient is summed in the weight's dtype. Each
    forward pass allows one backward pass, which scales that gradient in place.
    """
    positions = (labels != IGNORE_INDEX).nonzero(as_tuple=True)[0]
    with_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    loss_sum: Tensor = _CrossEntropy.apply(
        hidden, weight, labels, positions, softcap, budget, with_gradient
    )  # type: ignore[no-untyped-call]
    return loss_sum, torch.tensor(len(positions), device=hidden.device)


def choose_tile(
    num_tokens: int, vocabulary: int, bytes_per_word: int, budget: int
) -> tuple[int, int]:
    """Return the number of tokens and of words of one tile.

    `bytes_per_word` is the memory of a word besides its logits.

    >>> choose_tile(700, 1024, 0, 256 * 2**20)
    (700, 1024)
    >>> choose_tile(8192, 256_000, 0, 256 * 2**20)
    (87, 256000)
    >>> choose_tile(8192, 256_000, 0, 2**26)
    (512, 10922)
    """
    tokens = (budget - vocabulary * bytes_per_word) // (vocabulary * BYTES_PER_LOGIT)
    if tokens >= min(num_tokens, MIN_WHOLE_TILE_TOKENS):
        return min(num_tokens, tokens), vocabulary

    tokens = min(num_tokens, MAX_PART_TILE_TOKENS)
    words = budget // (bytes_per_word + tokens * BYTES_PER_LOGIT)
    return tokens, max(1, min(vocabulary, words))


@dataclass(frozen=True)
class _Head:
    """The output head [V, H], its softcap, and the number of words in one tile."""

    weight: Tensor
    softcap: float | None
    tile_words: int

    def list_parts(self) -> list[slice]:
        """Return the parts of the vocabulary, one per tile."""
        vocabulary = len(self.weight)
        return [
            slice(first, min(first + self.tile_words, vocabulary))
            for first in range(0, vocabulary, self.tile_words)
        ]

    def compute_logits(self, hidden: Tensor, part: slice) -> Tensor:
        """Return the logits [T, words], or their tanh in units of the softcap; fp32 at least."""
        compute_dtype = torch.promote_types(hidden.dtype, torch.float32)
        # a copied weight is freed after the product, before the logits' fp32 copy is made
        logits = (hidden @ self.weight[part].to(hidden, non_blocking=True).T).to(compute_dtype)
        return logits if self.softcap is None else logits.div_(self.softcap).tanh_()


class _CrossEntropy(torch.autograd.Function):
    """Keeps the gradients of the labelled positions of hidden and of the weight."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        positions: Tensor,
        softcap: float | None,
        budget: int,
        with_gradient: bool,
    ) -> Tensor:
        # labelled positions, and their gradients
        labelled = hidden.index_select(0, positions)
        targets = labels.index_select(0, positions).long()
        needs_hidden, needs_weight, *_ = ctx.needs_input_grad
        grad_labelled = torch.empty_like(labelled) if with_gradient and needs_hidden else None
        grad_weight = torch.zeros_like(weight) if with_gradient and needs_weight else None

        # size of a tile
        is_copied = (weight.device, weight.dtype) != (hidden.device, hidden.dtype)
        bytes_per_word = hidden.shape[1] * hidden.element_size() if is_copied else 0
        if grad_weight is not None:
            bytes_per_word *= 2
        tokens, words = choose_tile(len(labelled), len(weight), bytes_per_word, budget)

        head = _Head(weight, softcap, words)
        loss_sum = labelled.new_zeros((), dtype=torch.promote_types(labelled.dtype, torch.float32))
        with torch.autocast(hidden.device.type, enabled=False):
            for first in iterate_tiles(range(0, len(labelled), max(1, tokens)), hidden):
                tile = slice(first, first + tokens)
                loss_sum += _compute_tile(
                    labelled[tile],
                    head,
                    targets[tile],
                    grad_hidden=None if grad_labelled is None else grad_labelled[tile],
                    grad_weight=grad_weight,
                )

        ctx.save_for_backward(positions, grad_labelled, grad_weight)
        ctx.num_positions = len(hidden)
        return loss_sum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        positions, grad_labelled, grad_weight = ctx.saved_tensors
        grad_hidden = None
        if grad_labelled is not None:
            grad_hidden = grad_labelled.new_zeros(ctx.num_positions, grad_labelled.shape[1])
            scaled = grad_labelled * grad_output.to(grad_labelled.dtype)
            grad_hidden.index_copy_(0, positions, scaled)
        if grad_weight is not None:
            grad_weight *= grad_output  # in place: the head's gradient exists once
        return grad_hidden, grad_weight, None, None, None, None, None


def _compute_tile(
    hidden: Tensor,
    head: _Head,
    targets: Tensor,
    *,
    grad_hidden: Tensor | None,
    grad_weight: Tensor | None,
) -> Tensor:
    """Return the loss of hidden [T, H] with targets [T].

    Write the gradient of hidden, and add to that of the weight, where they are given.
    """
    parts = head.list_parts()
    whole = head.compute_logits(hidden, parts[0]) if len(parts) == 1 else None

    def get_logits(part: slice) -> Tensor:
        return head.compute_logits(hidden, part) if whole is None else whole

    # loss
    compute_dtype = torch.promote_types(hidden.dtype, torch.float32)
    lse = hidden.new_full((len(hidden), 1), -torch.inf, dtype=compute_dtype)
    target_logits = torch.zeros_like(lse)
    for part in parts:
        logits = get_logits(part) if head.softcap is None else get_logits(part) * head.softcap
        lse = torch.logaddexp(lse, logits.logsumexp(dim=1, keepdim=True))
        index, is_inside = _locate_targets(targets, part)
        target_logits = torch.where(is_inside, logits.gather(1, index), target_logits)
        del logits

    # gradients
    if grad_hidden is not None or grad_weight is not None:
        grad_sum = torch.zeros_like(hidden, dtype=lse.dtype)
        for part in parts:
            grad_logits = _compute_logit_gradient(
                get_logits(part), lse, *_locate_targets(targets, part), head.softcap
            ).to(hidden.dtype)
            if grad_hidden is not None:
                grad_sum += grad_logits @ head.weight[part].to(hidden, non_blocking=True)
            if grad_weight is not None:
                _add_weight_gradient(grad_weight[part], grad_logits, hidden)
        if grad_hidden is not None:
            grad_hidden.copy_(grad_sum)
    return (lse - target_logits).sum()


def _add_weight_gradient(grad_weight: Tensor, grad_logits: Tensor, hidden: Tensor) -> None:
    """Add the product of grad_logits [T, words] and hidden [T, H] to grad_weight [words, H]."""
    if grad_weight.dtype == hidden.dtype:
        grad_weight.addmm_(grad_logits.T, hidden)
    else:
        grad_weight += grad_logits.T @ hidden


def _compute_logit_gradient(
    logits: Tensor, lse: Tensor, index: Tensor, is_inside: Tensor, softcap: float | None
) -> Tensor:
    """Return the gradient of the logits before the softcap.

    It is (softmax - 1 at the target) · (1 - tanh²). With a softcap, `logits` is the tanh.
    """
    grad_logits = torch.add(-lse, logits, alpha=1.0 if softcap is None else softcap).exp_()
    grad_logits.scatter_add_(1, index, -is_inside.to(grad_logits.dtype))
    if softcap is not None:
        torch.ops.aten.tanh_backward.grad_input(grad_logits, logits, grad_input=grad_logits)
    return grad_logits


def _locate_targets(targets: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """Return each target's index in this part of the vocabulary, and whether it is in the part.

    Both are [T, 1]. The index is clamped to the part for a target outside.
    """
    is_inside = (targets >= part.start) & (targets < part.stop)
    index = (targets - part.start).clamp(0, part.stop - part.start - 1)
    return index[:, None], is_inside[:, None]
