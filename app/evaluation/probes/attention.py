"""Measure the attention of one layer block by block, with an online softmax.

No tensor has all scores of a sequence. Letters of shapes: H query heads, K key-value heads,
G = H / K query heads of one group, S positions, Q positions of a block, D width of a head.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from app.gemma.block_mask import MAX_KEYS, MAX_QUERIES

BEND = 0.5
"""Share of the softcap from which on a score counts as bent.

There the derivative of the softcap is 1 - tanh²(0.5) = 0.79.
"""
UNDERFLOW = -80.0
"""Smallest exponent of a weight relative to the largest one (see app.gemma.blockwise)."""


@dataclass(frozen=True)
class ScoreSums:
    """Sums over capped values (scores of each head [K, G], or logits []), in fp64."""

    num_values: int
    num_bent: Tensor
    """Number of values beyond BEND times the cap; 0 without a cap."""
    lost: Tensor
    """Sum of tanh² of the values in units of the cap: the lost derivative; 0 without a cap."""
    largest: Tensor
    """Largest absolute value before the cap."""

    def __add__(self, other: Self) -> "ScoreSums":
        return ScoreSums(
            self.num_values + other.num_values,
            self.num_bent + other.num_bent,
            self.lost + other.lost,
            torch.maximum(self.largest, other.largest),
        )


@dataclass(frozen=True)
class AttentionSums:
    """Sums over the queries of one layer, for each head [K, G], in fp64."""

    num_queries: int
    entropy: Tensor
    """Entropy of the attention of each query (nats), summed."""
    inside: Tensor
    """Attention to the keys inside the model's window, summed over queries."""
    scores: ScoreSums
    """Sums over the scores of all pairs of a query and a key that it sees."""
    num_blocks: int
    """Number of blocks of MAX_QUERIES x MAX_QUERIES scores that the layer needs."""
    num_full_blocks: int
    """Number of blocks that it would need without a window."""

    def __add__(self, other: Self) -> "AttentionSums":
        return AttentionSums(
            self.num_queries + other.num_queries,
            self.entropy + other.entropy,
            self.inside + other.inside,
            self.scores + other.scores,
            self.num_blocks + other.num_blocks,
            self.num_full_blocks + other.num_full_blocks,
        )


@dataclass
class _Online:
    """Online softmax of the queries of a block: all are [K, G, Q, 1]."""

    highest: Tensor
    total: Tensor
    """Sum of the weights relative to the highest score."""
    weighted: Tensor
    """Sum of the weights times their exponents."""
    inside: Tensor
    """Sum of the weights of the keys inside the window."""

    @classmethod
    def start(cls, query_KGQD: Tensor) -> Self:
        """Return the state before the first tile."""
        zeros = torch.zeros_like(query_KGQD[..., :1])
        lowest = torch.full_like(zeros, torch.finfo(zeros.dtype).min)
        return cls(lowest, zeros, zeros.clone(), zeros.clone())

    def add(self, scores: Tensor, seen: Tensor, inside: Tensor) -> None:
        """Add the scores of a tile [K, G, Q, keys], in place; the masks are [Q, keys]."""
        scores.masked_fill_(~seen, -torch.inf)
        highest = torch.maximum(self.highest, scores.amax(dim=-1, keepdim=True))
        exponents = scores.sub_(highest).clamp_min_(UNDERFLOW)
        weights = exponents.exp().mul_(seen)

        # earlier sums relative to the new highest score
        shift = (self.highest - highest).clamp_min_(UNDERFLOW)
        self.weighted += self.total * shift
        for earlier in (self.total, self.weighted, self.inside):
            earlier *= shift.exp()

        self.highest = highest
        self.total += weights.sum(dim=-1, keepdim=True)
        self.inside += (weights * inside).sum(dim=-1, keepdim=True)
        self.weighted += weights.mul_(exponents).sum(dim=-1, keepdim=True)

    def compute_entropy(self) -> Tensor:
        """Return the entropy of each query: log Σw - Σ(w · exponent) / Σw."""
        return self.total.log() - self.weighted / self.total


