"""The model in training: NF4 base model, fp32 adapters, tied embeddings.

The loss, and the isolation of packed documents, are compared with transformers.
"""

import numpy as np
import pytest
import torch
from transformers import Gemma2ForCausalLM

from app.config import load_config
from app.errors import UserError
from app.gemma.base_model import TINY
from app.gemma.config import LoraConfig, ModelConfig, QuantizationConfig
from app.gemma.load import (
    CaptionLoss,
    add_lora,
    count_parameters,
    evaluation_mode,
    load_base_model,
    unwrap_gemma,
)
from data_pipeline.stream.encode import IGNORE_INDEX
from data_pipeline.stream.pack import pack_examples
from tests.reference import tensors
from tests.tiny import CPU, examples, gemma2_config, objective, save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


def test_the_loss_is_transformers_own_on_one_document(folder):
    (sequence,) = pack_examples(examples(1), 48)
    labels = np.concatenate(
        [[IGNORE_INDEX], sequence.targets[:-1]]
    )  # transformers shifts labels itself
    reference = Gemma2ForCausalLM.from_pretrained(folder, attn_implementation="eager")
    with torch.no_grad():
        theirs = reference(input_ids=torch.from_numpy(sequence.input_ids)[None].long(),
                           labels=torch.from_numpy(labels)[None].long()).loss  # fmt: skip
    with torch.no_grad():
        loss, count = objective(folder, kind="none")(**tensors(sequence))
    assert float(loss / count) == pytest.approx(float(theirs), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "attention"), [("none", "eager"), ("nf4", "eager"), ("nf4", "blockwise")]
)
def test_a_packed_sequence_is_as_if_its_documents_had_been_run_alone(folder, kind, attention):
    documents = examples(5, seed=3)
    (sequence,) = pack_examples(documents, 200)
    loss = objective(folder, kind=kind, attention=attention, train_embeddings=True)
    together, count = loss(**tensors(sequence))
    together.backward()
    gradients = {name: p.grad.clone() for name, p in loss.named_parameters() if p.grad is not None}
    loss.zero_grad()
    unwrap_gemma(loss.model).set_attn_implementation("eager")
    alone = sum(loss(**tensors(pack_examples([document], 200)[0]))[0] for document in documents)
    alone.backward()
    assert int(count) == sum(
        int((document.targets != IGNORE_INDEX).sum()) for document in documents
    )
    assert together.item() == pytest.approx(alone.item(), rel=1e-5)
    assert gradients
    for name, parameter in loss.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, gradients[name], atol=2e-5, rtol=1e-3)


def test_the_tiny_base_is_a_gemma_2_in_every_respect():
    base_model = load_base_model(
        ModelConfig(name="tiny"), QuantizationConfig(), device=CPU, dtype=torch.bfloat16
    )
    config = base_model.config
    assert (config.attn_logit_softcapping, config.final_logit_softcapping) == (50.0, 30.0)
    assert config.layer_types == ["sliding_attention", "full_attention"] * 2
    assert config.num_key_value_heads < config.num_attention_heads
    assert config.head_dim * config.num_attention_heads != config.hidden_size
    assert config.tie_word_embeddings
    assert base_model.lm_head.weight.data_ptr() == base_model.model.embed_tokens.weight.data_ptr()
    assert 1.5e6 < count_parameters(base_model)[1] < 2.5e6
    assert count_parameters(base_model)[0] == 0
    assert sum(file.stat().st_size for file in TINY.iterdir()) < 5 * 2**20
    assert base_model.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    assert base_model.model.embed_tokens.weight.dtype == torch.bfloat16


def test_trained_embeddings_stay_one_weight_and_fp32(folder):
    loss = objective(folder, dtype=torch.bfloat16, train_embeddings=True)
    inner = unwrap_gemma(loss.model)
    before = inner.lm_head.weight.detach().clone()
    optimizer = torch.optim.SGD([p for p in loss.parameters() if p.requires_grad], lr=0.1)
    loss(**tensors(pack_examples(examples(4), 200)[0]))[0].backward()
    optimizer.step()
    assert inner.lm_head.weight.data_ptr() == inner.model.embed_tokens.weight.data_ptr()
    assert not torch.equal(inner.lm_head.weight, before)
    assert {p.dtype for p in loss.parameters() if p.requires_grad} == {torch.float32}
    with loss.model.disable_adapter():
        assert torch.equal(inner.lm_head.weight.float(), before)


