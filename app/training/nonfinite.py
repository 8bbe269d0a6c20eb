"""Losses and gradients that are not finite: the layer they come from, and the loss scale of fp16.

The loss scale prevents most overflows of fp16.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves

from app.errors import UserError
from app.training.parallel import TrainContext, gather_objects, unwrap_ddp

INITIAL_LOSS_SCALE = 2.0**16
"""Initial loss scale, as in torch.amp.GradScaler."""
GOOD_STEPS = 2000
"""Number of steps without an overflow after which the scale doubles, as in torch.amp.GradScaler."""


class TrainingDiverged(UserError):
    """The loss or a gradient is not a finite number."""


def update_loss_scale(scale: float, num_good_steps: int, *, finite: bool) -> tuple[float, int]:
    """Return (scale, number of steps since it changed) after a step, as torch.amp.GradScaler does.

    An overflow halves the scale (not below 1). GOOD_STEPS steps without an overflow double it. The
    host reads the gradient norm anyway, and the norm is the same on all workers. A checkpoint
    therefore only needs these two numbers.
    """
    if not finite:
        return max(1.0, scale / 2), 0
    return (scale * 2, 0) if num_good_steps + 1 == GOOD_STEPS else (scale, num_good_steps + 1)


def handle_nonfinite(
    step: int, problem: str, *, stop: bool, consequence: str, context: TrainContext
) -> None:
    """Raise TrainingDiverged if `stop`; otherwise rank 0 prints the problem and its consequence."""
    if stop:
        raise TrainingDiverged(
            f"step {step}: {problem}; lower optim.learning_rate, train with train.precision=fp32, "
            "or skip such steps with train.on_nonfinite=skip"
        )
    if context.rank == 0:
        print(f"step {step}: {problem}; {consequence}", file=sys.stderr, flush=True)


def find_nonfinite(
    objective: nn.Module, run: Callable[[nn.Module], object], context: TrainContext
) -> str:
    """Return the name of the first output or gradient that is not finite in `run(objective)`.

    "First" is in the order of computation. `run` repeats the step that failed, with a check after
    every module: slow, but only failed steps pay for it. All workers call this function, and each
    checks its own sequences.
    """
    inner = unwrap_ddp(objective)
    first = _FirstNonfinite()

    # repeat the step
    with _watch_outputs(inner, first), _without_compilation(inner):
        run(inner)

    # gradients of weights
    for name, parameter in inner.named_parameters():
        if parameter.grad is not None:
            first.check(parameter.grad, f"gradient of {_shorten_name(name)}")

    # first of all workers
    for rank, name in enumerate(gather_objects(first.name, context)):
        if name:
            return f"the {name} (worker {rank})"
    return "no layer (all values were finite in a second run)"


class _FirstNonfinite:
    """Name of the first checked tensor that is not finite; empty if there is none."""

    def __init__(self) -> None:
        self.name = ""

    def check(self, tensor: Tensor, name: str) -> None:
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if not self.name and not bool(local.isfinite().all()):
            self.name = name


@contextmanager
def _watch_outputs(model: nn.Module, first: _FirstNonfinite) -> Iterator[None]:
    """Check the outputs of all modules, and the gradients of these outputs."""

    def make_hook(name: str) -> Callable[..., None]:
        def check_gradient(gradient: Tensor) -> None:
            first.check(gradient, f"gradient of the output of {name}")

        def check_output(_module: nn.Module, _inputs: Any, output: Any) -> None:
            for tensor in tree_leaves(output):
                if isinstance(tensor, Tensor):
                    first.check(tensor, f"output of {name}")
                    if tensor.requires_grad:
                        tensor.register_hook(check_gradient)

        return check_output

    hooks = [
        module.register_forward_hook(make_hook(_shorten_name(name)))
        for name, module in model.named_modules()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _without_compilation(model: nn.Module) -> Iterator[None]:
    """Run compiled modules eagerly, because a compiled module calls no hooks.

    Attention stays compiled: without compilation it would need [S, S] scores on a GPU.
    """
    compiled_calls = {
        module: module._compiled_call_impl
        for module in model.modules()
        if module._compiled_call_impl
    }
    try:
        for module in compiled_calls:
            module._compiled_call_impl = None
        yield
    finally:
        for module, call in compiled_calls.items():
            module._compiled_call_impl = call


def _shorten_name(name: str) -> str:
    """Return `model.layers.0.mlp` as Gemma 2 names it, without the prefix of PEFT and objective."""
    return name.removeprefix("model.base_model.model.") or "the loss"
