"""AdamW over what is trained, and the learning rate as a function of the job's progress."""

import math

import torch
from torch import nn

from app.training.config import OptimConfig


def adamw(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW (one kernel for all weights) over the trained parameters."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(
        trained,
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate(config: OptimConfig, progress: float) -> float:
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
            cycle = 1.0 if done >= 1.0 else (done * config.restarts) % 1.0
            factor = 0.5 * (1.0 + math.cos(math.pi * cycle))
    return config.learning_rate * factor
