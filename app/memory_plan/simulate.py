"""A Gemma 2 of fake tensors, and who holds how many bytes while it trains. Needs no weights, no GPU, no hub.

Fake tensors have shapes and storages without memory, and go through the real code: modules, autograd, checkpointing,
optimizer. They say that they are on the CPU, which stands for the training device; what says `meta` is on the host.
torch's own MemTracker needs minutes for a 9B and does not see frozen parameters.
"""

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from bitsandbytes.backends.default.ops import _gemm_4bit_default_impl
from bitsandbytes.functional import name2qmap, quantize_4bit
from bitsandbytes.nn.modules import Linear4bit
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, BitsAndBytesConfig, Gemma2Config, Gemma2ForCausalLM
from transformers.integrations.bitsandbytes import replace_with_bnb_linear

from app.gemma import flex_attention
from app.gemma.block_mask import cache_per_tensor
from app.gemma.config import QuantizationConfig

Category = Literal["weights", "lora", "optimizer", "gradients", "activations", "loss", "temporary"]
CATEGORIES: tuple[Category, ...] = (
    "weights", "lora", "optimizer", "gradients", "activations", "loss", "temporary"
)  # fmt: skip
"""activations: what the forward pass keeps for the backward pass, but for the loss; temporary: the rest, with what
is recomputed."""
FUSED_ATTENTION = "fused_simulated"
"""The attention of transformers' interface that takes a GPU kernel's memory and computes nothing."""
_COPYING = {torch.ops.aten.logsumexp.default}
"""Kernels that hold one more tensor like their input while they run (torch 2.13, ATen/native/ReduceOps.cpp)."""
_COPYING_ON_GPU = _COPYING | {torch.ops.aten._softmax_backward_data.default}
"""And those of CUDA: gradient times output in the softmax's backward pass, as seen on one (docs/gpu.md)."""
Bytes = npt.NDArray[np.float64]


def build_meta_model(
    config: Gemma2Config, quantization: QuantizationConfig, *, attention: str, dtype: torch.dtype
) -> Any:
    """The frozen base as `load_base` gives it, on the meta device."""
    with torch.device("meta"):
        base = Gemma2ForCausalLM._from_config(config, dtype=dtype, attn_implementation=attention)
    if quantization.kind != "none":
        stored = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization.kind,
            bnb_4bit_use_double_quant=quantization.double_quant,
            bnb_4bit_compute_dtype=dtype,
        )
        replace_with_bnb_linear(base, ["lm_head"], stored)
        base.is_loaded_in_4bit = True
    if dtype == torch.float16:
        base.get_input_embeddings().register_forward_hook(
            lambda _module, _inputs, output: output.float()
        )
    return base.requires_grad_(False)


def allocate_fake_storage(model: nn.Module, dtype: torch.dtype) -> None:
    """Give every parameter and buffer of a meta model its fake storage. Call it inside a FakeTensorMode."""
    given: dict[nn.Parameter, Any] = {}  # tied weights stay one
    real = dict(
        name2qmap
    )  # bitsandbytes keeps its code book for the process: a fake one must not stay in it
    name2qmap.clear()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in given:
                given[parameter] = (
                    _quantised(parameter, dtype)
                    if isinstance(module, Linear4bit)
                    else _empty(parameter)
                )
            module._parameters[name] = given[parameter]
            if isinstance(module, Linear4bit):
                module.quant_state = given[parameter].quant_state
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    name2qmap.clear()
    name2qmap.update(real)


def list_frozen_tensors(model: nn.Module) -> list[Tensor]:
    """Every tensor that a frozen base consists of, with the constants of 4-bit weights."""
    found = [
        tensor for tensor in (*model.parameters(), *model.buffers()) if not tensor.requires_grad
    ]
    found += [
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor)
    ]
    states = [
        parameter.quant_state
        for parameter in model.parameters()
        if hasattr(parameter, "quant_state")
    ]
    states += [state.state2 for state in states if state.nested]
    return found + [
        leaf for state in states for leaf in vars(state).values() if isinstance(leaf, Tensor)
    ]


