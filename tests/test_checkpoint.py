"""A checkpoint is complete, in safetensors and JSON, and readable by PEFT alone."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from transformers import Gemma2ForCausalLM

from app.errors import UserError
from app.gemma.base_model import pin_base_model
from app.gemma.config import ModelConfig, QuantizationConfig
from app.gemma.load import load_adapter, load_base_model
from app.jobs.train_context import require_one_base_model
from app.training import checkpoint
from app.training.config import OptimConfig
from app.training.optim import build_optimizer
from data_pipeline.stream.pack import pack_examples
from tests.reference import tensors
from tests.tiny import CPU, examples, gemma2_config, objective, save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


def stepped(loss, optimizer, steps):
    (sequence,) = pack_examples(examples(6), 200)
    for _ in range(steps):
        loss(**tensors(sequence))[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return float(loss(**tensors(sequence))[0])


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit", "paged_adamw_8bit"])
@pytest.mark.parametrize("embeddings", [False, True])
def test_weights_and_moments_come_back_exactly(folder, tmp_path, embeddings, kind):
    optim = OptimConfig(kind=kind, learning_rate=1e-2)
    loss = objective(folder, train_embeddings=embeddings)
    optimizer = build_optimizer(loss, optim)
    stepped(loss, optimizer, 3)
    checkpoint.save_checkpoint(tmp_path, loss.model, optimizer, {"step": 3})
    expected = stepped(loss, optimizer, 2)
    other = objective(folder, train_embeddings=embeddings)
    other_optimizer = build_optimizer(other, optim)
    assert checkpoint.restore_checkpoint(tmp_path, other.model, other_optimizer) == {"step": 3}
    assert stepped(other, other_optimizer, 2) == expected
    state_dtypes = (
        {state["state1"].dtype for state in optimizer.state.values()} if kind != "adamw" else set()
    )
    # smaller weights stay in fp32
    assert (torch.uint8 in state_dtypes) == (embeddings and kind != "adamw")


def test_moments_of_another_optimizer_are_refused(folder, tmp_path):
    loss = objective(folder)
    eight, full = (
        build_optimizer(loss, OptimConfig(kind=kind)) for kind in ("adamw_8bit", "adamw")
    )
    for saved, other in ((eight, full), (full, eight)):
        stepped(loss, saved, 1)
        checkpoint.save_checkpoint(tmp_path, loss.model, saved, {})
        with pytest.raises(UserError, match=r"moments are not those of AdamW.*optim\.kind"):
            checkpoint.restore_checkpoint(tmp_path, loss.model, other)


def test_no_file_is_a_pickle_and_peft_reads_the_adapter_alone(folder, tmp_path):
    loss = objective(folder, kind="none", train_embeddings=True)
    optimizer = build_optimizer(loss, OptimConfig(learning_rate=1e-2))
    expected = stepped(loss, optimizer, 3)
    checkpoint.save_checkpoint(tmp_path, loss.model, optimizer, {"step": 3})
    assert {file.suffix for file in tmp_path.iterdir()} <= {".json", ".safetensors", ".md"}
    assert json.loads((tmp_path / "state.json").read_text()) == {"step": 3}
    (sequence,) = pack_examples(examples(6), 200)
    base = Gemma2ForCausalLM.from_pretrained(folder, attn_implementation="eager")
    theirs = PeftModel.from_pretrained(base, str(tmp_path))
    plain = load_base_model(
        ModelConfig(name=folder), QuantizationConfig(kind="none"), device=CPU, dtype=torch.float32
    )
    ours = load_adapter(plain, tmp_path)
    for model in (theirs, ours):
        with torch.no_grad():
            logits = model(
                input_ids=tensors(sequence)["input_ids"],
                position_ids=tensors(sequence)["position_ids"],
                use_cache=False,
            ).logits  # with a cache, transformers ignores the documents of a sequence
        nll = torch.nn.functional.cross_entropy(
            logits[0], tensors(sequence)["targets"][0], reduction="sum"
        )
        assert float(nll) == pytest.approx(expected, rel=1e-4)


def test_another_base_model_than_the_checkpoints_is_refused_and_both_are_named(
    folder, tmp_path, capsys
):
    moved, other = tmp_path / "moved", tmp_path / "other"
    shutil.copytree(folder, moved)
    torch.manual_seed(1)
    Gemma2ForCausalLM(gemma2_config()).save_pretrained(other)
    nf4, fp4 = QuantizationConfig(), QuantizationConfig(kind="fp4")
    base = pin_base_model(ModelConfig(name=folder), nf4)
    (tmp_path / "state.json").write_text(json.dumps({"base": base}))
    checkpoint.require_same_base_model(tmp_path, pin_base_model(ModelConfig(name=str(moved)), nf4))
    for name, quantization in ((str(other), nf4), (folder, fp4)):
        with pytest.raises(UserError) as error:
            checkpoint.require_same_base_model(
                tmp_path, pin_base_model(ModelConfig(name=name), quantization)
            )
        assert (
            f"was trained on the base model {folder} (nf4, double; sha256 {base['sha256'][:16]}"
            in str(error.value)
        )
        assert f"not on {name} ({quantization.kind}, double; sha256 " in str(error.value)
    assert capsys.readouterr().err == ""
    checkpoint.require_same_base_model(other, base)  # an adapter of PEFT alone
    assert "does not name its base model" in capsys.readouterr().err


def test_nodes_with_different_files_under_one_name_are_refused():
    one, two = (
        {"name": "/models/base", "quantization": "nf4, double", "sha256": c * 64} for c in "ab"
    )
    assert require_one_base_model([one, None, one]) == one  # only the first worker of a node hashes
    with pytest.raises(
        UserError, match=r"model\.name='/models/base' is not the same on all nodes .*aaaa.*bbbb"
    ):
        require_one_base_model([one, None, two])