def measure_attention(
    query_HSD: Tensor,
    key_KSD: Tensor,
    *,
    scale: float,
    softcap: float | None,
    layer_window: int | None,
    model_window: int,
) -> AttentionSums:
    """Measure the causal attention of one document in one layer.

    `layer_window` is the layer's window (None: the layer is global). `model_window` is the window
    of the model's other layers, inside which the attention of a global layer is counted. The
    computation is in fp32 at least, the sums are in fp64.
    """
    compute_dtype = torch.promote_types(query_HSD.dtype, torch.float32)
    query_KGSD = query_HSD.to(compute_dtype).unflatten(0, (len(key_KSD), -1))
    key_K1DS = key_KSD.to(compute_dtype).transpose(1, 2).unsqueeze(1)

    num_queries, device = query_HSD.shape[1], query_HSD.device
    positions = torch.arange(num_queries, device=device)
    entropy, inside_share, *score_sums = (
        torch.zeros(query_KGSD.shape[:2], dtype=torch.float64, device=device) for _ in range(5)
    )
    scores_seen = ScoreSums(0, *score_sums)

    for start in range(0, num_queries, MAX_QUERIES):
        stop = min(start + MAX_QUERIES, num_queries)
        query_KGQD = query_KGSD[:, :, start:stop] * scale
        online = _Online.start(query_KGQD)

        # the last tile first: every query sees a key of it, its own
        for last in range(stop, _find_first_key(start, layer_window), -MAX_KEYS):
            keys = slice(max(last - MAX_KEYS, _find_first_key(start, layer_window)), last)
            distance = positions[start:stop, None] - positions[keys]
            seen = (distance >= 0) & (distance < (layer_window or num_queries))
            scores = query_KGQD @ key_K1DS[..., keys]
            scores_seen += cap_and_measure(scores, softcap, seen)
            online.add(scores, seen, distance < model_window)

        entropy += online.compute_entropy().sum(dim=(2, 3), dtype=torch.float64)
        inside_share += (online.inside / online.total).sum(dim=(2, 3), dtype=torch.float64)

    return AttentionSums(
        num_queries=num_queries,
        entropy=entropy,
        inside=inside_share,
        scores=scores_seen,
        num_blocks=count_blocks(num_queries, layer_window),
        num_full_blocks=count_blocks(num_queries, None),
    )


def count_blocks(num_queries: int, window: int | None) -> int:
    """Return the number of blocks of MAX_QUERIES x MAX_QUERIES scores in which a query sees a key.

    FlexAttention computes these blocks.
    """
    first_queries = range(0, num_queries, MAX_QUERIES)
    return sum(
        start // MAX_QUERIES - _find_first_key(start, window) // MAX_QUERIES + 1
        for start in first_queries
    )


def _find_first_key(query: int, window: int | None) -> int:
    """Return the first key that a query sees."""
    return 0 if window is None else max(0, query - window + 1)


def cap_and_measure(values: Tensor, softcap: float | None, seen: Tensor | None = None) -> ScoreSums:
    """Apply the softcap to values [.., a, b] in place, and return the sums over a and b.

    `seen` [a, b] chooses the values that count (None: all).
    """
    num_values = values.shape[-2] * values.shape[-1] if seen is None else int(seen.sum())
    magnitude = values.abs() if seen is None else values.abs().mul_(seen)
    largest = magnitude.amax(dim=(-2, -1)).double()
    if softcap is None:
        nothing = torch.zeros_like(largest)
        return ScoreSums(num_values, nothing, nothing, largest)

    num_bent = (magnitude > BEND * softcap).sum(dim=(-2, -1)).double()
    lost = magnitude.div_(softcap).tanh_().square_().sum(dim=(-2, -1), dtype=torch.float64)
    values.div_(softcap).tanh_().mul_(softcap)
    return ScoreSums(num_values, num_bent, lost, largest)
