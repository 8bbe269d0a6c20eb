"""The schedules against those of transformers, and the arguments of AdamW."""

import pytest
import torch
from torch import nn
from transformers import get_scheduler

from app.training.config import OptimConfig
from app.training.optim import build_optimizer, compute_learning_rate, get_moments


@pytest.mark.parametrize(
    ("schedule", "num_cycles"),
    [
        ("cosine_with_restarts", 1),
        ("cosine_with_restarts", 3),
        ("cosine", 1),
        ("linear", 1),
        ("constant", 1),
    ],
)
def test_the_schedules_have_the_shapes_of_transformers(schedule, num_cycles):
    steps, warmup, peak = 200, 20, 3e-3
    config = OptimConfig(
        learning_rate=peak,
        schedule=schedule,
        num_cycles=num_cycles,
        warmup_ratio=warmup / steps,
    )
    name = "constant_with_warmup" if schedule == "constant" else schedule
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    special = {"num_cycles": num_cycles} if schedule == "cosine_with_restarts" else {}
    reference = get_scheduler(name, optimizer, warmup, steps, scheduler_specific_kwargs=special)
    for step in range(steps + 1):
        assert compute_learning_rate(config, step / steps) == pytest.approx(
            reference.get_last_lr()[0], abs=1e-12
        ), step
        optimizer.step()
        reference.step()


def test_no_warmup_starts_at_the_peak():
    assert compute_learning_rate(OptimConfig(learning_rate=0.5, warmup_ratio=0.0), 0.0) == 0.5


def test_adamw_trains_only_what_requires_a_gradient():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    optimizer = build_optimizer(
        model, OptimConfig(weight_decay=0.25, beta1=0.8, beta2=0.9, epsilon=1e-6)
    )
    (group,) = optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in model[1].parameters()]
    assert (group["betas"], group["eps"], group["weight_decay"], group["fused"]) == (
        (0.8, 0.9),
        1e-6,
        0.25,
        True,
    )


@pytest.mark.parametrize("kind", ["adamw_8bit", "paged_adamw_8bit"])
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_8_bit_moments_take_a_quarter_of_the_memory_and_step_alike(kind):
    """Each update is within 10 % of the largest update of AdamW: 8-bit moments are rounded."""
    made = {}
    for name in (kind, "adamw"):
        torch.manual_seed(0)
        model = nn.Linear(128, 64, bias=False)
        before = model.weight.detach().clone()
        optimizer = build_optimizer(model, OptimConfig(kind=name, learning_rate=1e-3))
        for _ in range(5):
            model(torch.randn(16, 128)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        kept = sum(
            value.nbytes for value in get_moments(optimizer, model.weight).values() if value.ndim
        )
        made[name] = (model.weight.detach() - before, kept)
    (ours, small), (theirs, large) = made[kind], made["adamw"]
    assert (ours - theirs).abs().max() < 0.1 * theirs.abs().max()
    assert large == 2 * 4 * 128 * 64
    assert small == large // 4 + 2 * 4 * 128 * 64 // 256  # and one scale a block of 256
