"""A base model stored in 4 bits has the same bits as one that is quantised while loading.

It is refused if it is not stored as configured.
"""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from transformers import Gemma2ForCausalLM

from app.errors import UserError
from app.gemma.base_model import TINY, hash_weights, pin_base_model
from app.gemma.config import LoraConfig, ModelConfig, QuantizationConfig
from app.gemma.load import CaptionLoss, add_lora, load_base_model
from app.jobs.quantize import quantize_model
from data_pipeline.stream.encode import PromptEncoder
from data_pipeline.stream.pack import pack_examples
from tests.command_line import refuse_command, run_command
from tests.reference import tensors
from tests.tiny import CPU, examples, gemma2_config, save_model

NF4 = QuantizationConfig()


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A model stored in fp32: it must not be rounded to bf16 before it is quantised."""
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def small(full):
    out = Path(full).with_name("small")
    quantize_model(ModelConfig(name=full), NF4, out)
    return str(out)


def loss_and_gradients(name, dtype, quantization=NF4):
    base_model = load_base_model(ModelConfig(name=name), quantization, device=CPU, dtype=dtype)
    layers = [module for module in base_model.modules() if isinstance(module, Linear4bit)]
    assert (
        {layer.compute_dtype for layer in layers}
        == {layer.weight.quant_state.dtype for layer in layers}
        == {dtype}
    )
    assert {p.dtype for p in base_model.parameters()} == {torch.uint8, dtype}
    objective = CaptionLoss(
        add_lora(base_model, LoraConfig(rank=4, alpha=8), seed=3), dtype
    ).train()
    loss, _ = objective(**tensors(pack_examples(examples(5), 200)[0]))
    loss.backward()
    return loss.item(), {
        name: p.grad for name, p in objective.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_same_bits_as_quantised_while_loading(full, small, dtype):
    (ours, our_gradients), (theirs, their_gradients) = (
        loss_and_gradients(name, dtype) for name in (small, full)
    )
    assert ours == theirs
    assert their_gradients
    assert our_gradients.keys() == their_gradients.keys()
    assert all(
        torch.equal(our_gradients[name], gradient) for name, gradient in their_gradients.items()
    )


def test_fp4_without_double_quantisation_too(full, tmp_path):
    fp4 = QuantizationConfig(kind="fp4", double_quant=False)
    quantize_model(ModelConfig(name=full), fp4, tmp_path / "fp4")
    ours, theirs = (
        loss_and_gradients(name, torch.float32, fp4)[0] for name in (str(tmp_path / "fp4"), full)
    )
    assert ours == theirs != loss_and_gradients(full, torch.float32)[0]


def test_transformers_reads_it_without_us(small):
    eager = ModelConfig(name=small, attention="eager")
    ours = load_base_model(eager, NF4, device=CPU, dtype=torch.float32)
    theirs = Gemma2ForCausalLM.from_pretrained(small, attn_implementation="eager")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(ours(input_ids=ids).logits, theirs(input_ids=ids).logits)


def test_the_command_writes_weights_config_and_tokenizer_and_prints_a_summary(tmp_path):
    out = tmp_path / "new" / "tiny4"
    done = run_command("quantize", "tiny", "--out", str(out), "--double-quant", "false")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["quantization"] == "nf4"
    assert said["sha256"] == hash_weights(ModelConfig(name=str(out)))
    assert said["bytes"] == sum(file.stat().st_size for file in out.iterdir())
    assert {file.suffix for file in out.iterdir()} == {".json", ".safetensors"}
    own, shipped = (
        PromptEncoder(str(name), "Describe:").encode("<svg/>", "A red circle.")
        for name in (out, TINY)
    )
    assert own.input_ids.tolist() == shipped.input_ids.tolist()
    assert [file.name for file in out.parent.iterdir()] == ["tiny4"]


def test_the_hash_is_the_one_that_sha256sum_prints(small):
    printed = subprocess.run(
        "sha256sum *.safetensors | sha256sum",
        shell=True,
        cwd=small,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.split()[0] == pin_base_model(ModelConfig(name=small), NF4)["sha256"]


def test_shards_are_hashed_together_and_one_changed_bit_is_another_base(full, tmp_path):
    Gemma2ForCausalLM(gemma2_config()).save_pretrained(tmp_path, max_shard_size="200KB")
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 1
    before = hash_weights(ModelConfig(name=str(tmp_path)))
    content = bytearray(files[-1].read_bytes())
    content[-1] ^= 1
    files[-1].write_bytes(content)
    assert hash_weights(ModelConfig(name=str(tmp_path))) != before


@pytest.mark.parametrize(
    ("configured", "message"),
    [
        (
            QuantizationConfig(kind="none"),
            "stored as nf4, double, but the config has none: set quantization.kind=nf4",
        ),
        (QuantizationConfig(kind="fp4"), "but the config has fp4, double"),
        (
            QuantizationConfig(double_quant=False),
            "config has nf4: set quantization.kind=nf4 quantization.double_quant=true",
        ),
    ],
)
def test_a_config_with_another_kind_is_refused(small, configured, message):
    with pytest.raises(UserError, match=message):
        load_base_model(ModelConfig(name=small), configured, device=CPU, dtype=torch.float32)


def test_models_that_cannot_be_quantised_are_named(full, small, tmp_path):
    (tmp_path / "gptq").mkdir()
    foreign = {
        **json.loads(Path(full, "config.json").read_text()),
        "quantization_config": {"quant_method": "gptq"},
    }
    (tmp_path / "gptq" / "config.json").write_text(json.dumps(foreign))
    out = tmp_path / "out"
    for name, message in (
        (small, r"is quantised already \(nf4, double\)"),
        (str(tmp_path / "gptq"), "is quantised by 'gptq', not in 4 bits by bitsandbytes"),
    ):
        with pytest.raises(UserError, match=message):
            quantize_model(ModelConfig(name=name), NF4, out)
    assert not out.exists()


def test_mistakes_on_the_command_line_are_one_sentence(full, tmp_path, monkeypatch):
    """They are found before torch is imported, which takes seconds."""
    monkeypatch.setitem(sys.modules, "app.jobs.quantize", None)  # its import would be an error
    out = tmp_path / "out"
    for name in ("empty", "bare"):
        (tmp_path / name).mkdir()
    (tmp_path / "bare" / "config.json").touch()
    for arguments, message in (
        ((str(tmp_path / "absent"),), "is neither a model folder"),
        (("a/b/c",), "'a/b/c' is neither a model folder nor a model on the hub"),
        ((str(tmp_path / "empty"),), "empty' holds no config.json: give the folder of a Gemma 2"),
        ((str(tmp_path / "bare"),), "bare' holds no *.safetensors: give the folder of a Gemma 2"),
        ((f"file://{tmp_path}/bare",), "bare' holds no *.safetensors"),
        ((f"file://{tmp_path}/absent",), "cannot list 'file://"),
        ((full, "--kind", "none"), "leaves nothing to quantise"),
        ((full, "--out", full), "is there already: give a new folder"),
        ((full, "--kind", "int3"), "allowed: nf4, fp4, none"),
    ):
        assert message in refuse_command("quantize", "--out", str(out), *arguments)
    assert not out.exists()


def test_a_full_disk_is_named_and_nothing_is_left(full, tmp_path):
    """The kernel limits files to 64 KiB, which fails like a full disk without filling one."""
    out = tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, hard))
    try:
        message = refuse_command("quantize", full, "--out", str(out))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "out cannot be written" in message
    assert list(tmp_path.iterdir()) == []
