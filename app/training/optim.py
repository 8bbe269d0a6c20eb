"""AdamW over what is trained, and the learning rate as a function of the job's progress."""

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
    """AdamW over the trained parameters: torch's fused one (one kernel for all weights), or one of bitsandbytes'.

    bitsandbytes keeps the moments of weights with fewer than 4,096 elements in fp32 (its `min_8bit_size`).
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    how: dict[str, Any] = {
        "lr": config.learning_rate, "betas": (config.beta1, config.beta2), "eps": config.epsilon,
        "weight_decay": config.weight_decay,
    }  # fmt: skip
    if config.kind == "adamw":
        return torch.optim.AdamW(trained, **how, fused=True)
    kind = AdamW8bit if config.kind == "adamw_8bit" else PagedAdamW8bit
    optimizer: torch.optim.Optimizer = kind(trained, **how)
    return optimizer


def get_moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """What the optimizer remembers of a parameter. The 8-bit code books are constants, and left out."""
    state = optimizer.state[parameter]
    return {key: torch.as_tensor(value) for key, value in state.items() if key not in CODE_BOOKS}


def restore_moments(optimizer: Any, parameter: nn.Parameter, values: Mapping[str, Tensor]) -> None:
    """The inverse of `moments`, of values on the parameter's device. Raises UserError for another `optim.kind`'s."""
    in_8_bits = isinstance(optimizer, AdamW8bit | PagedAdamW8bit)
    if values and in_8_bits == ("exp_avg" in values):
        raise UserError(
            f"the checkpoint's moments are not those of {type(optimizer).__name__}: set optim.kind to what it was "
            "saved with, or start a new job with another train.run_name"
        )
    if not in_8_bits:
        optimizer.state[parameter] = dict(values)
        return
    optimizer.state[parameter] = {}
    optimizer.init_state(
        optimizer.param_groups[0], parameter, 0, 0
    )  # buffers where bitsandbytes wants them: paged
    for key, value in values.items():
        if value.ndim:
            optimizer.state[parameter][key].copy_(value)
        else:
            optimizer.state[parameter][key] = value.item()


def compute_learning_rate(config: OptimConfig, progress: float) -> float:
    """Learning rate at `progress` in [0, 1] of the job.

    Linear warm-up over `warmup_ratio`, then the schedule over the rest, in the shapes of transformers'
    `get_scheduler` (whose step / num_steps is our progress). A function of progress, not of a step count, needs
    no total number of steps, which a stream that packs as it goes does not know, and survives a change of the
    number of workers.
    """
    if progress < config.warmup_ratio:
        return config.learning_rate * progress / config.warmup_ratio
    done = min(1.0, (progress - config.warmup_ratio) / (1.0 - config.warmup_ratio))
    match config.schedule:
        case "constant":
            factor = 1.0
        case "linear":
            factor = 1.0 - done
        case "cosine":
            factor = 0.5 * (1.0 + math.cos(math.pi * done))
        case "cosine_with_restarts":
            cycle = 1.0 if done >= 1.0 else (done * config.num_cycles) % 1.0
            factor = 0.5 * (1.0 + math.cos(math.pi * cycle))
    return config.learning_rate * factor
