"""Gemma 2's loss: cross-entropy over softcapped logits, computed only where there is a target."""

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100


def softcap(x: Tensor, cap: float | None) -> Tensor:
    """`cap · tanh(x / cap)` (Gemma 2 report, arXiv:2408.00118, §2); None: x itself."""
    return x if cap is None else cap * torch.tanh(x / cap)


def softcapped_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, softcap_at: float | None
) -> tuple[Tensor, Tensor]:
    """Sum of the negative log-likelihoods (nats) over the positions that have a target, and their number.

    hidden [N, H], weight [V, H] (the output head), targets [N] with IGNORED where nothing is predicted. The sum
    and the count stay apart: whoever reduces over micro-batches and workers divides once, at the end. Logits are
    computed in hidden's dtype and the log-softmax in fp32, only for the targeted rows.
    """
    where = (targets != IGNORED).nonzero(as_tuple=True)[0]
    logits = F.linear(hidden[where], weight.to(hidden.dtype)).float()
    loss_sum = F.cross_entropy(softcap(logits, softcap_at), targets[where].long(), reduction="sum")
    return loss_sum, torch.tensor(len(where), device=hidden.device)
