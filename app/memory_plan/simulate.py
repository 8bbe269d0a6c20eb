"""Build a Gemma 2 of fake tensors, and record which of them hold how many bytes in a training step.

It needs no weights, no GPU and no hub. Fake tensors have shapes and storages without memory, and go
through the real code: modules, autograd, checkpointing, optimizer. Their device is the CPU, which
stands for the training device; tensors on `meta` stand for tensors on the host. torch's own
MemTracker needs minutes for a 9B model, and does not count frozen parameters.
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
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BitsAndBytesConfig, Gemma2Config, Gemma2ForCausalLM
from transformers.integrations.bitsandbytes import replace_with_bnb_linear

from app.gemma.config import QuantizationConfig
from app.memory_plan.repeated_ops import run_on_fake

Category = Literal["weights", "lora", "optimizer", "gradients", "activations", "loss", "temporary"]
CATEGORIES: tuple[Category, ...] = (
    "weights", "lora", "optimizer", "gradients", "activations", "loss", "temporary"
)  # fmt: skip
"""Categories of live bytes.

`activations` are kept from the forward pass for the backward pass, except those of the loss.
`temporary` is everything else, recomputed activations included.
"""
_COPYING = {torch.ops.aten.logsumexp.default}
"""Kernels that hold one more tensor like their input (torch 2.13, ATen/native/ReduceOps.cpp)."""
_COPYING_ON_GPU = _COPYING | {torch.ops.aten._softmax_backward_data.default}
"""The same on CUDA, where the softmax's backward pass holds gradient times output.