def _empty(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(
        torch.empty(parameter.shape, dtype=parameter.dtype), requires_grad=parameter.requires_grad
    )


def _quantised(weight: Any, dtype: torch.dtype) -> nn.Parameter:
    """bitsandbytes' own packed weight and constants. It is no Params4bit, since a FakeTensor can't be one."""
    packed, state = quantize_4bit(
        torch.empty(weight.shape, dtype=dtype),
        quant_type=weight.quant_type,
        compress_statistics=weight.compress_statistics,
    )
    parameter: Any = nn.Parameter(packed, requires_grad=False)
    parameter.quant_state = state
    return parameter  # type: ignore[no-any-return]


@dataclass
class _Stored:
    """One storage: which moments it lives through."""

    num_bytes: int
    category: Category | None
    born: int
    died: int | None = None
    kept: bool = False
    """Allocated in the forward pass."""


class MemoryTimeline(TorchDispatchMode):
    """Records every allocation, a moment each, of real tensors or inside a FakeTensorMode (enter it after that one).

    `num_labels`: how many positions have a label, which fake labels can't say. A fake number is 1.
    """

    def __init__(self, num_labels: int, *, on_gpu: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._num_labels = num_labels
        self._copying = _COPYING_ON_GPU if on_gpu else _COPYING
        self._live: dict[int, tuple[weakref.ref[Any], _Stored]] = {}
        self._stored: list[_Stored] = []
        self._now = 0
        self._stages: list[tuple[int, str]] = []

    def start(self, owners: Mapping[Category, Iterable[Tensor]]) -> None:
        """The step begins: what lives now was there before, and belongs to these owners."""
        self._stored = [stored for _, stored in self._live.values()]
        for stored in self._stored:
            stored.born, stored.category, stored.kept = 0, "temporary", False
        self._now, self._stages = 0, []
        for category, tensors in owners.items():
            for tensor in tensors:
                self.assign(tensor, category)
        self.stage("start")

    def assign(self, tensor: Tensor, category: Category) -> None:
        """Say what a tensor's storage is for."""
        self._see(tensor)
        if id(tensor.untyped_storage()) in self._live:
            self._live[id(tensor.untyped_storage())][1].category = category

    def stage(self, name: str) -> None:
        """What is allocated from here on belongs to this part of the step."""
        self._now += 1
        self._stages.append((self._now, name))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        fake = bool(args) and isinstance(args[0], FakeTensor)
        if func is torch.ops.bitsandbytes.gemm_4bit.default:
            with self:  # as on a GPU for more than a few tokens: the weight is dequantised, and a plain product
                return _gemm_4bit_default_impl(*args, **kwargs)
        if fake and func is torch.ops.prim.device.default:
            return args[0].fake_device
        if fake and func is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else 1
        if fake and func is torch.ops.aten.nonzero.default:
            out = args[0].new_empty(self._num_labels, 1, dtype=torch.int64)
        else:
            out = func(*args, **kwargs)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        if func in self._copying:
            self._see(args[0].new_empty(args[0].shape))
        return out

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._live or (
            isinstance(tensor, FakeTensor) and tensor.fake_device.type == "meta"
        ):
            return
        stage = self._stages[-1][1] if self._stages else ""
        forward = torch._C._current_graph_task_id() == -1
        if forward and stage.startswith("backward"):
            self.stage("update")
        self._now += 1
        stored = _Stored(
            storage.nbytes(),
            "loss" if stage == "loss" and forward else None,
            self._now,
            kept=forward,
        )
        self._stored.append(stored)

        def freed(_: Any) -> None:
            self._live.pop(key)[1].died = self._now + 1

        self._live[key] = (weakref.ref(storage, freed), stored)

    def by_stage(self) -> dict[str, Bytes]:
        """Live bytes [moments, len(CATEGORIES)] of each stage, in their order."""
        changes = np.zeros((self._now + 2, len(CATEGORIES)))
        first_backward = next(
            (at for at, name in self._stages if name.startswith("backward")), self._now
        )
        for stored in self._stored:
            outlives = stored.died is None or stored.died > first_backward
            category = stored.category or (
                "activations" if stored.kept and outlives else "temporary"
            )
            changes[stored.born, CATEGORIES.index(category)] += stored.num_bytes
            if stored.died is not None:
                changes[stored.died, CATEGORIES.index(category)] -= stored.num_bytes
        live = changes.cumsum(axis=0)
        ends = [at for at, _ in self._stages[1:]] + [self._now + 1]
        return {name: live[at:end] for (at, name), end in zip(self._stages, ends, strict=True)}


def mark_stages(timeline: MemoryTimeline, model: Gemma2ForCausalLM) -> None:
    """Mark the stages of a step: `forward i`, `loss`, `backward i`, and `update` after them."""

    def layer_begins(i: int) -> Any:
        def mark(_module: nn.Module, _inputs: Any) -> None:
            if torch._C._current_graph_task_id() == -1:
                timeline.stage(f"forward {i}")

        return mark

    def layer_ends(i: int) -> Any:
        def mark(_module: nn.Module, _inputs: Any, out: Tensor) -> None:
            if torch._C._current_graph_task_id() == -1:
                out.register_hook(lambda _gradient: timeline.stage(f"backward {i}"))

        return mark

    for i, layer in enumerate(model.model.layers):
        layer.register_forward_pre_hook(layer_begins(i))
        layer.register_forward_hook(layer_ends(i))
    model.model.register_forward_hook(lambda *_: timeline.stage("loss"))


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    softcap: float | None,
    sliding_window: int | None,
    position_ids: Tensor,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: what a fused kernel on a GPU allocates, nothing computed."""
    rows = len(query)
    ids = cache_per_tensor(position_ids, ("rows", rows), lambda: position_ids.expand(rows, -1))
    mask = flex_attention.build_flex_arguments(
        query, scale=scaling, softcap=softcap, window=sliding_window, document_ids=ids
    )["block_mask"]
    attended: Tensor = _FusedAttention.apply(query, key, value, mask)  # type: ignore[no-untyped-call]
    return attended.transpose(1, 2), None


class _FusedAttention(torch.autograd.Function):
    """The tensors of FlexAttention's forward and backward pass (torch/_higher_order_ops/flex_attention.py, its shapes):
    output, two fp32 numbers a query and head, and in the backward pass two more. FlashAttention is taken as alike.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any) -> Tensor:
        output = torch.empty_like(query)
        lse, highest = (query.new_empty(query.shape[:-1], dtype=torch.float32) for _ in range(2))
        ctx.save_for_backward(query, key, value, output, lse, highest)
        ctx.mask = mask
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, _, lse, _ = ctx.saved_tensors
        of_lse, delta = torch.zeros_like(lse), torch.empty_like(lse)
        gradients = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        del of_lse, delta
        return *gradients, None


AttentionInterface.register(FUSED_ATTENTION, _attend)
