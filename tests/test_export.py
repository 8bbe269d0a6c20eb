"""Exports are loaded by their own ecosystems, give the captions of the trained model, or refuse."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.config import load_config, override_config
from app.errors import UserError
from app.evaluation.drift import Drift, compute_kl
from app.gemma.base_model import TINY, hash_weights, pin_base_model
from app.gemma.config import ModelConfig, QuantizationConfig
from app.gemma.load import load_adapter, load_base_model
from app.jobs.card_scores import find_scores
from app.jobs.export import export_model
from app.jobs.export_formats import save_prompt
from app.jobs.model_card import render_model_card
from app.jobs.open_captioner import open_captioner
from app.jobs.quantize import quantize_model
from app.jobs.trained_model import find_model, save_config
from app.storage import write_json
from app.tracking import TrackingConfig, open_run
from app.training import checkpoint
from app.training.config import OptimConfig
from app.training.optim import build_optimizer
from data_pipeline.config import PrepareConfig
from data_pipeline.prepare.dataset import prepare_dataset
from data_pipeline.shards import open_shards
from data_pipeline.stream.encode import PromptEncoder
from data_pipeline.stream.pack import pack_examples
from tests.reference import jogged, tensors
from tests.tiny import CPU, objective

LORA = {"rank": 4, "alpha": 8, "train_embeddings": False}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("data") / "shards")
    prepare_dataset(
        ["scenes:60:7"], PrepareConfig(out=folder, validation_share=0.06), progress=False
    )
    return folder


@pytest.fixture(scope="module")
def save(shards, tmp_path_factory):
    """Return a function that saves a checkpoint of an adapter with an effect."""

    encoder = PromptEncoder(str(TINY), load_config("demo").data.system_prompt)
    records = open_shards(shards).read("train", 0, 4)
    examples = [encoder.encode(record.svg, record.caption) for record in records]
    batch = tensors(pack_examples(examples, sum(len(one.input_ids) for one in examples))[0])

    def save(kind="none", model="tiny", num_steps=0, **lora):
        settings = {**LORA, **lora}
        folder = tmp_path_factory.mktemp("job") / "checkpoint_8"
        folder.mkdir()
        loss = jogged(objective(model, kind=kind, **settings))
        config = load_config(
            "demo",
            {
                "model.name": model,
                "quantization.kind": kind,
                "train.precision": "fp32",
                "data.shards": shards,
                "evaluate.max_new_tokens": 12,
                **{f"lora.{name}": value for name, value in settings.items()},
            },
        )
        state = {
            "state": {"step": 8},
            "base": pin_base_model(config.model, config.quantization),
            "job": {"the digest of data.shards": "d" * 64},
        }
        optimizer = build_optimizer(loss, OptimConfig(learning_rate=1e-2))
        for _ in range(num_steps):
            (loss(**batch)[0] / 100).backward()
            optimizer.step()
            optimizer.zero_grad()
        checkpoint.save_checkpoint(folder, loss.model, optimizer, state)
        save_config(folder, config)
        return find_model(str(folder))

    return save


@pytest.fixture(scope="module")
def trained(save):
    """An adapter that changes the captions, on the base model in 16 bits."""
    return save(num_steps=15)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """Folder of the adapter as `export --adapter` writes it."""
    out = tmp_path_factory.mktemp("exports") / "adapter"
    export_model(trained, "adapter", out, max_drift=1e-6)
    return out


@pytest.fixture(scope="module")
def drawings(shards):
    opened = open_shards(shards)
    num_records = opened.num_records("test")
    assert 2 <= num_records <= 6
    return [record.svg for record in opened.read("test", 0, num_records)]


def caption_plainly(model, tokenizer, svgs):
    """Return greedy captions as the model card says, without this application."""
    stops = tokenizer.convert_tokens_to_ids(["<end_of_turn>", "<eos>"])
    captions = []
    for svg in svgs:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": svg}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        ids = model.generate(**prompt, max_new_tokens=12, do_sample=False, eos_token_id=stops)
        text = tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
        captions.append(text.strip())
    return captions


def load_plainly(folder):
    return AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )


def caption(model, svgs):
    return open_captioner(model.config, model.adapter).caption(svgs)


def test_plain_peft_gives_the_captions_of_the_trained_model(trained, exported, drawings):
    plain = PeftModel.from_pretrained(load_plainly(TINY), exported)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    captions = caption_plainly(plain, tokenizer, drawings)
    assert captions == caption(trained, drawings)
    assert min(len(one.split()) for one in captions) > 3
    assert captions != caption_plainly(load_plainly(TINY), tokenizer, drawings)
    report = json.loads((exported / "drift.json").read_text())
    assert report["num_same_captions"] == report["num_drawings"] == len(drawings)
    assert 0 <= report["mean_kl"] < 1e-6


def test_trained_embeddings_are_in_the_folder_of_peft(save, tmp_path):
    model = save(train_embeddings=True)
    report = export_model(model, "adapter", tmp_path / "out", max_drift=1e-6)
    assert report["changed_captions"] == []


def test_plain_transformers_gives_the_captions_with_merged_weights(save, drawings, tmp_path):
    model = save(train_embeddings=True)
    report = export_model(model, "merged", tmp_path / "out", max_drift=0.01)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    theirs = caption_plainly(load_plainly(tmp_path / "out"), tokenizer, drawings)
    assert theirs == caption(model, drawings)
    assert report["num_same_captions"] == len(drawings)


def test_merged_weights_are_those_of_peft_rounded_once(trained, tmp_path):
    export_model(trained, "merged", tmp_path / "out", max_drift=1)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    base = load_file(TINY / "model.safetensors")
    assert {name: (one.shape, one.dtype) for name, one in merged.items()} == {
        name: (one.shape, one.dtype) for name, one in base.items()
    }
    peft = PeftModel.from_pretrained(load_plainly(TINY), trained.adapter).merge_and_unload()
    for name, expected in peft.state_dict().items():
        if name in merged:
            # exact in fp32 up to the order of sums, then half a unit in the last of 8 bits
            error = (merged[name].float() - expected).abs()
            assert bool((error <= expected.abs() * 2**-8 + 1e-7).all()), name
    assert not torch.equal(
        merged["model.layers.0.mlp.up_proj.weight"], base["model.layers.0.mlp.up_proj.weight"]
    )


def test_the_gguf_file_holds_the_factors_under_llama_cpps_names(trained, tmp_path):
    report = export_model(trained, "gguf-lora", tmp_path / "out", max_drift=1e-6)
    assert report["changed_captions"] == []
    reader = gguf.GGUFReader(tmp_path / "out" / "adapter.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "gemma2"
    assert fields["general.type"] == "adapter"
    assert fields["adapter.type"] == "lora"
    assert fields["adapter.lora.alpha"] == 8.0

    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    weights = load_file(f"{trained.adapter}/adapter_model.safetensors")
    expected = {
        f"blk.{layer}.{theirs}.weight.lora_{factor.lower()}": weights[
            f"base_model.model.model.layers.{layer}.{ours}.lora_{factor}.weight"
        ]
        for layer in range(4)
        for ours, theirs in names.items()
        for factor in "AB"
    }
    stored = {tensor.name: torch.tensor(tensor.data) for tensor in reader.tensors}
    assert stored.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(stored[name], weight), name
    # ggml lists the length of a row first
    shapes = {tensor.name: tuple(tensor.shape) for tensor in reader.tensors}
    assert shapes["blk.3.ffn_down.weight.lora_a"] == (576, 4)
    assert shapes["blk.3.ffn_down.weight.lora_b"] == (4, 192)


@pytest.mark.parametrize("form", ["adapter", "gguf-lora"])
def test_rank_stabilised_lora_keeps_its_scale(save, form, tmp_path):
    report = export_model(save(use_rslora=True), form, tmp_path / "out", max_drift=1e-6)
    assert report["changed_captions"] == []


def test_merged_rank_stabilised_lora_is_that_of_peft(save, tmp_path):
    trained = save(use_rslora=True)
    export_model(trained, "merged", tmp_path / "out", max_drift=10)
    name = "model.layers.0.mlp.up_proj.weight"
    merged = load_file(tmp_path / "out" / "model.safetensors")[name].float()
    peft = PeftModel.from_pretrained(load_plainly(TINY), trained.adapter).merge_and_unload()
    expected = peft.state_dict()[name]
    assert bool(((merged - expected).abs() <= expected.abs() * 2**-8 + 1e-7).all())


def test_the_chat_template_gives_the_prompt_of_the_training(trained, exported, drawings):
    tokenizer = AutoTokenizer.from_pretrained(exported)
    system_prompt = trained.config.data.system_prompt
    encoder = PromptEncoder(str(TINY), system_prompt)

    def render(messages, prompt):
        return tokenizer.apply_chat_template(
            messages, add_generation_prompt=prompt, return_dict=False
        )

    for svg in drawings:
        user = {"role": "user", "content": svg}
        assert render([user], True) == encoder.encode_prompt(svg)
        system = {"role": "system", "content": system_prompt}
        assert render([system, user], True) == encoder.encode_prompt(svg)
        answer = {"role": "assistant", "content": "a red circle"}
        example = encoder.encode(svg, "a red circle")
        assert render([user, answer], False) == example.input_ids.tolist()

        other = {"role": "system", "content": "Name it:\n\"quoted\" 'é'"}
        expected = PromptEncoder(str(TINY), other["content"]).encode_prompt(svg)
        assert render([other, user], True) == expected


def test_a_system_prompt_with_quotes_and_lines_is_kept_in_the_template(drawings, tmp_path):
    config = load_config("demo", {"data.system_prompt": "Say \"{{ x }}\"\n\t'é' \\n"})
    encoder = PromptEncoder(str(TINY), config.data.system_prompt)
    save_prompt(config, "adapter", tmp_path, encoder, drawings)  # it compares every prompt
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": drawings[0]}], add_generation_prompt=True, tokenize=False
    )
    assert config.data.system_prompt in text

    other = PromptEncoder(str(TINY), "another prompt")
    with pytest.raises(UserError, match="gives other tokens of a prompt"):
        save_prompt(config, "adapter", tmp_path, other, drawings)


def test_an_adapter_trained_on_4_bits_states_the_drift_of_its_merge(save, tmp_path):
    model = save(kind="nf4")
    with pytest.raises(UserError, match=r"--merged is not written.*exceeds --max-drift") as error:
        export_model(model, "merged", tmp_path / "out", max_drift=1e-5)
    assert list(tmp_path.iterdir()) == []

    report = export_model(model, "merged", tmp_path / "out", max_drift=10)
    assert report["mean_kl"] > 1e-4
    assert f"{report['mean_kl']:.2g} nats" in str(error.value)
    stated = json.loads((tmp_path / "out" / "drift.json").read_text())
    assert stated == {key: value for key, value in report.items() if key != "out"}
    assert f"{report['mean_kl']:.2g} nats" in (tmp_path / "out" / "README.md").read_text()


def test_the_model_card_names_scores_data_licence_and_prompt(save, tmp_path):
    model = save()
    report = {"adapter": model.adapter, "bleu4_after": 0.25, "constant_caption": "a circle"}
    write_json(str(Path(model.adapter).parent / "evaluation.json"), report)
    export_model(model, "adapter", tmp_path / "out", max_drift=1)
    card = (tmp_path / "out" / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert "base_model" not in metadata  # a name of the hub; nobody has `tiny` there
    assert metadata["license"] == "apache-2.0"
    assert metadata["library_name"] == "peft"
    assert "On the validation split, from `evaluation.json`." in card
    assert "| bleu4_after | 0.25 |" in card
    assert "d" * 64 in card
    assert model.config.data.system_prompt in card


def run_card(folder, svg, monkeypatch):
    """Run the Python code of a model card in its folder; return the caption."""
    (code,) = re.findall("```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    (folder / "drawing.svg").write_text(svg)
    monkeypatch.chdir(folder)
    names = {}
    exec(code, names)
    return names["caption"]


def test_the_code_of_the_model_card_quantises_as_the_training_did(
    save, drawings, tmp_path, monkeypatch
):
    model = save(kind="nf4", num_steps=15)
    export_model(model, "adapter", tmp_path / "out", max_drift=1e-4)
    stranger = (tmp_path / "out").rename(tmp_path / "stranger")
    assert run_card(stranger, drawings[0], monkeypatch) == caption(model, drawings[:1])[0]
    code = (stranger / "README.md").read_text()
    for argument in ("load_in_4bit=True", "quant_type='nf4'", "use_double_quant=True"):
        assert argument in code


@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_the_code_of_the_model_card_gives_the_caption_elsewhere(
    trained, drawings, tmp_path, monkeypatch, form
):
    export_model(trained, form, tmp_path / "out", max_drift=0.1)
    stranger = (tmp_path / "out").rename(tmp_path / "stranger")
    assert run_card(stranger, drawings[1], monkeypatch) == caption(trained, drawings[1:2])[0]
    assert "BitsAndBytesConfig" not in (stranger / "README.md").read_text()


def test_nothing_of_the_exporters_machine_is_handed_on(save, drawings, tmp_path, monkeypatch):
    base = shutil.copytree(TINY, tmp_path / "mine" / "my-gemma")
    model = save(model=str(base))
    out = tmp_path / "elsewhere" / "out"
    export_model(model, "adapter", out, max_drift=0.1)
    export_model(save(), "adapter", tmp_path / "tiny", max_drift=0.1)
    for file in [*out.rglob("*"), *(tmp_path / "tiny").rglob("*")]:
        if file.is_file():
            content = file.read_bytes()
            for path in (tmp_path.parent, TINY.parent, Path(model.adapter).parent):
                assert str(path).encode() not in content, file

    card = (out / "README.md").read_text()
    assert pin_base_model(model.config.model, model.config.quantization)["sha256"] in card
    options = json.loads((out / "adapter_config.json").read_text())
    assert options["base_model_name_or_path"] == "./my-gemma"
    base.rename(out / "my-gemma")  # as the card says
    assert run_card(out, drawings[0], monkeypatch)


def test_the_copy_of_the_tiny_base_model_has_the_hash_in_the_card(exported):
    sha256 = hash_weights(ModelConfig(name=str(exported / "base")))
    assert f"`{sha256}`" in (exported / "README.md").read_text()


def test_an_exported_adapter_names_its_base_model_to_this_application(trained, exported, capsys):
    open_captioner(trained.config, str(exported))
    assert "does not name its base model" not in capsys.readouterr().err
    other = override_config(trained.config, {"quantization.kind": "nf4"})
    with pytest.raises(UserError, match="was trained on the base model tiny"):
        open_captioner(other, str(exported))
    assert find_model(str(exported), config=trained.config).step == 8


# scores in the card


def write_state(adapter, **changes):
    file = Path(adapter, "state.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def write_report(adapter, folder, name, value):
    metrics = {"bleu4": {"value": value, "low": 0.1, "high": 0.4, "n": 12, "target": 0.0}}
    report = {"adapter": adapter, "split": "test", "metrics": metrics, "signature": "tok:13a"}
    write_json(str(Path(folder) / name), report)


def render(model):
    drift = Drift(0.0, 0.0, 1, 1, 1, [])
    return render_model_card(model, "merged", drift, "test", find_scores(model))


def test_the_report_of_the_test_split_comes_before_that_of_the_validation_split(save):
    model = save()
    folder = Path(model.adapter).parent
    write_report(model.adapter, folder, "evaluation.json", 0.25)
    write_report(model.adapter, folder, "evaluation-test.json", 0.375)
    card = render(model)
    assert "On the test split, from `evaluation-test.json`; BLEU by sacrebleu, `tok:13a`." in card
    assert "| bleu4 | 0.375 | 0.1 to 0.4 | 12 | 0 |" in card


def test_the_scores_of_a_checkpoint_are_those_of_its_copy_in_the_registry(save, tmp_path):
    model = save()
    write_state(model.adapter, run_id="f" * 32)
    copy = shutil.copytree(model.adapter, tmp_path / "registry" / "artifacts")
    job = {"train.output_dir": str(tmp_path), "train.run_name": "job", "tracking.uri": None}
    registered = replace(model, adapter=str(copy), config=override_config(model.config, job))
    (tmp_path / "job").mkdir()
    write_report(model.adapter, tmp_path / "job", "evaluation-test.json", 0.375)
    assert "| bleu4 | 0.375 |" in render(registered)

    write_state(copy, state={"step": 9})
    assert find_scores(registered) is None


def test_a_report_of_another_checkpoint_does_not_count_and_the_places_are_named(save, capsys):
    model = save()
    folder = Path(model.adapter).parent
    write_report("/elsewhere/checkpoint_4", folder, "evaluation.json", 0.25)
    card = render(model)
    assert "No evaluation of this checkpoint was found" in card
    assert str(folder) not in card
    assert f"no evaluation of {model.name} was found in {folder}, " in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
def test_the_scores_of_a_checkpoint_whose_job_is_gone_are_those_in_mlflow(save, tmp_path):
    model = save()
    tracking = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db")
    tracker = open_run(tracking, run_name="job", job_dir=str(tmp_path))
    tracker.log_checkpoint(8, Path(model.adapter), name="best", metrics={"loss": 1.0}, files=False)
    tracker.log_scores(8, {"test/bleu4": 0.3125, "test/bleu4_low": 0.25, "test/bleu4_high": 0.5})
    tracker.finish("FINISHED")
    run = json.loads((tmp_path / "mlflow_run.json").read_text())
    write_state(model.adapter, run_id=run["run_id"])

    config = override_config(model.config, {"tracking.uri": tracking.uri})
    card = render(replace(model, config=config))
    assert "On the test split, from MLflow." in card
    assert "| bleu4 | 0.3125 | 0.25 to 0.5 |  | 0.18 |" in card
    write_state(model.adapter, state={"step": 4})
    assert find_scores(replace(model, config=config)) is None


def refuse(model, kind, out):
    with pytest.raises(UserError) as error:
        export_model(model, kind, out, max_drift=1)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_format_that_cannot_hold_the_model_is_refused(save, tmp_path):
    message = refuse(save(train_embeddings=True), "gguf-lora", tmp_path / "out")
    assert "--gguf-lora cannot hold the trained embedding" in message

    quantize_model(ModelConfig(), QuantizationConfig(), tmp_path / "base")
    model = save(kind="nf4", model=str(tmp_path / "base"))
    assert "--merged needs the 16-bit weights" in refuse(model, "merged", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_that_is_there_is_overwritten(trained, tmp_path):
    (tmp_path / "file").write_text("mine")
    message = refuse(trained, "adapter", tmp_path)
    assert message == f"--out {tmp_path} is there already: give a new folder, or remove it"
    assert "is there already" in refuse(trained, "adapter", tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_another_base_model_than_the_pinned_one_is_refused(save, tmp_path):
    model = save()
    state = json.loads(Path(model.adapter, "state.json").read_text())
    state["base"]["sha256"] = "0" * 64
    Path(model.adapter, "state.json").write_text(json.dumps(state))
    assert "was trained on the base model tiny" in refuse(model, "merged", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_kl_is_that_of_torch_and_zero_for_equal_models():
    torch.manual_seed(0)
    p, q = torch.randn(2, 5, 50).log_softmax(-1)
    expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(compute_kl(p, q).float(), expected)
    assert bool((compute_kl(p, p) == 0).all())


def test_log_probabilities_are_those_of_the_loss(trained, drawings):
    config = trained.config
    captioner = open_captioner(config, trained.adapter)
    log_probs = captioner.compute_log_probs(drawings[0], "a red circle")
    encoder = PromptEncoder(str(TINY), config.data.system_prompt)
    example = encoder.encode(drawings[0], "a red circle")
    base = load_base_model(config.model, config.quantization, device=CPU, dtype=torch.float32)
    model = load_adapter(base, trained.adapter).eval()
    logits = model(input_ids=torch.tensor(example.input_ids)[None], use_cache=False).logits[0]
    positions = torch.tensor(example.targets != -100)
    expected = logits.detach().log_softmax(-1)[positions]
    torch.testing.assert_close(log_probs, expected, atol=1e-4, rtol=1e-4)