def test_a_new_adapter_changes_nothing_and_is_the_same_on_every_worker(folder):
    (sequence,) = pack_examples(examples(4), 200)
    one, two = objective(folder, rank=8), objective(folder, rank=8)
    for ours, theirs in zip(one.parameters(), two.parameters(), strict=True):
        if ours.requires_grad:
            assert torch.equal(ours, theirs)
    with torch.no_grad():
        adapted = one(**tensors(sequence))[0]
        with one.model.disable_adapter():
            assert torch.equal(one(**tensors(sequence))[0], adapted)


def test_evaluating_leaves_every_module_as_it_was(folder):
    loss = objective(folder, dropout=0.5)
    (sequence,) = pack_examples(examples(4), 200)
    modes = [module.training for module in loss.modules()]
    with evaluation_mode(loss):
        first, second = loss(**tensors(sequence))[0], loss(**tensors(sequence))[0]
        assert torch.equal(first, second)
        assert not first.requires_grad
    assert [module.training for module in loss.modules()] == modes
    assert all(modes)


def test_rank_64_on_the_9b_has_216_million_trained_parameters():
    """Counted at the real dimensions without weights; the user's document has about 75 million."""
    lora = load_config("gemma2-9b").lora
    config = gemma2_config(
        vocab_size=256_000, hidden_size=3584, intermediate_size=14336, num_hidden_layers=42,
        num_attention_heads=16, num_key_value_heads=8, head_dim=256,
    )  # fmt: skip
    with torch.device("meta"):
        model = add_lora(Gemma2ForCausalLM(config), LoraConfig(**lora.model_dump()), seed=0)
    assert (
        count_parameters(CaptionLoss(model, torch.float32))[0]
        - count_parameters(model.get_base_model())[0]
        == 0
    )
    trained = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    assert trained == 216_072_192


def test_a_model_that_is_not_there_or_not_a_gemma_2_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    for name, message in (
        (str(tmp_path / "absent"), "is neither a model folder"),
        (str(tmp_path), "is a 'llama' model"),
    ):
        with pytest.raises(UserError, match=message):
            load_base_model(
                ModelConfig(name=name), QuantizationConfig(), device=CPU, dtype=torch.float32
            )


@pytest.mark.parametrize(
    ("switched_off", "in_config", "said"),
    [
        ("attention_softcap", "attn_logit_softcapping", "softcap of attention scores: OFF"),
        ("logit_softcap", "final_logit_softcapping", "softcap of output logits: OFF"),
    ],
)
def test_a_softcap_can_be_switched_off_in_loss_and_generation_alike(
    tmp_path, switched_off, in_config, said, capsys
):
    Gemma2ForCausalLM(gemma2_config(initializer_range=0.3)).save_pretrained(
        tmp_path
    )  # so large that caps matter
    folder = str(tmp_path)
    (sequence,) = pack_examples(examples(1), 48)
    labels = torch.from_numpy(np.concatenate([[IGNORE_INDEX], sequence.targets[:-1]]))[None].long()
    ids = tensors(sequence)["input_ids"]
    reference = Gemma2ForCausalLM.from_pretrained(folder, attn_implementation="eager")
    with torch.no_grad():
        capped = reference(input_ids=ids).logits
    reference = Gemma2ForCausalLM.from_pretrained(
        folder, attn_implementation="eager", **{in_config: None}
    )
    for attention in ("eager", "blockwise"):
        capsys.readouterr()
        base_model = load_base_model(
            ModelConfig(name=folder, attention=attention, **{switched_off: False}),
            QuantizationConfig(kind="none"),
            device=CPU,
            dtype=torch.float32,
        )
        assert said in capsys.readouterr().err
        loss = CaptionLoss(add_lora(base_model, LoraConfig(), seed=0), torch.float32)
        with torch.no_grad():
            theirs = reference(input_ids=ids, labels=labels)
            ours, count = loss(**tensors(sequence))
            base_model.set_attn_implementation("eager")
            generated = base_model(input_ids=ids).logits
        assert float(ours / count) == pytest.approx(float(theirs.loss), rel=1e-5)
        torch.testing.assert_close(generated, theirs.logits)
        assert not torch.allclose(generated, capped, atol=1e-2)


def test_an_attention_whose_package_is_missing_is_refused_by_name(folder):
    with pytest.raises(UserError, match=r"model\.attention=flash_attention_2 cannot run here"):
        objective(folder, attention="flash_attention_2")
