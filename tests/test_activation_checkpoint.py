"""Recomputed, tiled or offloaded, layers keep less and give the same loss and gradients.

The reference is transformers' and PEFT's own modules.
"""

import math
from functools import partial

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm

from app.errors import UserError
from app.gemma.activation_checkpoint import HostOffload, apply_memory_config, compile_model
from app.gemma.config import MemoryConfig
from app.gemma.load import evaluation_mode, unwrap_gemma
from tests.reference import (
    POLICIES,
    furthest,
    jogged,
    loss_and_gradients,
    naive,
    row,
    saved_bytes,
)
from tests.tiny import VOCABULARY, objective, save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


def _naive_attention(
    module, query, key, value, mask, *, scaling, softcap, sliding_window, position_ids, **kwargs
):
    document_ids = (position_ids == 0).cumsum(dim=1)
    out = naive(
        query,
        key,
        value,
        scale=scaling,
        softcap=softcap,
        window=sliding_window,
        document_ids=document_ids,
    )
    return out.transpose(1, 2), None


AttentionInterface.register("naive", _naive_attention)


def exact_norm(module, x):
    """Gemma2RMSNorm in x's own precision: transformers' computes in fp32 even where x is fp64."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.eps) * (1 + module.weight)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("caps", [(5.0, 10.0), (None, None)], ids=["softcaps", "no softcaps"])
def test_fp64_loss_and_gradients_are_the_eager_models(folder, monkeypatch, policy, caps):
    def in_fp64(memory, attention):
        loss = jogged(objective(folder, kind="none", attention="blockwise", memory=memory)).double()
        config = unwrap_gemma(loss.model).config
        config.attn_logit_softcapping, config.final_logit_softcapping = caps
        config._attn_implementation = attention
        for layer in unwrap_gemma(loss.model).model.layers:
            layer.self_attn.attn_logit_softcapping = caps[0]
        return loss

    batch = row()
    ours = loss_and_gradients(in_fp64(policy, "blockwise"), batch)
    monkeypatch.setattr(Gemma2RMSNorm, "forward", exact_norm)
    reference = in_fp64(None, "naive")
    logits = reference.model(
        input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
    ).logits[0]
    eager = torch.nn.functional.cross_entropy(logits, batch["targets"][0], reduction="sum").item()
    theirs = loss_and_gradients(reference, batch)
    assert theirs[0] == pytest.approx(eager, rel=1e-13)
    assert furthest(ours, theirs) < 1e-12


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 5e-2)])
def test_nf4_and_lora_through_all_of_it(folder, policy, dtype, tolerance):
    """The reference is transformers', PEFT's and bitsandbytes' modules with eager attention."""
    batch = row()
    theirs = loss_and_gradients(jogged(objective(folder, dtype=dtype)), batch)
    ours = jogged(objective(folder, dtype=dtype, attention="blockwise", memory=policy))
    assert furthest(loss_and_gradients(ours, batch), theirs) < tolerance
    with evaluation_mode(ours):
        assert ours(**batch)[0].item() == pytest.approx(theirs[0], rel=tolerance / 10)


def test_trained_embeddings_get_their_gradient_through_the_layers(folder):
    batch = row()
    theirs = loss_and_gradients(jogged(objective(folder, train_embeddings=True)), batch)
    ours = jogged(objective(folder, train_embeddings=True, memory=POLICIES["all"]))
    assert furthest(loss_and_gradients(ours, batch), theirs) < 2e-5


def test_an_embedding_on_the_host_is_no_parameter_and_changes_nothing(folder, tmp_path):
    """On a CPU the host is the device: only the code path is tested."""
    batch, memory = row(), MemoryConfig(embedding="host")
    theirs = loss_and_gradients(jogged(objective(folder)), batch)
    ours = jogged(objective(folder, memory=memory))
    assert furthest(loss_and_gradients(ours, batch), theirs) < 2e-5
    inner = unwrap_gemma(ours.model)
    assert inner.lm_head.weight is inner.model.embed_tokens.weight
    assert VOCABULARY * 64 not in {parameter.numel() for parameter in ours.parameters()}
    ours.model.save_pretrained(tmp_path)
    again = objective(folder).model
    assert set(load_file(tmp_path / "adapter_model.safetensors")) == set(
        get_peft_model_state_dict(again)
    )
    with pytest.raises(UserError, match=r"lora\.train_embeddings=false"):
        objective(folder, train_embeddings=True, memory=memory)


def test_sequences_of_a_batch_and_layers_without_an_adapter(folder):
    two = {name: torch.cat([column, column.flip(1)]) for name, column in row().items()}
    two["position_ids"][1] = two["position_ids"][0]
    for modules in (["q_proj"], ["up_proj"]):
        theirs = loss_and_gradients(jogged(objective(folder, target_modules=modules)), two)
        ours = jogged(objective(folder, target_modules=modules, memory=POLICIES["tiled"]))
        assert furthest(loss_and_gradients(ours, two), theirs) < 2e-5


def test_dropout_draws_as_peft_does_if_a_tile_holds_the_sequence(folder):
    batch = row()
    theirs = loss_and_gradients(jogged(objective(folder, dropout=0.4)), batch)
    ours = jogged(objective(folder, dropout=0.4, memory=MemoryConfig(offload=True)))
    state = torch.get_rng_state()
    assert furthest(loss_and_gradients(ours, batch), theirs) < 2e-5
    torch.manual_seed(0)
    value, _ = ours(**batch)
    after_forward = torch.get_rng_state()
    value.backward()
    # recomputing draws no numbers of later steps
    assert torch.equal(torch.get_rng_state(), after_forward)
    assert not torch.equal(state, after_forward)


