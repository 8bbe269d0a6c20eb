"""AdamW over the trained parameters, and the learning rate as a function of the job's progress."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit
from torch import Tensor, nn

from app.errors import UserError
from app.training.config import OptimConfig

CODE_BOOKS = ("qmap1", "qmap2")


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Return AdamW over the trained parameters: torch's fused AdamW or one of bitsandbytes.

    The fused AdamW updates all weights in one kernel. bitsandbytes keeps the moments of weights
    with fewer than 4,096 elements in fp32 (its `min_8bit_size`).
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    arguments: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.beta1, config.beta2),
        "eps": config.epsilon,
        "weight_decay": config.weight_decay,
    }

    if config.kind == "adamw":
        return torch.optim.AdamW(trained, **arguments, fused=True)
    optimizer_class = AdamW8bit if config.kind == "adamw_8bit" else PagedAdamW8bit
    optimizer: torch.optim.Optimizer = optimizer_class(trained, **arguments)
    return optimizer


def get_moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """Return the optimizer state of a parameter, without the constant 8-bit code books."""
    state = optimizer.state[parameter]
    return {key: torch.as_tensor(value) for key, value in state.items() if key not in CODE_BOOKS}


def restore_moments(optimizer: Any, parameter: nn.Parameter, values: Mapping[str, Tensor]) -> None:
    """Restore the state that `get_moments` returned, from values on the parameter's device.

    Raises UserError if the values were saved with another `optim.kind`.
    """
    is_8_bit = isinstance(optimizer, AdamW8bit | PagedAdamW8bit)
    if values and is_8_bit == ("exp_avg" in values):
        raise UserError(
            f"the checkpoint's moments are not those of {type(optimizer).__name__}: set optim.kind "
            "to the kind the checkpoint was saved with, or start a new job with another "
            "train.run_name"
        )

    if not is_8_bit:
        optimizer.state[parameter] = dict(values)
        return

    # bitsandbytes allocates the buffers itself: those of a paged optimizer are in managed memory.
    optimizer.state[parameter] = {}
    optimizer.init_state(optimizer.param_groups[0], parameter, 0, 0)
    for key, value in values.items():
        if value.ndim:
            optimizer.state[parameter][key].copy_(value)
        else:
            optimizer.state[parameter][key] = value.item()


def compute_learning_rate(config: OptimConfig, progress: float) -> float:
    """Return the learning rate at `progress` in [0, 1] of the job.

    Linear warm-up over `warmup_ratio`, then the schedule over the rest, in the shapes of
    transformers' `get_scheduler` (its step / num_steps is the progress here). A function of
    progress needs no total number of steps, which is not known in advance for a stream that packs
    while it is read. It also stays valid when the number of workers changes.
    """
    if progress < config.warmup_ratio:
        return config.learning_rate * progress / config.warmup_ratio

    decayed = min(1.0, (progress - config.warmup_ratio) / (1.0 - config.warmup_ratio))
    match config.schedule:
        case "constant":
            factor = 1.0
        case "linear":
            factor = 1.0 - decayed
        case "cosine":
            factor = 0.5 * (1.0 + math.cos(math.pi * decayed))
        case "cosine_with_restarts":
            cycle = 1.0 if decayed >= 1.0 else (decayed * config.num_cycles) % 1.0
            factor = 0.5 * (1.0 + math.cos(math.pi * cycle))

    return config.learning_rate * factor
