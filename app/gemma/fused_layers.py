"""Gemma 2's norm and PEFT's LoRA layer, with a backward pass that keeps and copies only what it needs.

The same arithmetic as transformers' and PEFT's modules, which stay in place: only their `forward` is replaced.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from bitsandbytes.autograd._functions import matmul_4bit
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm

from app.gemma.kernels import compile_kernel
from app.gemma.tiles import iterate_tiles

ROWS = 1024
"""Tokens that a norm takes at a time: its fp32 copies have this many rows."""


def patch_layers(model: nn.Module) -> None:
    """Replace the forward of every norm and LoRA layer of a model with a frozen base."""
    for module in model.modules():
        if isinstance(module, Gemma2RMSNorm) and not module.weight.requires_grad:
            patch_forward(module, _norm_forward)
        elif isinstance(module, LoraLayer) and isinstance(module.get_base_layer(), nn.Linear):
            patch_forward(module, _lora_forward)


def patch_forward(module: Any, forward: Callable[..., Tensor], *more: Any) -> None:
    """Calling this one module calls `forward(module, its forward until now, *more, …)`; its class stays as it is."""
    module.forward = partial(forward, module, module.forward, *more)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Gemma 2's norm of x [.., H] with a frozen weight [H]: x / rms(x) · (1 + weight), computed in fp32 at least.

    Kept for the backward pass: x as it came, and one number a token.
    """
    normed: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return normed


def lora_linear(
    x: Tensor, base: nn.Linear, a: Tensor, b: Tensor, *, scale: float, dropped: Tensor | None = None
) -> Tensor:
    """x W^T + scale · (x A^T) B^T with a frozen W: x [.., in], a [rank, in], b [out, rank] → [.., out].

    `dropped`: x after the adapter's dropout, where it has one. Products are in x's dtype. A 4-bit W is dequantised in
    either pass and never kept; the update is added to the base's product in place.
    """
    product: Tensor = _LoraLinear.apply(x, dropped, a, b, base, scale)  # type: ignore[no-untyped-call]
    return product


def _norm_forward(module: Gemma2RMSNorm, _plain: Any, x: Tensor) -> Tensor:
    return rms_norm(x, module.weight, module.eps)


def _lora_forward(module: Any, plain: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """In training, with the one adapter; in every other case PEFT's own forward."""
    if not module.training or module.disable_adapters or module.merged or args or kwargs:
        unchanged: Tensor = plain(x, *args, **kwargs)
        return unchanged
    (name,) = module.active_adapters
    dropout, kind = module.lora_dropout[name], x.device.type
    inner = x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x
    return lora_linear(
        inner, module.get_base_layer(), module.lora_A[name].weight, module.lora_B[name].weight,
        scale=module.scaling[name], dropped=None if isinstance(dropout, nn.Identity) else dropout(inner),
    ).to(x.dtype)  # fmt: skip


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        exact = torch.promote_types(x.dtype, torch.float32)
        out, scales = _by_rows(
            _norm, (x,), (1.0 + weight.to(exact), eps), ((x.shape[-1], x.dtype), (1, exact))
        )
        ctx.save_for_backward(x, scales, weight)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        x, scales, weight = ctx.saved_tensors
        factor = 1.0 + weight.to(scales.dtype)
        (gradient,) = _by_rows(
            _norm_gradient, (upstream, x, scales), (factor,), ((x.shape[-1], x.dtype),)
        )
        return gradient, None, None


def _norm(x: Tensor, factor: Tensor, eps: float) -> tuple[Tensor, ...]:
    """Of rows [T, H]: x / rms(x) · factor, and 1 / rms(x) [T, 1]."""
    wide = x.to(factor.dtype)
    scale = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    return (wide * scale).mul_(factor).to(x.dtype), scale


def _norm_gradient(
    upstream: Tensor, x: Tensor, scale: Tensor, factor: Tensor
) -> tuple[Tensor, ...]:
    """Of upstream and x [T, H], scale [T, 1]."""
    normed = x.to(scale.dtype) * scale
    own = upstream.to(scale.dtype) * factor
    inner = (own * normed).mean(-1, keepdim=True)
    return (own.addcmul_(normed, inner, value=-1).mul_(scale).to(x.dtype),)


def _by_rows(
    function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor], fixed: tuple[Any, ...],
    results: Sequence[tuple[int, torch.dtype]],
) -> list[Tensor]:  # fmt: skip
    """function(*inputs, *fixed) of inputs [.., n]; `results`: width and dtype of each.

    On a GPU one compiled kernel without fp32 copies; elsewhere ROWS rows at a time.
    """
    shape, device = inputs[0].shape[:-1], inputs[0].device
    flat = [tensor.detach().reshape(-1, tensor.shape[-1]) for tensor in inputs]
    if device.type == "cuda" or len(flat[0]) <= ROWS:
        run = compile_kernel(function) if device.type == "cuda" else function
        return [result.view(*shape, -1) for result in run(*flat, *fixed)]
    made = [torch.empty(*shape, width, dtype=dtype, device=device) for width, dtype in results]
    parts = [tensor.split(ROWS) for tensor in (*flat, *(result.flatten(0, -2) for result in made))]
    for rows in iterate_tiles([*zip(*parts, strict=True)], inputs[0]):
        for into, result in zip(
            rows[len(flat) :], function(*rows[: len(flat)], *fixed), strict=True
        ):
            into.copy_(result)
    return made


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dropped: Tensor | None,
        a: Tensor,
        b: Tensor,
        base: nn.Linear,
        scale: float,
    ) -> Tensor:
        seen = x if dropped is None else dropped
        with torch.autocast(x.device.type, enabled=False):
            product = _base_product(x, base)
            low = seen.flatten(0, -2) @ a.to(x.dtype).T  # [tokens, rank]
            product.view(-1, len(b)).addmm_(low, b.to(x.dtype).T, alpha=scale)
        ctx.save_for_backward(seen, low, a, b)
        ctx.base, ctx.scale, ctx.drops = base, scale, dropped is not None
        return product

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        seen, low, a, b = ctx.saved_tensors
        needs_x, needs_dropped, *_ = ctx.needs_input_grad
        up = upstream.flatten(0, -2)
        with torch.autocast(up.device.type, enabled=False):
            up_low = (up @ b.to(up.dtype)).mul_(ctx.scale)
            of_a = up_low.T @ seen.flatten(0, -2)
            of_b = (up.T @ low).mul_(ctx.scale)
            of_x = (up @ _weight(ctx.base, up.dtype)) if needs_x else None
            of_dropped = None
            if ctx.drops and needs_dropped:
                of_dropped = (up_low @ a.to(up.dtype)).view(seen.shape)
            elif not ctx.drops and of_x is not None:
                of_x.addmm_(up_low, a.to(up.dtype))
        if of_x is not None:
            of_x = of_x.view(seen.shape)
        return of_x, of_dropped, of_a.to(a.dtype), of_b.to(b.dtype), None, None


def _base_product(x: Tensor, base: nn.Linear) -> Tensor:
    constants: Any = (
        base.quant_state if isinstance(base, Linear4bit) else None
    )  # FSDP's gathered weight has none
    if constants is None:
        return nn.functional.linear(x, base.weight.to(x.dtype))
    product: Tensor = matmul_4bit(x, base.weight, quant_state=constants)
    return product


def _weight(base: nn.Linear, dtype: torch.dtype) -> Tensor:
    """[out, in], dequantised where it is stored in 4 bits."""
    weight: Tensor = (
        dequantize_4bit(base.weight, base.quant_state)
        if isinstance(base, Linear4bit)
        else base.weight
    )
    return weight.to(dtype)