def test_recomputed_tiles_drop_the_same_inputs_again(folder):
    """Compare the gradient with the loss's slope along it, in fp64.

    With other masks in the second run the two would differ.
    """
    batch = row()
    loss = jogged(objective(folder, kind="none", dropout=0.4, memory=POLICIES["tiled"])).double()
    _, gradients = loss_and_gradients(loss, batch)
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values()))
    ends = []
    for step in (1e-4, -2e-4):
        with torch.no_grad():
            for name, parameter in loss.named_parameters():
                if name in gradients:
                    parameter += gradients[name] * (step / norm)
        ends.append(loss_and_gradients(loss, batch)[0])
    assert (ends[0] - ends[1]) / 2e-4 == pytest.approx(norm, rel=1e-5)


def test_the_graph_keeps_the_layers_inputs_or_nothing_on_the_device(folder):
    """In bf16, 2 layers of width 64."""
    batch = row(12, 400)
    hidden = batch["input_ids"].numel() * 64 * 2
    kept = {
        name: saved_bytes(
            lambda memory=memory: objective(folder, memory=memory, dtype=torch.bfloat16)(**batch)[0]
        )
        for name, memory in {
            "plain": None, "kept": POLICIES["kept"], "recomputed": MemoryConfig(),
            "offloaded": MemoryConfig(offload=True), "one": MemoryConfig(keep_layers=1),
        }.items()
    }  # fmt: skip
    assert kept["recomputed"] - kept["offloaded"] == 2 * hidden
    assert kept["offloaded"] < 4 * hidden  # the last norm and the loss
    assert kept["recomputed"] < kept["one"] < kept["kept"] < kept["plain"]


class Widest(TorchDispatchMode):
    """The most elements of any tensor of the MLP's width, here 192, that appears."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if (
                isinstance(tensor, torch.Tensor)
                and tensor.is_floating_point()
                and tensor.shape[-1:] == (192,)
            ):
                self.most = max(self.most, tensor.numel())
        return out


@pytest.mark.parametrize(
    ("memory", "tokens"), [(None, 200), (MemoryConfig(), 200), (MemoryConfig(tile_tokens=70), 70)]
)
def test_no_tensor_of_the_mlps_width_has_more_tokens_than_a_tile(tmp_path, memory, tokens):
    loss = jogged(
        objective(save_model(tmp_path, intermediate_size=192), memory=memory, kind="none")
    )
    batch = {name: column[:, :100].repeat(1, 2) for name, column in row(12, 400).items()}
    with Widest() as widest:
        loss(**batch)[0].backward()
    assert widest.most == tokens * 192


@pytest.mark.parametrize(("keep", "runs"), [(0, [2, 2]), (1, [2, 1]), (2, [1, 1]), (3, [1, 1])])
def test_the_last_layers_are_not_recomputed(folder, keep, runs):
    loss, counts = objective(folder, memory=MemoryConfig(keep_layers=keep)), [0, 0]

    def count(index):
        counts[index] += 1

    for i, layer in enumerate(unwrap_gemma(loss.model).model.layers):
        layer.self_attn.register_forward_hook(lambda *_, i=i: count(i))
    loss(**row())[0].backward()
    assert counts == runs


def test_the_host_gives_tensors_back_unchanged_and_fetches_the_next_ahead():
    host, sources = HostOffload(), [torch.full((3, 5), float(i)) for i in range(4)]
    waiting = [host.put(source) for source in sources]
    for source in sources:
        source.zero_()  # the caller may reuse the memory
    assert torch.equal(host.get(waiting[3]), torch.full((3, 5), 3.0))
    # the next one is fetched ahead, and no tensor is held after it was given back
    fetched = [each.back is not None for each in waiting]
    assert fetched == [False, False, True, False]
    # a tensor that the caller dropped is not fetched
    del waiting[3], waiting[1]
    assert torch.equal(host.get(waiting[1]), torch.full((3, 5), 2.0))
    assert torch.equal(host.get(waiting[0]), torch.full((3, 5), 0.0))


def test_a_base_model_that_saves_memory_is_still_transformers_gemma_2(folder):
    loss = objective(folder)
    inner = unwrap_gemma(loss.model)
    before = (
        {name: type(module) for name, module in inner.named_modules()},
        list(inner.state_dict()),
    )
    apply_memory_config(inner, MemoryConfig())
    assert (
        {name: type(module) for name, module in inner.named_modules()},
        list(inner.state_dict()),
    ) == before


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # dynamo's own, as the next one
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_compiling_reaches_the_mlp_of_recomputed_layers_and_changes_nothing(folder, monkeypatch):
    """The code is captured, but not generated: a machine may have no compiler."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    captured = {}
    plain = loss_and_gradients(jogged(objective(folder, memory=MemoryConfig())), row())
    for compiles in ("nothing", "model", "model and MLPs"):
        loss = jogged(objective(folder, memory=MemoryConfig()))
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        model = unwrap_gemma(loss.model)
        if compiles == "model":
            model.model.compile()
        elif compiles == "model and MLPs":
            compile_model(model)
        assert furthest(loss_and_gradients(loss, row()), plain) < 1e-5
        captured[compiles] = torch._dynamo.utils.counters["stats"]["calls_captured"]
    assert captured["model and MLPs"] > captured["model"] > captured["nothing"] == 0
