"""Compute the same attention on a GPU with FlexAttention (PyTorch's, arXiv:2412.05496), compiled.

Its block mask is planned on the device. The mask and the forward pass are tested on a CPU; the
compiled kernel needs a GPU to run. Letters of shapes: see `blockwise`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from app.gemma.block_mask import cache_per_tensor
from app.gemma.compile_kernel import compile_kernel

BLOCK = 128
"""Queries and keys in one block of FlexAttention's sparse mask (tokens)."""


def flex_softcapped_attention(
    query: Tensor, key: Tensor, value: Tensor, **attention: Any
) -> Tensor:
    """Compute `softcapped_attention` on CUDA tensors.

    Uncompiled, FlexAttention would build the [S, S] scores.
    """
    attended: Tensor = compile_kernel(flex_attention)(
        query, key, value, **build_flex_arguments(query, **attention)
    )
    return attended


def build_flex_arguments(
    query: Tensor,
    *,
    scale: float,
    softcap: float | None,
    window: int | None,
    document_ids: Tensor | None,
) -> dict[str, Any]:
    """Return FlexAttention's keyword arguments. Layers of one batch share the block mask."""
    batch, _, length, _ = query.shape
    if document_ids is None:
        one_document = torch.zeros(batch, length, dtype=torch.int64, device=query.device)
        mask = build_block_mask(one_document, window)
    else:
        mask = cache_per_tensor(
            document_ids, ("flex", window), lambda: build_block_mask(document_ids, window)
        )

    def cap_score(
        score: Tensor, _batch: Tensor, _head: Tensor, _query: Tensor, _key: Tensor
    ) -> Tensor:
        # softcap · tanh(score / softcap), as a sigmoid: a GPU computes exp faster than tanh
        return (
            score if softcap is None else softcap * (2 * torch.sigmoid(score * (2 / softcap)) - 1)
        )

    return {
        "score_mod": cap_score,
        "block_mask": mask,
        "scale": scale,
        "enable_gqa": True,
        "kernel_options": _choose_kernel_options(query),
    }


def _choose_kernel_options(query: Tensor) -> dict[str, Any]:
    """Return FlexAttention's kernel options, with tiles of our own for one case.

    For heads of width 256 in 16 bits on Hopper other tiles than FlexAttention's were faster on an
    H100 (docs/gpu.md). Its decoding kernel, which it would choose for sequences shorter than a
    block, has no configuration for these heads: the options choose the Triton kernel.
    """
    options: dict[str, Any] = {"BACKEND": "TRITON"}
    hopper = query.is_cuda and torch.cuda.get_device_capability(query.device) == (9, 0)
    if hopper and query.shape[-1] == 256 and query.element_size() == 2:
        options |= {
            "fwd_BLOCK_M": 128, "fwd_BLOCK_N": 64, "fwd_num_stages": 2, "fwd_num_warps": 8,
            "bwd_BLOCK_M1": 64, "bwd_BLOCK_N1": 64, "bwd_BLOCK_M2": 64, "bwd_BLOCK_N2": 64,
            "bwd_num_stages": 2, "bwd_num_warps": 8,
        }  # fmt: skip
    return options


def build_block_mask(document_ids: Tensor, window: int | None) -> BlockMask:
    """Return the blocks to compute and to mask for document_ids [B, S].

    It runs without a host synchronisation.
    """
    # first key that each query sees [B, S]
    length = document_ids.shape[1]
    positions = torch.arange(length, device=document_ids.device)
    is_start = torch.zeros_like(document_ids, dtype=torch.bool)
    is_start[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    first_keys = torch.where(is_start, positions, 0).cummax(dim=1).values
    if window is not None:
        first_keys = torch.maximum(first_keys, positions - (window - 1))

    # first keys of the first and last query of each block: they never decrease within a sequence
    blocks = torch.arange(-(-length // BLOCK), device=document_ids.device)
    last_queries = ((blocks + 1) * BLOCK - 1).clamp(max=length - 1)
    first_key_of_first_query = first_keys[:, blocks * BLOCK][:, None, :, None]
    first_key_of_last_query = first_keys[:, last_queries][:, None, :, None]

    # blocks with a visible key, and blocks of visible keys only [B, 1, query blocks, key blocks]
    needed = (blocks <= blocks[:, None]) & (blocks >= first_key_of_first_query // BLOCK)
    full = (blocks < blocks[:, None]) & (blocks * BLOCK >= first_key_of_last_query)

    def is_visible(sequence: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= first_keys[sequence, query])

    return BlockMask.from_kv_blocks(
        *_order_blocks(needed & ~full),
        *_order_blocks(full),
        BLOCK_SIZE=BLOCK,
        mask_mod=is_visible,
        seq_lengths=(length, length),
    )


def _order_blocks(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number of chosen key blocks, and all key blocks with the chosen ones first.

    The number is [B, 1, query blocks], the order is [B, 1, query blocks, key blocks]; both int32.
    """
    order = torch.argsort(chosen.to(torch.int8), dim=-1, descending=True, stable=True)
    return chosen.sum(dim=-1, dtype=torch.int32), order.to(torch.int32)
