"""Compute Gemma 2's norm and PEFT's LoRA layer with a backward pass that keeps and copies less.

The arithmetic is that of transformers' and PEFT's modules. They stay in place: only their `forward`
is replaced.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
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

from app.gemma.compile_kernel import compile_kernel
from app.gemma.tiles import split_rows

NORM_TILE_TOKENS = 1024
"""Tokens that a norm processes at a time: its fp32 copies have this many rows."""
_KEPT = "dequantised"
"""Attribute of a 4-bit layer whose weight `keep_dequantised` keeps."""


def patch_layers(model: nn.Module) -> None:
    """Replace the forward of every frozen norm and every LoRA layer of a model."""
    for module in model.modules():
        if isinstance(module, Gemma2RMSNorm) and not module.weight.requires_grad:
            patch_forward(module, _norm_forward)
        elif isinstance(module, LoraLayer) and isinstance(module.get_base_layer(), nn.Linear):
            patch_forward(module, _lora_forward)


def patch_forward(module: Any, forward: Callable[..., Tensor], *arguments: Any) -> None:
    """Replace the forward of one module; its class does not change.

    A call of the module calls `forward(module, its forward until now, *arguments, …)`.
    """
    module.forward = partial(forward, module, module.forward, *arguments)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return Gemma 2's norm of x [.., H] with a frozen weight [H]: x / rms(x) · (1 + weight).

    It is computed in fp32 at least. For the backward pass it keeps x in its own dtype, and one
    number per token.
    """
    if not torch.is_grad_enabled():
        return _normalise_all(x, weight, eps)[0]
    normed: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return normed


def lora_linear(
    x: Tensor,
    base_layer: nn.Linear,
    a: Tensor,
    b: Tensor,
    *,
    scale: float,
    dropped: Tensor | None = None,
) -> Tensor:
    """Return x W^T + scale · (x A^T) B^T with the frozen weight W of `base_layer`: [.., out].

    x is [.., in], a [rank, in], b [out, rank]. `dropped` is x after the adapter's dropout, if any.
    Products are in x's dtype. A 4-bit W is dequantised in both passes and never kept. The
    update is added to the base layer's product in place.
    """
    if not torch.is_grad_enabled():
        return _multiply(x if dropped is None else dropped, x, a, b, base_layer, scale)[0]
    product: Tensor = _LoraLinear.apply(x, dropped, a, b, base_layer, scale)  # type: ignore[no-untyped-call]
    return product


def _norm_forward(module: Gemma2RMSNorm, _plain: Any, x: Tensor) -> Tensor:
    return rms_norm(x, module.weight, module.eps)


