"""The tiled, softcapped loss against the naive one: values, gradients and memory.

The naive loss computes all logits, their softcap, and the cross-entropy.
"""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from app.gemma.loss import BUDGET_BYTES, choose_tile, softcapped_cross_entropy
from data_pipeline.stream.encode import IGNORE_INDEX

WORDS, WIDTH = 50, 8


def naive(hidden, weight, labels, cap):
    logits = hidden @ weight.T
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    return F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")


def problem(
    num_tokens=37, words=WORDS, width=WIDTH, *, dtype=torch.float64, weight_dtype=None, share=0.7
):
    torch.manual_seed(0)
    hidden = torch.randn(num_tokens, width, dtype=torch.float64).to(dtype).requires_grad_()
    weight = (
        torch.randn(words, width, dtype=torch.float64).to(weight_dtype or dtype).requires_grad_()
    )
    labels = torch.randint(0, words, (num_tokens,))
    labels[torch.rand(num_tokens) > share] = IGNORE_INDEX
    return hidden, weight, labels


BUDGETS = [BUDGET_BYTES, 12 * WORDS * 33, 12 * 40 * 7, 1]
"""All at once; 33 tokens with all words; 7 words of all tokens; one word at a time."""


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("cap", [None, 1.0, 30.0])
def test_loss_and_gradients_equal_the_naive_reference(cap, budget):
    hidden, weight, labels = problem(48)
    loss, count = softcapped_cross_entropy(hidden, weight, labels, softcap=cap, budget=budget)
    ours = (loss, *torch.autograd.grad(loss * 0.37, (hidden, weight)))
    reference = naive(hidden, weight, labels, cap)
    theirs = (reference, *torch.autograd.grad(reference * 0.37, (hidden, weight)))
    assert int(count) == int((labels != IGNORE_INDEX).sum())
    for mine, truth in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, truth, atol=1e-12, rtol=1e-13)


@pytest.mark.parametrize("budget", [BUDGET_BYTES, 2**16])
@pytest.mark.parametrize(
    ("dtype", "weight_dtype", "tolerance"),
    [
        (torch.float32, torch.float32, 1e-5),
        (torch.bfloat16, torch.bfloat16, 2e-2),
        # a trained head is fp32, whatever the dtype of products
        (torch.bfloat16, torch.float32, 2e-2),
    ],
)
def test_low_precision_is_as_near_the_truth_as_its_rounding(dtype, weight_dtype, tolerance, budget):
    """Relative to the largest entry."""
    hidden, weight, labels = problem(200, 300, 32, dtype=dtype, weight_dtype=weight_dtype)
    loss, _ = softcapped_cross_entropy(hidden, weight, labels, softcap=30.0, budget=budget)
    ours = (loss, *torch.autograd.grad(loss, (hidden, weight)))
    assert [gradient.dtype for gradient in ours] == [torch.float32, dtype, weight_dtype]
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    truth = naive(*exact, labels, 30.0)
    for mine, true in zip(ours, (truth, *torch.autograd.grad(truth, exact)), strict=True):
        assert (mine.double() - true).abs().max() <= tolerance * true.abs().max()


@pytest.mark.parametrize(
    ("for_hidden", "for_weight"), [(True, False), (False, True), (False, False)]
)
def test_only_trained_tensors_get_a_gradient(for_hidden, for_weight):
    hidden, weight, labels = problem()
    both = torch.autograd.grad(naive(hidden, weight, labels, 5.0), (hidden, weight))
    hidden, weight = (
        hidden.detach().requires_grad_(for_hidden),
        weight.detach().requires_grad_(for_weight),
    )
    loss, _ = softcapped_cross_entropy(hidden, weight, labels, softcap=5.0)
    assert loss.requires_grad == (for_hidden or for_weight)
    if loss.requires_grad:
        loss.backward()
    for tensor, wanted, truth in ((hidden, for_hidden, both[0]), (weight, for_weight, both[1])):
        assert (tensor.grad is not None) == wanted
        if wanted:
            torch.testing.assert_close(tensor.grad, truth, atol=1e-12, rtol=0)


def test_a_batch_without_a_target_costs_nothing_and_still_reaches_every_weight():
    hidden, weight, _ = problem(4)
    loss, count = softcapped_cross_entropy(
        hidden, weight, torch.full((4,), IGNORE_INDEX), softcap=30.0
    )
    loss.backward()
    assert (loss.item(), int(count)) == (0.0, 0)
    assert not hidden.grad.any()
    assert not weight.grad.any()


def test_a_second_backward_pass_is_refused_rather_than_wrong():
    hidden, weight, labels = problem()
    loss, _ = softcapped_cross_entropy(hidden, weight, labels, softcap=30.0)
    (loss * 0.5).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest result of any operation, and the dtypes of those of the head's shape."""

    def __init__(self, head):
        super().__init__()
        self.size, self.head, self.dtypes = 0, head, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.size = max(self.size, leaf.numel() * leaf.element_size())
                if leaf.shape in (self.head, self.head[::-1]):
                    self.dtypes.add(leaf.dtype)
        return result


@pytest.mark.parametrize("budget", [2**21, 2**18])
def test_no_tensor_of_all_logits_and_no_fp32_copy_of_the_head(budget):
    hidden, weight, labels = problem(600, 4000, 16, dtype=torch.bfloat16, share=1.0)
    weight.requires_grad_(False)
    with LargestTensor(weight.shape) as largest:
        softcapped_cross_entropy(hidden, weight, labels, softcap=30.0, budget=budget)[0].backward()
    assert largest.size <= budget / 2
    assert largest.dtypes <= {torch.bfloat16}


def test_logits_only_where_there_are_labels():
    hidden, weight, labels = problem(600, 500, share=0.1)
    with LargestTensor(weight.shape) as largest:
        _, count = softcapped_cross_entropy(hidden, weight, labels, softcap=30.0)
    assert 30 < int(count) < 90
    assert largest.size == int(count) * 500 * 8


def test_small_problems_are_one_tile_and_large_ones_fit_the_budget():
    assert choose_tile(700, 1024, 0, BUDGET_BYTES) == (700, 1024)
    for num_tokens, words, per_word, budget in (
        (8192, 256_000, 0, BUDGET_BYTES),
        (8192, 256_000, 2 * 3584, BUDGET_BYTES),
        (8192, 256_000, 0, 2**26),
        (10, 256_000, 0, 2**20),
    ):
        tile_tokens, tile_words = choose_tile(num_tokens, words, per_word, budget)
        assert 0.5 * budget < tile_words * (12 * tile_tokens + per_word) <= budget