That was measured on a GPU (docs/gpu.md).
"""
Bytes = npt.NDArray[np.float64]


def build_meta_model(
    config: Gemma2Config, quantization: QuantizationConfig, *, attention: str, dtype: torch.dtype
) -> Any:
    """Return the frozen base model as `load_base_model` does, on the meta device."""
    with torch.device("meta"):
        base_model = Gemma2ForCausalLM._from_config(
            config, dtype=dtype, attn_implementation=attention
        )

    if quantization.kind != "none":
        stored = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization.kind,
            bnb_4bit_use_double_quant=quantization.double_quant,
            bnb_4bit_compute_dtype=dtype,
        )
        replace_with_bnb_linear(base_model, ["lm_head"], stored)
        base_model.is_loaded_in_4bit = True

    if dtype == torch.float16:
        base_model.get_input_embeddings().register_forward_hook(
            lambda _module, _inputs, output: output.float()
        )
    return base_model.requires_grad_(False)


def allocate_fake_storage(model: nn.Module, dtype: torch.dtype) -> None:
    """Give every parameter and buffer of a meta model its fake storage, inside a FakeTensorMode."""
    # bitsandbytes keeps its code books for the whole process: no fake one may stay in them
    real_code_books = dict(name2qmap)
    name2qmap.clear()

    allocated: dict[nn.Parameter, Any] = {}  # tied weights share one storage
    for module in model.modules():
        is_4bit = isinstance(module, Linear4bit)
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in allocated:
                allocated[parameter] = (
                    _allocate_4bit(parameter, dtype) if is_4bit else _allocate(parameter)
                )
            module._parameters[name] = allocated[parameter]
            if is_4bit:
                module.quant_state = allocated[parameter].quant_state
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)

    name2qmap.clear()
    name2qmap.update(real_code_books)


def list_frozen_tensors(model: nn.Module) -> list[Tensor]:
    """Return every tensor of a frozen base model, with the constants of 4-bit weights."""
    frozen = [x for x in (*model.parameters(), *model.buffers()) if not x.requires_grad]
    for module in model.modules():
        frozen += [x for x in vars(module).values() if isinstance(x, Tensor)]

    quant_states = [p.quant_state for p in model.parameters() if hasattr(p, "quant_state")]
    quant_states += [state.state2 for state in quant_states if state.nested]
    for state in quant_states:
        frozen += [x for x in vars(state).values() if isinstance(x, Tensor)]
    return frozen


def _allocate(parameter: nn.Parameter) -> nn.Parameter:
    storage = torch.empty(parameter.shape, dtype=parameter.dtype)
    return nn.Parameter(storage, requires_grad=parameter.requires_grad)


def _allocate_4bit(weight: Any, dtype: torch.dtype) -> nn.Parameter:
    """Return bitsandbytes' packed weight with its constants.

    It is no Params4bit, because a FakeTensor cannot be one.
    """
    packed, quant_state = quantize_4bit(
        torch.empty(weight.shape, dtype=dtype),
        quant_type=weight.quant_type,
        compress_statistics=weight.compress_statistics,
    )
    parameter: Any = nn.Parameter(packed, requires_grad=False)
    parameter.quant_state = quant_state
    return parameter  # type: ignore[no-any-return]


@dataclass
class _Storage:
    """One storage, and the moments at which it is allocated and freed."""

    num_bytes: int
    category: Category | None
    allocated_at: int
    freed_at: int | None = None
    is_forward: bool = False
    """Allocated in the forward pass."""


class MemoryTimeline(TorchDispatchMode):
    """Records every allocation of real tensors, or of fake ones inside a FakeTensorMode.

    Each allocation is one moment. Enter the timeline after the FakeTensorMode. `num_labels` is the
    number of labelled positions, which fake labels do not hold. The value of a fake number is 1.
    """

    def __init__(self, num_labels: int, *, on_gpu: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._num_labels = num_labels
        self._copying = _COPYING_ON_GPU if on_gpu else _COPYING
        self._live: dict[int, tuple[weakref.ref[Any], _Storage]] = {}
        self._storages: list[_Storage] = []
        self._now = 0
        self._stages: list[tuple[int, str]] = []

    def start(self, owners: Mapping[Category, Iterable[Tensor]]) -> None:
        """Begin the step: assign the live tensors to these owners, and the rest to `temporary`."""
        self._storages = [storage for _, storage in self._live.values()]
        for storage in self._storages:
            storage.allocated_at, storage.category, storage.is_forward = 0, "temporary", False
        self._now, self._stages = 0, []

        for category, tensors in owners.items():
            for tensor in tensors:
                self.assign(tensor, category)
        self.begin_stage("start")

    def assign(self, tensor: Tensor, category: Category) -> None:
        """Assign a tensor's storage to a category."""
        self._record(tensor)
        key = id(tensor.untyped_storage())
        if key in self._live:
            self._live[key][1].category = category

    def begin_stage(self, name: str) -> None:
        """Begin a stage of the step: later allocations belong to it."""
        self._now += 1
        self._stages.append((self._now, name))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.bitsandbytes.gemm_4bit.default:
            # as on a GPU for more than a few tokens: dequantise the weight, then a plain product
            with self:
                return _gemm_4bit_default_impl(*args, **kwargs)

        # operations that read a value or the device, which a fake tensor has not
        fake = bool(args) and isinstance(args[0], FakeTensor)
        if fake and func is torch.ops.prim.device.default:
            return args[0].fake_device
        if fake and func is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else 1
        if fake and func is torch.ops.aten.nonzero.default:
            out = args[0].new_empty(self._num_labels, 1, dtype=torch.int64)
        else:
            out = run_on_fake(func, args, kwargs)

        # allocations
        for leaf in out if isinstance(out, tuple | list) else (out,):
            if isinstance(leaf, Tensor):
                self._record(leaf)
        if func in self._copying:
            self._record(args[0].new_empty(args[0].shape))
        return out

    def _record(self, tensor: Tensor) -> None:
        """Record the allocation of a tensor's storage, if it is new and not on the host."""
        raw = tensor.untyped_storage()
        key = id(raw)
        on_host = isinstance(tensor, FakeTensor) and tensor.fake_device.type == "meta"
        if key in self._live or on_host:
            return

        stage = self._stages[-1][1] if self._stages else ""
        in_forward = not _is_in_backward()
        if in_forward and stage.startswith("backward"):
            self.begin_stage("update")
        self._now += 1
        category: Category | None = "loss" if stage == "loss" and in_forward else None
        storage = _Storage(raw.nbytes(), category, self._now, is_forward=in_forward)
        self._storages.append(storage)

        def record_free(_: Any) -> None:
            self._live.pop(key)[1].freed_at = self._now + 1

        self._live[key] = (weakref.ref(raw, record_free), storage)

    def by_stage(self) -> dict[str, Bytes]:
        """Return the live bytes [moments, len(CATEGORIES)] of each stage, in order of time."""
        changes = np.zeros((self._now + 2, len(CATEGORIES)))
        backward_starts = [at for at, name in self._stages if name.startswith("backward")]
        first_backward = backward_starts[0] if backward_starts else self._now

        for storage in self._storages:
            freed_at = storage.freed_at
            outlives_forward = freed_at is None or freed_at > first_backward
            is_activation = storage.is_forward and outlives_forward
            category = storage.category or ("activations" if is_activation else "temporary")
            column = CATEGORIES.index(category)
            changes[storage.allocated_at, column] += storage.num_bytes
            if freed_at is not None:
                changes[freed_at, column] -= storage.num_bytes

        live = changes.cumsum(axis=0)
        ends = [at for at, _ in self._stages[1:]] + [self._now + 1]
        return {name: live[at:end] for (at, name), end in zip(self._stages, ends, strict=True)}


def mark_stages(timeline: MemoryTimeline, model: Gemma2ForCausalLM) -> None:
    """Mark the stages of a step: `forward i`, `loss`, `backward i`, and `update` after them."""

    def mark_forward(i: int) -> Any:
        def hook(_module: nn.Module, _inputs: Any) -> None:
            if not _is_in_backward():
                timeline.begin_stage(f"forward {i}")

        return hook

    def mark_backward(i: int) -> Any:
        def hook(_module: nn.Module, _inputs: Any, out: Tensor) -> None:
            if not _is_in_backward():
                out.register_hook(lambda _grad: timeline.begin_stage(f"backward {i}"))

        return hook

    for i, layer in enumerate(model.model.layers):
        layer.register_forward_pre_hook(mark_forward(i))
        layer.register_forward_hook(mark_backward(i))
    model.model.register_forward_hook(lambda *_: timeline.begin_stage("loss"))


def _is_in_backward() -> bool:
    """Return whether autograd is running a backward pass, in which layers are recomputed."""
    return torch._C._current_graph_task_id() != -1