def _lora_forward(module: Any, plain: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Apply `lora_linear` with the one adapter, and PEFT's own forward where there is none."""
    if module.disable_adapters or module.merged or args or kwargs:
        unchanged: Tensor = plain(x, *args, **kwargs)
        return unchanged

    (name,) = module.active_adapters
    dropout, kind = module.lora_dropout[name], x.device.type
    is_dropped = dropout.training and not isinstance(dropout, nn.Identity)
    inner = x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x
    return lora_linear(
        inner,
        module.get_base_layer(),
        module.lora_A[name].weight,
        module.lora_B[name].weight,
        scale=module.scaling[name],
        dropped=dropout(inner) if is_dropped else None,
    ).to(x.dtype)


@contextmanager
def keep_dequantised(model: nn.Module, max_bytes: int) -> Iterator[None]:
    """Dequantise the first 4-bit weights of LoRA layers on a CPU once for many calls.

    The kept weights take `max_bytes` at most. Products stay the same.
    """
    kept = []
    for module in model.modules():
        layer = module.get_base_layer() if isinstance(module, LoraLayer) else None
        if isinstance(layer, Linear4bit) and layer.weight.device.type == "cpu":
            weight = _get_weight(layer, layer.compute_dtype)
            max_bytes -= weight.nbytes
            if max_bytes < 0:
                break
            setattr(layer, _KEPT, weight)
            kept.append(layer)
    try:
        yield
    finally:
        for layer in kept:
            delattr(layer, _KEPT)


class _RMSNorm(torch.autograd.Function):
    """Keeps x, its weight and 1 / rms(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out, scales = _normalise_all(x, weight, eps)
        ctx.save_for_backward(x, scales, weight)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        x, scales, weight = ctx.saved_tensors
        factor = 1.0 + weight.to(scales.dtype)
        inputs, results = (grad_output, x, scales), ((x.shape[-1], x.dtype),)
        (grad_x,) = _apply_by_rows(_compute_norm_gradient, inputs, (factor,), results)
        return grad_x, None, None


def _normalise_all(x: Tensor, weight: Tensor, eps: float) -> list[Tensor]:
    """Return the norm of x [.., H], and 1 / rms(x) [.., 1]."""
    compute_dtype = torch.promote_types(x.dtype, torch.float32)
    factor = 1.0 + weight.to(compute_dtype)
    results = ((x.shape[-1], x.dtype), (1, compute_dtype))
    return _apply_by_rows(_normalise, (x,), (factor, eps), results)


def _normalise(x: Tensor, factor: Tensor, eps: float) -> tuple[Tensor, ...]:
    """Return x / rms(x) · factor [T, H] and 1 / rms(x) [T, 1] for x [T, H]."""
    wide = x.to(factor.dtype)
    scale = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    return (wide * scale).mul_(factor).to(x.dtype), scale


def _compute_norm_gradient(
    grad_output: Tensor, x: Tensor, scale: Tensor, factor: Tensor
) -> tuple[Tensor, ...]:
    """Return the gradient of x [T, H] for grad_output [T, H] and scale = 1 / rms(x) [T, 1]."""
    normed = x.to(scale.dtype) * scale
    grad_normed = grad_output.to(scale.dtype) * factor
    projection = (grad_normed * normed).mean(-1, keepdim=True)
    grad_x = grad_normed.addcmul_(normed, projection, value=-1).mul_(scale)
    return (grad_x.to(x.dtype),)


def _apply_by_rows(
    function: Callable[..., tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    constants: tuple[Any, ...],
    results: Sequence[tuple[int, torch.dtype]],
) -> list[Tensor]:
    """Return function(*inputs, *constants) for inputs [.., n].

    `results` holds width and dtype of each result. On a GPU this is one compiled kernel without
    fp32 copies; elsewhere it processes ROWS rows at a time.
    """
    shape, device = inputs[0].shape[:-1], inputs[0].device
    flat = [tensor.detach().reshape(-1, tensor.shape[-1]) for tensor in inputs]
    if device.type == "cuda" or len(flat[0]) <= NORM_TILE_TOKENS:
        run = compile_kernel(function) if device.type == "cuda" else function
        return [result.view(*shape, -1) for result in run(*flat, *constants)]

    outputs = [torch.empty(*shape, width, dtype=dtype, device=device) for width, dtype in results]
    flat_outputs = [output.flatten(0, -2) for output in outputs]
    for rows in split_rows((*flat, *flat_outputs), NORM_TILE_TOKENS):
        row_inputs, row_outputs = rows[: len(flat)], rows[len(flat) :]
        for output, result in zip(row_outputs, function(*row_inputs, *constants), strict=True):
            output.copy_(result)
    return outputs


class _LoraLinear(torch.autograd.Function):
    """Keeps the adapter's input, its product with A, and the adapter's weights."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dropped: Tensor | None,
        a: Tensor,
        b: Tensor,
        base_layer: nn.Linear,
        scale: float,
    ) -> Tensor:
        adapter_input = x if dropped is None else dropped
        product, low_rank = _multiply(adapter_input, x, a, b, base_layer, scale)
        ctx.save_for_backward(adapter_input, low_rank, a, b)
        ctx.base_layer, ctx.scale, ctx.has_dropout = base_layer, scale, dropped is not None
        return product

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        adapter_input, low_rank, a, b = ctx.saved_tensors
        needs_x, needs_dropped, *_ = ctx.needs_input_grad
        grad_output = grad_output.flatten(0, -2)
        dtype = grad_output.dtype

        with torch.autocast(grad_output.device.type, enabled=False):
            # adapter
            grad_low_rank = (grad_output @ b.to(dtype)).mul_(ctx.scale)
            grad_a = grad_low_rank.T @ adapter_input.flatten(0, -2)
            grad_b = (grad_output.T @ low_rank).mul_(ctx.scale)

            # input
            grad_x = (grad_output @ _get_weight(ctx.base_layer, dtype)) if needs_x else None
            grad_dropped = None
            if ctx.has_dropout and needs_dropped:
                grad_dropped = (grad_low_rank @ a.to(dtype)).view(adapter_input.shape)
            elif not ctx.has_dropout and grad_x is not None:
                grad_x.addmm_(grad_low_rank, a.to(dtype))

        if grad_x is not None:
            grad_x = grad_x.view(adapter_input.shape)
        return grad_x, grad_dropped, grad_a.to(a.dtype), grad_b.to(b.dtype), None, None


def _multiply(
    adapter_input: Tensor, x: Tensor, a: Tensor, b: Tensor, base_layer: nn.Linear, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the layer's output [.., out], and the adapter's input times A [tokens, rank]."""
    kind = x.device.type
    # the context takes as long as a product of a few tokens
    is_needed = torch.is_autocast_enabled(kind)
    with torch.autocast(kind, enabled=False) if is_needed else nullcontext():
        product = _multiply_base(x, base_layer)
        low_rank = adapter_input.flatten(0, -2) @ a.to(x.dtype).T
        product.view(-1, len(b)).addmm_(low_rank, b.to(x.dtype).T, alpha=scale)
    return product, low_rank


def _multiply_base(x: Tensor, base_layer: nn.Linear) -> Tensor:
    """Return the base layer's product x W^T."""
    kept: Tensor | None = getattr(base_layer, _KEPT, None)
    if kept is not None:
        return nn.functional.linear(x, kept.to(x.dtype))
    # A weight that FSDP gathered has no quantisation state.
    quant_state: Any = base_layer.quant_state if isinstance(base_layer, Linear4bit) else None
    if quant_state is None:
        return nn.functional.linear(x, base_layer.weight.to(x.dtype))
    product: Tensor = matmul_4bit(x, base_layer.weight, quant_state=quant_state)
    return product


def _get_weight(base_layer: nn.Linear, dtype: torch.dtype) -> Tensor:
    """Return the base layer's weight [out, in], dequantised if it is stored in 4 bits."""
    weight: Tensor = (
        dequantize_4bit(base_layer.weight, base_layer.quant_state)
        if isinstance(base_layer, Linear4bit)
        else base_layer.weight
    )
    return weight.to(dtype)
