"""What a layer keeps between forward and backward: its input alone, on the device or on the host, the rest recomputed.

Chen et al. 2016 (arXiv:1604.06174) by whole layers; what follows attention is recomputed tile by tile of tokens, as
in Luo et al. 2024 (arXiv:2407.15892), so that no tensor of the MLP's width has all the tokens of a row. transformers'
layers stay in place: only their `forward` is replaced.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import Gemma2ForCausalLM

from app.errors import UserError
from app.gemma.config import MemoryConfig
from app.gemma.fused_layers import patch_forward, patch_layers
from app.gemma.offload import HostOffload
from app.gemma.tiles import iterate_tiles


def apply_memory_config(
    model: Gemma2ForCausalLM, memory: MemoryConfig, *, where: str = "cpu"
) -> None:
    """Make a frozen base with its adapter keep no more than `memory` says; loss and gradients stay what they are.

    where: the device that is the host; in a simulation of a GPU's memory it is `meta`. Raises UserError where `memory`
    cannot be had.
    """
    patch_layers(model)
    layers = model.model.layers
    host = HostOffload(where) if memory.offload else None
    if memory.embedding == "host":
        _embed_on_host(model, where)
    if not memory.gradient_checkpointing:
        return
    for layer in layers[: max(0, len(layers) - memory.keep_layers)]:
        patch_forward(layer, _forward, host, memory.tile_tokens)


def _embed_on_host(model: Gemma2ForCausalLM, where: str) -> None:
    """The tied embedding and head in page-locked memory. No parameter any more: DDP wants all of them on one device."""
    embedding: Any = model.model.embed_tokens
    if embedding.weight.requires_grad:
        raise UserError(
            "memory.embedding=host is for a frozen embedding: set lora.train_embeddings=false, or device"
        )
    weight, scale = embedding.weight.detach().to(where), embedding.embed_scale
    if embedding.weight.device.type == "cuda":
        weight = weight.pin_memory()
    for module, name, tensor in (
        (embedding, "weight", weight), (model.lm_head, "weight", weight), (embedding, "embed_scale", scale.to(where)),
    ):  # fmt: skip
        delattr(module, name)
        setattr(module, name, tensor)
    patch_forward(embedding, lambda _, plain, ids: plain(ids.to(where)).to(ids.device))


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _forward(
    layer: Any, plain: Any, host: HostOffload | None, tile: int, hidden: Tensor, **context: Any
) -> Tensor:
    """hidden [B, S, H] → [B, S, H]; whoever evaluates or generates gets transformers' own forward."""
    if not (layer.training and torch.is_grad_enabled()):
        unchanged: Tensor = plain(hidden, **context)
        return unchanged
    attention, rest = (
        [p for p in part.parameters() if p.requires_grad] for part in (layer.self_attn, layer.mlp)
    )
    out: Tensor = _Recomputed.apply(
        hidden, layer, context, host, tile, len(attention), *attention, *rest
    )  # type: ignore[no-untyped-call]
    return out


def _attend(layer: Any, hidden: Tensor, context: dict[str, Any]) -> Tensor:
    """The first half of Gemma2DecoderLayer.forward."""
    attended = layer.self_attn(hidden_states=layer.input_layernorm(hidden), **context)[0]
    added: Tensor = layer.post_attention_layernorm(attended)
    return hidden + added


def _feed_forward(layer: Any, hidden: Tensor) -> Tensor:
    """The second half, of any tokens [T, H]: none of them sees another."""
    added: Tensor = layer.post_feedforward_layernorm(
        layer.mlp(layer.pre_feedforward_layernorm(hidden))
    )
    return hidden + added


class _Recomputed(torch.autograd.Function):
    """One layer. Its trained parameters are arguments, so that each has one gradient a backward pass (DDP, FSDP)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        layer: nn.Module,
        context: dict[str, Any],
        host: HostOffload | None,
        tile: int,
        num_attention: int,
        *parameters: Tensor,
    ) -> Tensor:
        ctx.layer, ctx.context, ctx.tile = layer, context, tile
        ctx.state = _State(hidden.device)
        ctx.host, ctx.copy = host, None if host is None else host.put(hidden)
        ctx.save_for_backward(hidden if host is None else None)
        ctx.parameters = parameters[:num_attention], parameters[num_attention:]
        out = _attend(layer, hidden, context).contiguous()
        for tokens in iterate_tiles(out.flatten(0, 1).split(tile), out):
            tokens.copy_(_feed_forward(layer, tokens))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (hidden,) = ctx.saved_tensors
        if hidden is None:
            hidden = ctx.host.get(ctx.copy)
        hidden = hidden.detach().requires_grad_(ctx.needs_input_grad[0])
        of_attention, of_rest = ctx.parameters
        with ctx.state.again(), torch.enable_grad():
            middle = _attend(ctx.layer, hidden, ctx.context)
            of_middle = upstream.new_empty(upstream.shape)
            sums: list[Tensor] = []
            each = (
                tensor.flatten(0, 1).split(ctx.tile)
                for tensor in (middle.detach(), upstream, of_middle)
            )
            for tokens, up, out in iterate_tiles([*zip(*each, strict=True)], middle):
                tokens = tokens.detach().requires_grad_()
                first, *rest = torch.autograd.grad(
                    _feed_forward(ctx.layer, tokens), (tokens, *of_rest), up
                )
                out.copy_(first)
                sums = (
                    [total.add_(part) for total, part in zip(sums, rest, strict=True)]
                    if sums
                    else rest
                )
        wanted = [tensor for tensor in (hidden, *of_attention) if tensor.requires_grad]
        gradients = list(torch.autograd.grad(middle, wanted, of_middle)) if wanted else []
        of_hidden = gradients.pop(0) if ctx.needs_input_grad[0] else None
        return of_hidden, None, None, None, None, None, *gradients, *sums


class _State:
    """Random numbers and autocast as they are now, for a second run that must not differ."""

    def __init__(self, device: torch.device) -> None:
        self._kind = device.type
        self._random = torch.get_rng_state()
        self._random_of = (
            {device: torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
        )
        self._enabled, self._dtype = (
            torch.is_autocast_enabled(self._kind),
            torch.get_autocast_dtype(self._kind),
        )

    @contextmanager
    def again(self) -> Iterator[None]:
        with (
            torch.random.fork_rng(self._random_of),
            torch.autocast(self._kind, self._dtype, self._enabled),
        ):
            torch.set_rng_state(self._random)
            for device, state in self._random_of.items():
                torch.cuda.set_rng_state(state, device)
            yield
