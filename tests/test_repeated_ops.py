"""A repeated operation on fake tensors gives the layouts and the aliases that torch gives."""

import pytest
import torch
from torch._subclasses import FakeTensor, FakeTensorMode

from app.memory_plan.repeated_ops import run_on_fake

aten = torch.ops.aten
OPERATIONS = {
    "product": (aten.mm.default, lambda x: (x, x.t()), {}),
    "sum with broadcast": (aten.add.Tensor, lambda x: (x, x[0]), {}),
    "scaled sum": (aten.add.Tensor, lambda x: (x, x), {"alpha": 2}),
    "other dtype": (aten._to_copy.default, lambda x: (x,), {"dtype": torch.bfloat16}),
    "other device": (aten._to_copy.default, lambda x: (x,), {"device": torch.device("meta")}),
    "mean": (aten.mean.dim, lambda x: (x, [-1], True), {}),
    "transposed view": (aten.t.default, lambda x: (x,), {}),
    "view of a part": (aten.slice.Tensor, lambda x: (x, 0, 1, 3), {}),
    "parts": (aten.split.Tensor, lambda x: (x, 2), {}),
    "reshaped view": (aten.view.default, lambda x: (x, [3, 8]), {}),
    "new tensor": (aten.empty.memory_format, lambda _: ([5, 7],), {"dtype": torch.int64}),
    "in place": (aten.mul_.Tensor, lambda x: (x, 2.0), {}),
    "copy": (aten.copy_.default, lambda x: (x, x.t().reshape(4, 6)), {}),
    "in place with another shape": (aten.t_.default, lambda x: (x,), {}),
    "two results": (aten.topk.default, lambda x: (x, 2), {}),
}


def describe(out, source):
    """Return the layouts of all results, and which of them are, or share, the source."""
    tensors = out if isinstance(out, tuple | list) else (out,)
    assert all(type(tensor) is FakeTensor for tensor in tensors)
    storage = source.untyped_storage()
    return type(out), [
        (
            tensor.shape,
            tensor.stride(),
            tensor.storage_offset(),
            tensor.dtype,
            tensor.fake_device,
            tensor.untyped_storage().nbytes(),
            tensor.untyped_storage() is storage,
            tensor is source,
        )
        for tensor in tensors
    ]


@pytest.mark.parametrize(("func", "arguments", "options"), OPERATIONS.values(), ids=OPERATIONS)
def test_a_repeated_operation_gives_what_torch_gives(func, arguments, options):
    with FakeTensorMode():
        found = []
        for run in (func, None, None, None):
            source = torch.empty(4, 6)
            values = arguments(source)
            out = run_on_fake(func, values, options) if run is None else run(*values, **options)
            found.append(describe(out, source))
    assert found[1:] == found[:1] * 3


def test_another_shape_dtype_or_option_is_not_taken_for_the_same_operation():
    with FakeTensorMode():
        for source in (torch.empty(4, 6), torch.empty(6, 4), torch.empty(4, 6).bfloat16()):
            for dim in (0, 1):
                summed = run_on_fake(aten.sum.dim_IntList, (source, [dim]), {})
                assert (summed.shape[0], summed.dtype) == (source.shape[1 - dim], source.dtype)
            for value in (1, 1.0, True):
                made = run_on_fake(aten.full.default, ([2], value), {})
                assert made.dtype == torch.full([2], value).dtype


def test_real_tensors_are_computed():
    x = torch.arange(6.0)
    for _ in range(2):
        assert run_on_fake(aten.add.Tensor, (x, x), {}).tolist() == (2 * x).tolist()
