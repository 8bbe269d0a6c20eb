"""Block-wise attention against the definition with [S, S] scores, and inside Gemma 2.

Outputs, gradients and memory are compared.
"""

import itertools
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn.attention.flex_attention import create_block_mask
from torch.nn.attention.flex_attention import flex_attention as torch_flex_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Gemma2ForCausalLM

from app.errors import UserError
from app.gemma import block_mask, flex_attention
from app.gemma.attention import softcapped_attention
from app.gemma.compile_kernel import compile_kernel
from tests.reference import inputs, naive, packed, visible, with_gradients
from tests.tiny import VOCABULARY, gemma2_config, objective, save_model

PACKINGS = [[1200], [300], [1, 127, 128, 44], [40, 40, 40, 40, 40, 40, 40, 20], [200, 1, 1, 1, 700]]
CAPS_AND_WINDOWS = [(None, None), (2.0, None), (50.0, 16), (None, 129), (2.0, 700)]


@pytest.mark.parametrize("lengths", PACKINGS, ids=str)
@pytest.mark.parametrize(("softcap", "window"), CAPS_AND_WINDOWS)
def test_outputs_and_gradients_equal_the_definition(lengths, softcap, window):
    document_ids = packed(lengths, lengths[::-1])
    options = {"scale": 0.3, "softcap": softcap, "window": window, "document_ids": document_ids}
    tensors, grad_output = inputs(2, sum(lengths))
    ours = with_gradients(softcapped_attention, tensors, grad_output, **options)
    theirs = with_gradients(naive, tensors, grad_output, **options)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "width"), [(8, 4, 16), (8, 1, 32), (2, 2, 64), (6, 2, 10)]
)
def test_every_grouping_of_queries(heads, kv_heads, width):
    options = {
        "scale": width**-0.5,
        "softcap": 5.0,
        "window": 90,
        "document_ids": packed([150, 90, 60]),
    }
    tensors, grad_output = inputs(1, 300, heads=heads, kv_heads=kv_heads, width=width)
    ours = with_gradients(softcapped_attention, tensors, grad_output, **options)
    for mine, reference in zip(
        ours, with_gradients(naive, tensors, grad_output, **options), strict=True
    ):
        torch.testing.assert_close(mine, reference, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_low_precision_is_as_near_the_truth_as_its_rounding(dtype, tolerance):
    """Relative to the largest entry.

    The computation is in fp32: only inputs and outputs are rounded to bf16.
    """
    options = {
        "scale": 0.125,
        "softcap": 50.0,
        "window": 256,
        "document_ids": packed([400, 200, 100]),
    }
    tensors, grad_output = inputs(1, 700, width=64, dtype=dtype, spread=3.0)
    ours = with_gradients(softcapped_attention, tensors, grad_output, **options)
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    for mine, truth in zip(
        ours, with_gradients(naive, exact, grad_output.double(), **options), strict=True
    ):
        assert mine.dtype == dtype
        assert (mine.double() - truth).abs().max() <= tolerance * truth.abs().max()


def test_scores_that_leave_the_range_of_fp32_exponentials():
    """Without a softcap scores differ by thousands; hidden ones may be the largest by far."""
    options = {"scale": 30.0, "softcap": None, "window": 150, "document_ids": packed([300, 40, 60])}
    tensors, grad_output = inputs(1, 400, spread=4.0)
    exact = with_gradients(naive, tensors, grad_output, **options)
    single = [tensor.detach().float().requires_grad_() for tensor in tensors]
    for mine, truth in zip(
        with_gradients(softcapped_attention, tensors, grad_output, **options), exact, strict=True
    ):
        torch.testing.assert_close(mine, truth, atol=1e-10, rtol=1e-10)
    for mine in with_gradients(softcapped_attention, single, grad_output.float(), **options):
        assert mine.isfinite().all()


@pytest.mark.parametrize("lengths", PACKINGS, ids=str)
@pytest.mark.parametrize("window", [None, 1, 16, 129, 700])
def test_a_plan_has_every_visible_key_once_and_no_block_without_one(lengths, window):
    length = sum(lengths)
    document_ids = packed(lengths)
    seen = visible(document_ids, window)[0]
    planned = torch.zeros(length, length)
    (blocks,) = block_mask.plan_blocks(document_ids, 1, length, window)
    for block in blocks:
        assert 0 < block.stop - block.start <= block_mask.MAX_QUERIES
        for tile in block.tiles:
            assert 0 < tile.stop - tile.start <= block_mask.MAX_KEYS
            area = planned[block.start : block.stop, tile.start : tile.stop]
            area += 1 if tile.seen is None else tile.seen[:, 0]
            assert area.any()
            assert (tile.bias is None) == (tile.seen is None)
            if tile.bias is not None and tile.seen is not None:
                assert torch.equal(tile.bias.exp(), tile.seen)
    assert torch.equal(planned, seen.float())
    assert [block.start for block in blocks[1:]] == [block.stop for block in blocks[:-1]]


def test_many_short_documents_share_blocks():
    (blocks,) = block_mask.plan_blocks(packed([1] * 500 + [20] * 10), 1, 700, None)
    assert len(blocks) == 6


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.size = max(
            [
                self.size,
                *(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)),
            ]
        )
        return result


