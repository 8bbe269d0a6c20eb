"""The same attention on a GPU: FlexAttention (PyTorch's, arXiv:2412.05496), compiled, with its block mask planned on
the device. The mask and the forward pass are tested on a CPU; the compiled kernel needs a GPU to run."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from app.gemma.block_mask import cache_per_tensor
from app.gemma.kernels import compile_kernel

BLOCK = 128
"""Queries and keys in one block of FlexAttention's sparse mask (tokens)."""


def flex_softcapped_attention(
    query: Tensor, key: Tensor, value: Tensor, **attention: Any
) -> Tensor:
    """`softcapped_attention` on CUDA tensors. Uncompiled, FlexAttention would build the [S, S] scores."""
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
    """FlexAttention's keyword arguments; layers of one batch share the block mask."""
    batch, _, length, _ = query.shape
    if document_ids is None:
        mask = build_block_mask(
            torch.zeros(batch, length, dtype=torch.int64, device=query.device), window
        )
    else:
        mask = cache_per_tensor(
            document_ids, ("flex", window), lambda: build_block_mask(document_ids, window)
        )

    def capped(
        score: Tensor, _batch: Tensor, _head: Tensor, _query: Tensor, _key: Tensor
    ) -> Tensor:
        # softcap · tanh(score / softcap), of which a GPU computes the exponential faster than the tanh.
        return (
            score if softcap is None else softcap * (2 * torch.sigmoid(score * (2 / softcap)) - 1)
        )

    return {
        "score_mod": capped,
        "block_mask": mask,
        "scale": scale,
        "enable_gqa": True,
        "kernel_options": choose_kernel_options(query),
    }


def choose_kernel_options(query: Tensor) -> dict[str, Any]:
    """FlexAttention's own choice of tiles, but for heads of 256 in 16 bits on Hopper, where others were faster on an
    H100 (docs/gpu.md). Its kernel for decoding, which it would take for rows of less than a block, has no
    configuration for them."""
    options: dict[str, Any] = {"BACKEND": "TRITON"}
    hopper = query.is_cuda and torch.cuda.get_device_capability(query.device) == (9, 0)
    if hopper and query.shape[-1] == 256 and query.element_size() == 2:
        options |= {"fwd_BLOCK_M": 128, "fwd_BLOCK_N": 64, "fwd_num_stages": 2, "fwd_num_warps": 8,
                    "bwd_BLOCK_M1": 64, "bwd_BLOCK_N1": 64, "bwd_BLOCK_M2": 64, "bwd_BLOCK_N2": 64,
                    "bwd_num_stages": 2, "bwd_num_warps": 8}  # fmt: skip
    return options


def build_block_mask(document_ids: Tensor, window: int | None) -> BlockMask:
    """Blocks to compute and blocks to mask for document_ids [B, S], without a word to the host."""
    length = document_ids.shape[1]
    places = torch.arange(length, device=document_ids.device)
    borders = torch.zeros_like(document_ids, dtype=torch.bool)
    borders[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    starts = (
        torch.where(borders, places, 0).cummax(dim=1).values
    )  # [B, S] first key that each query sees
    if window is not None:
        starts = torch.maximum(starts, places - (window - 1))
    blocks = torch.arange(-(-length // BLOCK), device=document_ids.device)
    of_first = starts[:, blocks * BLOCK][:, None, :, None]  # starts never fall within a row
    of_last = starts[:, ((blocks + 1) * BLOCK - 1).clamp(max=length - 1)][:, None, :, None]
    needed = (blocks <= blocks[:, None]) & (
        blocks >= of_first // BLOCK
    )  # [B, 1, blocks of queries, blocks of keys]
    full = (blocks < blocks[:, None]) & (blocks * BLOCK >= of_last)

    def seen(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= starts[row, query])

    return BlockMask.from_kv_blocks(
        *_ordered(needed & ~full),
        *_ordered(full),
        BLOCK_SIZE=BLOCK,
        mask_mod=seen,
        seq_lengths=(length, length),
    )


def _ordered(dense: Tensor) -> tuple[Tensor, Tensor]:
    """Number of chosen blocks [B, 1, blocks] and their indices first [B, 1, blocks, blocks], both int32."""
    order = torch.argsort(dense.to(torch.int8), dim=-1, descending=True, stable=True)
    return dense.sum(dim=-1, dtype=torch.int32), order.to(torch.int32)
