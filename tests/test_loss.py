"""The labelled, softcapped loss against the naive one: all logits, softcap, cross-entropy; gradients included."""

import pytest
import torch
from torch.nn import functional as F

from app.gemma.loss import IGNORED, softcapped_cross_entropy


def naive(hidden, weight, targets, cap):
    logits = hidden @ weight.T
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")


@pytest.mark.parametrize("cap", [None, 1.0, 30.0])
def test_loss_and_gradients_equal_the_naive_reference(cap):
    torch.manual_seed(0)
    hidden = torch.randn(12, 8, requires_grad=True)
    weight = torch.randn(20, 8, requires_grad=True)
    targets = torch.randint(0, 20, (12,))
    targets[[0, 3, 11]] = IGNORED
    loss, count = softcapped_cross_entropy(hidden, weight, targets, softcap_at=cap)
    loss.backward()
    ours = (loss.detach(), hidden.grad.clone(), weight.grad.clone())
    hidden.grad = weight.grad = None
    reference = naive(hidden, weight, targets, cap)
    reference.backward()
    assert int(count) == 9
    for mine, theirs in zip(ours, (reference.detach(), hidden.grad, weight.grad), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_a_batch_without_a_target_costs_nothing_and_still_reaches_every_weight():
    hidden = torch.randn(4, 8, requires_grad=True)
    weight = torch.randn(20, 8, requires_grad=True)
    loss, count = softcapped_cross_entropy(hidden, weight, torch.full((4,), IGNORED), softcap_at=30.0)
    loss.backward()
    assert (loss.item(), int(count)) == (0.0, 0)
    assert not hidden.grad.any()
    assert not weight.grad.any()