@pytest.mark.parametrize("window", [None, 512])
def test_memory_grows_with_the_length_not_with_its_square(window):
    options = {"scale": 0.3, "softcap": 50.0, "window": window, "document_ids": packed([4096])}
    tensors, grad_output = inputs(1, 4096, width=16, dtype=torch.float32)
    with LargestTensor() as largest:
        with_gradients(softcapped_attention, tensors, grad_output, **options)
    assert largest.size <= max(4 * 4096 * 16, 4 * block_mask.MAX_QUERIES * block_mask.MAX_KEYS)


def test_layers_of_one_batch_share_a_plan_and_another_batch_has_its_own():
    made = []
    one, other = packed([3, 2]), packed([3, 2])
    for tensor in (one, one, other, one):
        block_mask.cache_per_tensor(tensor, ("test",), lambda: made.append(1))
    assert len(made) == 2
    block_mask.cache_per_tensor(
        one.add_(1), ("test",), lambda: made.append(1)
    )  # the same tensor, other documents
    assert len(made) == 3
    before = len(block_mask._kept)
    del one, other, tensor
    assert len(block_mask._kept) == before - 2


def test_a_simulation_without_values_has_the_same_shapes():
    with FakeTensorMode():
        tensors = [torch.empty(1, heads, 600, 8, requires_grad=True) for heads in (4, 2, 2)]
        ids = torch.zeros(1, 600, dtype=torch.int64)
        output = softcapped_attention(
            *tensors, scale=1.0, softcap=5.0, window=None, document_ids=ids
        )
        assert [g.shape for g in torch.autograd.grad(output.sum(), tensors)] == [
            t.shape for t in tensors
        ]


def test_the_registered_attention_in_a_whole_gemma_2():
    """Two packed sequences through four layers.

    Every second layer has a window smaller than a document.
    """
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(
        gemma2_config(num_hidden_layers=4, attn_implementation="eager")
    ).double()
    assert set(model.config.layer_types) == {"sliding_attention", "full_attention"}
    ids = torch.randint(0, VOCABULARY, (2, 200))
    orders = [[90, 60, 50], [1, 30, 169]]
    position_ids = torch.stack([torch.cat([torch.arange(n) for n in order]) for order in orders])
    logits, gradients = [], []
    for name in ("eager", "blockwise"):
        model.set_attn_implementation(name)
        model.zero_grad()
        out = model(input_ids=ids, position_ids=position_ids, use_cache=False).logits
        (out * torch.linspace(-1, 1, VOCABULARY)).sum().backward()
        logits.append(out.detach())
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(*logits, atol=1e-6, rtol=0)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_the_log_names_the_attention(tmp_path, capsys):
    folder = save_model(tmp_path)
    for name, words in (
        ("eager", "eager (transformers' reference"),
        ("blockwise", "blockwise (on a CPU online"),
    ):
        objective(folder, attention=name)
        assert f"attention: {words}" in capsys.readouterr().err


