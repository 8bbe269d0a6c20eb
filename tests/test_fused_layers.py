"""Norm and LoRA against their definitions and transformers' and PEFT's modules; bytes kept."""

import pytest
import torch
from peft.tuners.lora import LoraLayer
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm

from app.gemma.config import MemoryConfig
from app.gemma.fused_layers import (
    NORM_TILE_TOKENS,
    keep_dequantised,
    lora_linear,
    patch_layers,
    rms_norm,
)
from tests.reference import saved_bytes
from tests.tiny import objective, save_model

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


def close(ours, theirs):
    """Within the tolerance of the dtype, in units of the largest value."""
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    assert (ours - theirs).abs().max() <= TOLERANCE[ours.dtype] * theirs.abs().max()


@pytest.mark.parametrize(
    "shape", [(3, 8), (2, 5, 16), (NORM_TILE_TOKENS + 1, 4), (2, NORM_TILE_TOKENS, 4)]
)
def test_the_norm_is_its_definition(shape):
    torch.manual_seed(0)
    x = (torch.randn(shape, dtype=torch.float64) * 3).requires_grad_()
    weight, grad_output = (
        torch.randn(shape[-1], dtype=torch.float64),
        torch.randn(shape, dtype=torch.float64),
    )
    naive = x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + weight)
    ours = rms_norm(x, weight, 1e-6)
    close(ours, naive)
    close(
        torch.autograd.grad(ours, x, grad_output)[0], torch.autograd.grad(naive, x, grad_output)[0]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_is_transformers_own_and_keeps_its_input_alone(dtype):
    torch.manual_seed(0)
    module = Gemma2RMSNorm(64).requires_grad_(False)
    module.weight.normal_()
    x, grad_output = (
        torch.randn(2, 100, 64, dtype=dtype).transpose(0, 1).requires_grad_(),
        torch.randn(100, 2, 64),
    )
    theirs, kept_by_theirs = module(x), saved_bytes(lambda: module(x))
    theirs_gradient = torch.autograd.grad(theirs, x, grad_output.to(dtype))[0]
    patch_layers(module)
    close(module(x), theirs)
    close(torch.autograd.grad(module(x), x, grad_output.to(dtype))[0], theirs_gradient)
    scales, weight = 200 * 4, 64 * 4
    assert saved_bytes(lambda: module(x)) == x.numel() * x.element_size() + scales + weight
    assert kept_by_theirs >= 200 * 64 * 4  # x in fp32, whatever it came as


@pytest.mark.parametrize("drops", [False, True])
def test_lora_is_its_definition(drops):
    torch.manual_seed(0)
    base = torch.nn.Linear(12, 20, bias=False, dtype=torch.float64).requires_grad_(False)
    x, a, b, grad_output = (
        torch.randn(shape, dtype=torch.float64)
        for shape in ((2, 7, 12), (3, 12), (20, 3), (2, 7, 20))
    )
    dropped = torch.nn.functional.dropout(x, 0.5) if drops else None
    trained = [tensor.requires_grad_() for tensor in ([x, dropped] if drops else [x]) + [a, b]]
    naive = x @ base.weight.T + 0.7 * (x if dropped is None else dropped) @ a.T @ b.T
    ours = lora_linear(x, base, a, b, scale=0.7, dropped=dropped)
    close(ours, naive)
    for mine, theirs in zip(
        torch.autograd.grad(ours, trained, grad_output),
        torch.autograd.grad(naive, trained, grad_output),
        strict=True,
    ):
        close(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["nf4", "none"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_lora_is_pefts_own(folder, dtype, kind, dropout):
    made = []
    for memory in (None, MemoryConfig(gradient_checkpointing=False)):
        model = objective(folder, kind=kind, dtype=dtype, dropout=dropout, memory=memory).model
        layer = model.get_base_model().model.layers[0].mlp.down_proj
        torch.manual_seed(0)
        layer.lora_B["default"].weight.data.normal_()
        x = torch.randn(2, 9, 128, dtype=dtype).requires_grad_()
        with torch.autocast("cpu", enabled=dtype == torch.bfloat16):
            out = layer(x)
        grad_output = torch.randn(out.shape).to(dtype)
        trained = (x, layer.lora_A["default"].weight, layer.lora_B["default"].weight)
        made.append((out, *torch.autograd.grad(out, trained, grad_output)))
    for ours, theirs in zip(made[1], made[0], strict=True):
        close(ours, theirs)


def test_lora_keeps_its_input_once_and_no_weight(folder):
    model = objective(
        folder, dtype=torch.bfloat16, memory=MemoryConfig(gradient_checkpointing=False)
    ).model
    layer = model.get_base_model().model.layers[0].mlp.down_proj
    x = torch.randn(2, 900, 128, dtype=torch.bfloat16).requires_grad_()
    adapter = 4 * 4 * (128 + 64)  # rank 4, fp32
    low = 1800 * 4 * 2
    assert saved_bytes(lambda: layer(x)) == 1800 * 128 * 2 + low + adapter


def test_without_its_adapter_and_in_evaluation_the_layer_is_pefts(folder):
    model = objective(folder, dropout=0.5, memory=MemoryConfig()).model
    layer = model.get_base_model().model.layers[0].mlp.down_proj
    layer.lora_B["default"].weight.data.normal_()
    x = torch.randn(3, 128)
    with model.disable_adapter():
        assert torch.equal(layer(x), layer.base_layer(x))
    layer.eval().base_layer.train()  # as app.gemma.load.evaluation_mode sets it
    lora = layer.lora_B["default"](layer.lora_A["default"](x)) * layer.scaling["default"]
    close(layer(x), layer.base_layer(x) + lora)


def test_kept_weights_change_no_bit_and_stay_within_their_bytes(folder):
    model = objective(folder, memory=MemoryConfig()).model
    layers = [m.get_base_layer() for m in model.modules() if isinstance(m, LoraLayer)]
    x = torch.randint(0, 60, (2, 30))
    with torch.no_grad():
        expected = model(input_ids=x, use_cache=False).logits
        for max_bytes, num_kept in ((0, 0), (4 * 64 * 128, 1), (2**30, len(layers))):
            with keep_dequantised(model, max_bytes):
                kept = [layer for layer in layers if hasattr(layer, "dequantised")]
                assert torch.equal(model(input_ids=x, use_cache=False).logits, expected)
            assert len(kept) == num_kept
    assert not any(hasattr(layer, "dequantised") for layer in layers)
