"""Numbers that are not finite: which layer they come from, and the loss scale that spares fp16 most of them."""

import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves

from app.training.parallel import TrainContext, gather_objects

FIRST_SCALE = 2.0**16
GOOD_STEPS = 2000
"""Of torch.amp.GradScaler: what it starts with, and the steps without an overflow after which it doubles."""


class TrainingDiverged(RuntimeError):
    """The loss or a gradient is not a finite number."""


def update_loss_scale(scale: float, good_steps: int, *, finite: bool) -> tuple[float, int]:
    """(scale, steps since it changed) after a step, by the rules of torch.amp.GradScaler: halved (not below 1) by an
    overflow, doubled after GOOD_STEPS steps without. The norm that decides is waited for anyway, and is the same on
    all workers, so that two numbers in a checkpoint are all there is to keep."""
    if not finite:
        return max(1.0, scale / 2), 0
    return (scale * 2, 0) if good_steps + 1 == GOOD_STEPS else (scale, good_steps + 1)


def handle_nonfinite(step: int, what: str, *, stop: bool, fate: str, context: TrainContext) -> None:
    """Never in silence: raises TrainingDiverged, or says what happens instead."""
    if stop:
        raise TrainingDiverged(
            f"step {step}: {what}; lower optim.learning_rate, train with train.precision=fp32, "
            "or leave such steps out with train.on_nonfinite=skip"
        )
    if context.rank == 0:
        print(f"step {step}: {what}; {fate}", file=sys.stderr, flush=True)


def find_nonfinite(
    objective: nn.Module, run: Callable[[nn.Module], object], context: TrainContext
) -> str:
    """In words, the first output or gradient that is not finite in `run(objective)`, by the order of computing.

    `run` repeats what went wrong, with a look at every module: dear, but nothing that a good step pays for. All
    workers call it; each looks at its own rows.
    """
    inner = (
        objective.module
        if isinstance(objective, nn.parallel.DistributedDataParallel)
        else objective
    )
    found: list[str] = []

    def look(tensor: Tensor, what: str) -> None:
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if not found and not bool(local.isfinite().all()):
            found.append(what)

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            for tensor in tree_leaves(output):
                if isinstance(tensor, Tensor):
                    look(tensor, f"output of {name}")
                    if tensor.requires_grad:
                        tensor.register_hook(
                            lambda gradient: look(gradient, f"gradient of the output of {name}")
                        )

        return hook

    hooks = [
        module.register_forward_hook(watch(_short(name))) for name, module in inner.named_modules()
    ]
    # A compiled model calls no hooks. Attention stays compiled: on a GPU it would need [S, S] scores otherwise.
    compiled = {
        module: module._compiled_call_impl
        for module in inner.modules()
        if module._compiled_call_impl
    }
    try:
        for module in compiled:
            module._compiled_call_impl = None
        run(inner)
    finally:
        for module, call in compiled.items():
            module._compiled_call_impl = call
        for hook in hooks:
            hook.remove()
    for name, parameter in inner.named_parameters():
        if parameter.grad is not None:
            look(parameter.grad, f"gradient of {_short(name)}")
    places = [
        f"the {what} (worker {rank})"
        for rank, what in enumerate(gather_objects("".join(found), context))
        if what
    ]
    return places[0] if places else "nothing that a second run shows"


def _short(name: str) -> str:
    """`model.layers.0.mlp`, as Gemma 2 itself names it, without what PEFT and the objective put before it."""
    return name.removeprefix("model.base_model.model.") or "the loss"
