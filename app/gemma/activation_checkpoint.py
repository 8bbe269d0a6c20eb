"""Keep only each layer's input between forward and backward, and recompute the rest.

Whole layers are recomputed as in Chen et al. 2016 (arXiv:1604.06174). The part after attention is
recomputed tile by tile of tokens, as in Luo et al. 2024 (arXiv:2407.15892): no tensor of the MLP's
width holds all tokens of a micro-batch. The input may wait in host memory. transformers' layers
stay in place: only their `forward` is replaced.
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
from app.gemma.tiles import split_rows


def apply_memory_config(
    model: Gemma2ForCausalLM, memory: MemoryConfig, *, host_device: str = "cpu"
) -> None:
    """Patch norms and LoRA layers; recompute, offload, move the embedding as `memory` configures.

    `model` is a base model with its adapter. Loss and gradients stay the same. `host_device` is the
    torch device of the host: `meta` in a simulation of a GPU's memory. Raises UserError if the
    embedding is trained but shall be on the host.
    """
    patch_layers(model)
    layers, settings = model.model.layers, memory.settings
    offload = HostOffload(host_device) if settings.offload else None

    if settings.embedding == "host":
        _move_embedding_to_host(model, host_device)
    if not settings.gradient_checkpointing:
        return
    for layer in layers[: max(0, len(layers) - settings.keep_layers)]:
        patch_forward(layer, _checkpointed_forward, offload, settings.tile_tokens)


def compile_model(model: Gemma2ForCausalLM) -> None:
    """Compile a base model with torch.compile, after `apply_memory_config`.

    A recomputed layer runs outside the compiled model. Its MLP is compiled alone.
    """
    model.model.compile()
    for layer in model.model.layers:
        layer.mlp.compile()


def _move_embedding_to_host(model: Gemma2ForCausalLM, host_device: str) -> None:
    """Move the tied embedding and head to page-locked host memory.

    The weight stops being a parameter, because DDP requires all parameters on one device.
    """
    embedding: Any = model.model.embed_tokens
    if embedding.weight.requires_grad:
        raise UserError(
            "memory.embedding=host needs a frozen embedding: set lora.train_embeddings=false, "
            "or memory.embedding=device"
        )
    weight, scale = embedding.weight.detach().to(host_device), embedding.embed_scale
    if embedding.weight.device.type == "cuda":
        weight = weight.pin_memory()

    for module, name, tensor in (
        (embedding, "weight", weight),
        (model.lm_head, "weight", weight),
        (embedding, "embed_scale", scale.to(host_device)),
    ):
        delattr(module, name)
        setattr(module, name, tensor)
    patch_forward(embedding, lambda _, plain, ids: plain(ids.to(host_device)).to(ids.device))


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _checkpointed_forward(
    layer: Any,
    plain: Any,
    offload: HostOffload | None,
    tile_tokens: int,
    hidden: Tensor,
    **context: Any,
) -> Tensor:
    """Return the layer's output [B, S, H] for hidden [B, S, H].

    Evaluation and generation use transformers' own forward, `plain`.
    """
    if not (layer.training and torch.is_grad_enabled()):
        unchanged: Tensor = plain(hidden, **context)
        return unchanged

    attention, feed_forward = (
        [p for p in part.parameters() if p.requires_grad] for part in (layer.self_attn, layer.mlp)
    )
    out: Tensor = _CheckpointedLayer.apply(
        hidden, layer, context, offload, tile_tokens, len(attention), *attention, *feed_forward
    )  # type: ignore[no-untyped-call]
    return out


def _attend(layer: Any, hidden: Tensor, context: dict[str, Any]) -> Tensor:
    """Compute the first half of Gemma2DecoderLayer.forward: norms, attention, residual."""
    attended = layer.self_attn(hidden_states=layer.input_layernorm(hidden), **context)[0]
    added: Tensor = layer.post_attention_layernorm(attended)
    return hidden + added


def _feed_forward(layer: Any, hidden: Tensor) -> Tensor:
    """Compute the second half of Gemma2DecoderLayer.forward for any tokens [T, H].

    It treats each token alone, so tokens can be computed in tiles.
    """
    added: Tensor = layer.post_feedforward_layernorm(
        layer.mlp(layer.pre_feedforward_layernorm(hidden))
    )
    return hidden + added


class _CheckpointedLayer(torch.autograd.Function):
    """One layer, recomputed in the backward pass.

    Its trained parameters are arguments, so that each gets one gradient in a backward pass: DDP and
    FSDP need that.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        layer: nn.Module,
        context: dict[str, Any],
        offload: HostOffload | None,
        tile_tokens: int,
        num_attention: int,
        *parameters: Tensor,
    ) -> Tensor:
        ctx.layer, ctx.context, ctx.tile_tokens = layer, context, tile_tokens
        ctx.state = _SavedState(hidden.device)
        ctx.offload = offload
        ctx.offloaded = None if offload is None else offload.put(hidden)
        ctx.save_for_backward(hidden if offload is None else None)
        ctx.parameters = parameters[:num_attention], parameters[num_attention:]

        out = _attend(layer, hidden, context).contiguous()
        for (tokens,) in split_rows([out.flatten(0, 1)], tile_tokens):
            tokens.copy_(_feed_forward(layer, tokens))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (hidden,) = ctx.saved_tensors
        if hidden is None:
            hidden = ctx.offload.get(ctx.offloaded)
        hidden = hidden.detach().requires_grad_(ctx.needs_input_grad[0])
        attention_parameters, feed_forward_parameters = ctx.parameters

        # recompute the layer; backward through its second half, tile by tile
        with ctx.state.restore(), torch.enable_grad():
            middle = _attend(ctx.layer, hidden, ctx.context)
            grad_middle = grad_output.new_empty(grad_output.shape)
            grad_feed_forward: list[Tensor] = []
            flat = (tensor.flatten(0, 1) for tensor in (middle.detach(), grad_output, grad_middle))
            for tokens, grad_out, grad_in in split_rows(flat, ctx.tile_tokens):
                tokens = tokens.detach().requires_grad_()
                grad_tokens, *grad_parameters = torch.autograd.grad(
                    _feed_forward(ctx.layer, tokens), (tokens, *feed_forward_parameters), grad_out
                )
                grad_in.copy_(grad_tokens)
                grad_feed_forward = _add_gradients(grad_feed_forward, grad_parameters)

        # backward through attention
        inputs = [tensor for tensor in (hidden, *attention_parameters) if tensor.requires_grad]
        grads = list(torch.autograd.grad(middle, inputs, grad_middle)) if inputs else []
        grad_hidden = grads.pop(0) if ctx.needs_input_grad[0] else None
        return grad_hidden, None, None, None, None, None, *grads, *grad_feed_forward


def _add_gradients(total: list[Tensor], added: list[Tensor]) -> list[Tensor]:
    """Add to the gradients in place, or return the added ones if there are none yet."""
    if not total:
        return added
    return [grad.add_(other) for grad, other in zip(total, added, strict=True)]


class _SavedState:
    """Random numbers and autocast at the forward pass, so that the second run repeats it."""

    def __init__(self, device: torch.device) -> None:
        self._kind = device.type
        self._cpu_rng = torch.get_rng_state()
        self._cuda_rng = {device: torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
        self._autocast_enabled = torch.is_autocast_enabled(self._kind)
        self._autocast_dtype = torch.get_autocast_dtype(self._kind)

    @contextmanager
    def restore(self) -> Iterator[None]:
        """Run the block in the saved state, and restore the present one after it."""
        with (
            torch.random.fork_rng(self._cuda_rng),
            torch.autocast(self._kind, self._autocast_dtype, self._autocast_enabled),
        ):
            torch.set_rng_state(self._cpu_rng)
            for device, state in self._cuda_rng.items():
                torch.cuda.set_rng_state(state, device)
            yield
