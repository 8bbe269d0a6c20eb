"""The memory of a GPU that one worker may use, if the workers have a card or a share of one."""

import os

from app.config import Config
from app.errors import UserError

GIB = 2**30
NON_ALLOCATOR_GIB = 1.0
"""Memory of a card outside the allocator of one process: CUDA's context and loaded kernels (GiB).

Measured on one H100: 0.9 to 1.2.
"""
_MULTI_RANK = "NCCL_MULTI_RANK_GPU_ENABLE"


def get_cap_bytes(config: Config) -> float | None:
    """Return one worker's share of memory.max_gib_per_gpu in bytes; None without that limit."""
    cap_gib = config.memory.max_gib_per_gpu
    return None if cap_gib is None else cap_gib * GIB * config.scaling.gpus_per_worker


def get_usable_bytes(card_bytes: float, config: Config) -> float:
    """Return the bytes of its share of a card that one worker's allocator may use."""
    return card_bytes * config.scaling.gpus_per_worker - NON_ALLOCATOR_GIB * GIB


def get_allocator_limit(card_bytes: float, config: Config) -> float | None:
    """Return the limit to set for one worker's allocator (bytes); None: the worker has the card."""
    cap_bytes = get_cap_bytes(config)
    if config.scaling.gpus_per_worker == 1:
        return cap_bytes
    usable_bytes = get_usable_bytes(card_bytes, config)
    return usable_bytes if cap_bytes is None else min(cap_bytes, usable_bytes)


def require_own_cards(config: Config, num_workers: int) -> None:
    """Raise UserError if workers of one job would share a card, which NCCL refuses by default."""
    scaling = config.scaling
    is_shared = num_workers > 1 and 0 < scaling.reserved_gpus <= 0.5
    if is_shared and os.environ.get(_MULTI_RANK) != "1":
        raise UserError(
            f"scaling.gpus_per_worker={scaling.gpus_per_worker:g} lets {num_workers} workers of "
            "one job share a card, which NCCL refuses: set scaling.gpus_per_worker=1, train with "
            f"one worker, or set {_MULTI_RANK}=1 with NCCL 2.30 or newer"
        )