def test_blockwise_attention_refuses_attention_dropout():
    model = Gemma2ForCausalLM(
        gemma2_config(attention_dropout=0.1, attn_implementation="blockwise")
    ).train()
    with pytest.raises(UserError, match=r"attention_dropout=0\.1 .* set model\.attention=eager"):
        model(input_ids=torch.zeros(1, 4, dtype=torch.int64), use_cache=False)


@pytest.mark.parametrize(
    "lengths", [[300], [1, 127, 128, 44], [200, 1, 1, 1, 97], [64] * 8], ids=str
)
@pytest.mark.parametrize("window", [None, 16, 129, 256])
def test_the_block_mask_for_gpus_is_flexattentions_own(lengths, window):
    document_ids = packed(lengths, lengths[::-1])
    ours = flex_attention.build_block_mask(document_ids, window)
    theirs = create_block_mask(ours.mask_mod, 2, None, sum(lengths), sum(lengths), device="cpu")
    assert torch.equal(ours.to_dense(), theirs.to_dense())
    places = torch.arange(sum(lengths))
    seen = [ours.mask_mod(torch.tensor(i), None, places[:, None], places) for i in range(2)]
    assert torch.equal(torch.stack(seen), visible(document_ids, window))
    for i, query in itertools.product(range(2), range(ours.full_kv_num_blocks.shape[2])):
        for key in ours.full_kv_indices[i, 0, query, : ours.full_kv_num_blocks[i, 0, query]]:
            block = seen[i][query * 128 : (query + 1) * 128, key * 128 : (key + 1) * 128]
            assert block.all()  # needs no mask


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("softcap", "window"), CAPS_AND_WINDOWS[1:])
def test_the_arguments_for_flexattention_define_the_same_attention(softcap, window):
    options = {
        "scale": 0.3,
        "softcap": softcap,
        "window": window,
        "document_ids": packed([200, 1, 99], [30, 270]),
    }
    tensors, _ = inputs(2, 300)
    with torch.no_grad():
        tensors = [
            tensor.detach() for tensor in tensors
        ]  # on a CPU it refuses what needs a gradient
        ours = torch_flex_attention(
            *tensors, **flex_attention.build_flex_arguments(tensors[0], **options)
        )
        torch.testing.assert_close(ours, naive(*tensors, **options), atol=1e-12, rtol=0)


def test_a_second_softcap_compiles_a_second_kernel_in_any_thread():
    """Autograd recomputes layers in threads of its own, and torch's options are per thread."""
    tensors = [tensor.detach().float() for tensor in inputs(1, 64)[0]]

    def attend(softcap):
        options = {"scale": 0.2, "softcap": softcap, "window": None}
        options["document_ids"] = packed([40, 24])
        with torch.no_grad():
            ours = flex_attention.flex_softcapped_attention(*tensors, **options)
        torch.testing.assert_close(ours, naive(*tensors, **options), atol=1e-5, rtol=1e-4)

    attend(5.0)
    with ThreadPoolExecutor(1) as other_thread:
        other_thread.submit(attend, 2.0).result()


def test_a_compiled_function_has_more_versions_than_torch_allows_by_default(monkeypatch):
    """Torch's default is 8 versions, after which the function runs uncompiled."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    compiled = compile_kernel(lambda x, factor: x * factor)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for factor in range(12):
        assert compiled(torch.ones(1), factor + 0.5).item() == factor + 0.5
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 12
