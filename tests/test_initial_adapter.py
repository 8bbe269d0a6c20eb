"""A job starts from an adapter that another program wrote; other files are refused by name."""

import json
import pickle
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch.torch_version import TorchVersion
from transformers import Gemma2ForCausalLM

from app.config import load_config, make_paths_absolute
from app.errors import UserError
from app.gemma.adapter_check import list_weight_shapes
from app.jobs.initial_adapter import print_start, read_initial_adapter, require_one_adapter
from app.training import checkpoint
from app.training.config import OptimConfig
from app.training.optim import build_optimizer
from data_pipeline.stream.pack import pack_examples
from tests.reference import tensors
from tests.tiny import examples, gemma2_config, objective, save_model

TARGETS = ["q_proj", "v_proj", "down_proj"]
OURS = {"rank": 4, "alpha": 8, "target_modules": TARGETS}


def train_with_peft(base_folder, folder, *, steps=3, **changes):
    """Train and save an adapter with transformers and PEFT alone; return its loss of one batch."""
    torch.manual_seed(5)
    base = Gemma2ForCausalLM.from_pretrained(base_folder, attn_implementation="eager")
    settings = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS, "task_type": "CAUSAL_LM"}
    model = get_peft_model(base, LoraConfig(**{**settings, **changes}))
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-2
    )
    for _ in range(steps):
        compute_plain_loss(model).backward()
        optimizer.step()
        optimizer.zero_grad()
    if folder is not None:
        model.save_pretrained(folder)
    return model, compute_plain_loss(model).item()


def compute_plain_loss(model):
    """Return the mean loss of the examples, one forward pass for each."""
    total, count = 0.0, 0
    for example in examples(6):
        ids, targets = torch.tensor(example.input_ids)[None], torch.tensor(example.targets)
        logits = model(input_ids=ids, use_cache=False).logits[0]
        total += torch.nn.functional.cross_entropy(logits, targets.long(), reduction="sum")
        count += int((targets != -100).sum())
    return total / count


def compute_our_loss(loss):
    (sequence,) = pack_examples(examples(6), 200)
    total, count = loss(**tensors(sequence))
    return total / count


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def saved(base, tmp_path_factory):
    """(folder, loss) of a plain PEFT adapter."""
    folder = tmp_path_factory.mktemp("adapter")
    return folder, train_with_peft(base, folder)[1]


@pytest.fixture
def adapter(saved, tmp_path):
    """A copy of the adapter, for changes."""
    return shutil.copytree(saved[0], tmp_path / "adapter")


def config_of(base, adapter, **changes):
    return make_paths_absolute(
        load_config(
            None,
            {
                "model.name": base,
                "quantization.kind": "none",
                "train.output_dir": f"{base}/jobs",
                "lora.init_from": str(adapter),
                **{f"lora.{name}": value for name, value in OURS.items()},
                **changes,
            },
        )
    )


def start(config):
    """Return our loss module with the initial adapter of the config."""
    lora = config.lora.model_dump(include={*OURS, "use_rslora", "train_embeddings", "dropout"})
    loss = objective(config.model.name, kind="none", **lora)
    weights = read_initial_adapter(config).weights
    checkpoint.load_weights(
        {key: torch.tensor(value) for key, value in weights.items()}, loss.model
    )
    return loss


def refuse(config):
    with pytest.raises(UserError) as error:
        read_initial_adapter(config)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith("lora.init_from=")
    return message


def set_option(adapter, **options):
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **options}))


# an adapter of PEFT


def test_an_adapter_of_plain_peft_has_the_loss_it_had_and_trains_on(base, saved):
    folder, its_loss = saved
    loss = start(config_of(base, folder))
    assert compute_our_loss(loss).item() == pytest.approx(its_loss, rel=1e-6)
    assert its_loss < compute_our_loss(objective(base, kind="none")).item() - 0.1

    optimizer = build_optimizer(loss, OptimConfig(learning_rate=1e-2))
    for _ in range(3):
        compute_our_loss(loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert compute_our_loss(loss).item() < its_loss - 0.1


def test_embeddings_that_peft_trained_as_one_weight_are_trained_on(base, tmp_path):
    _, its_loss = train_with_peft(
        base,
        tmp_path / "adapter",
        modules_to_save=["embed_tokens", "lm_head"],
        ensure_weight_tying=True,
    )
    config = config_of(base, tmp_path / "adapter", **{"lora.train_embeddings": True})
    assert compute_our_loss(start(config)).item() == pytest.approx(its_loss, rel=1e-6)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_embeddings_that_were_trained_apart_from_the_head_are_refused(base, tmp_path):
    train_with_peft(base, tmp_path / "adapter", modules_to_save=["embed_tokens", "lm_head"])
    config = config_of(base, tmp_path / "adapter", **{"lora.train_embeddings": True})
    assert "trained embed_tokens apart from lm_head" in refuse(config)


def test_a_pickle_of_numbers_is_the_same_adapter(base, saved, adapter):
    weights = load_file(adapter / "adapter_model.safetensors")
    torch.save(weights, adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    loss = compute_our_loss(start(config_of(base, adapter))).item()
    assert loss == pytest.approx(saved[1], rel=1e-6)


def test_a_trainers_checkpoint_of_the_whole_model_is_the_same_adapter(base, saved, tmp_path):
    model, its_loss = train_with_peft(base, None)
    assert its_loss == saved[1]
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "trainer_state.json").write_text("{}")
    (tmp_path / "training_args.bin").write_bytes(b"never read")
    loss = compute_our_loss(start(config_of(base, tmp_path))).item()
    assert loss == pytest.approx(its_loss, rel=1e-6)


def test_rank_stabilised_lora_of_the_same_scale_is_trained_on(base, tmp_path):
    _, its_loss = train_with_peft(base, tmp_path / "adapter", use_rslora=True, lora_alpha=4)
    for settings in ({}, {"lora.use_rslora": True, "lora.alpha": 4}):  # 8 / 4 = 4 / √4
        loss = start(config_of(base, tmp_path / "adapter", **settings))
        assert compute_our_loss(loss).item() == pytest.approx(its_loss, rel=1e-6)
    with pytest.raises(UserError, match=r"lora\.alpha of the adapter is 4\.0 and of the job 8\.0"):
        start(config_of(base, tmp_path / "adapter", **{"lora.use_rslora": True}))


def test_our_own_checkpoint_is_an_adapter_too(base, tmp_path):
    loss = objective(base, kind="none", **OURS)
    optimizer = build_optimizer(loss, OptimConfig(learning_rate=1e-2))
    compute_our_loss(loss).backward()
    optimizer.step()
    pin = {"name": base, "quantization": "none", "sha256": "a" * 64}
    checkpoint.save_checkpoint(tmp_path, loss.model, optimizer, {"base": pin})
    config = config_of(base, tmp_path, **{"lora.dropout": 0.3})  # another dropout is fine
    assert read_initial_adapter(config).base == pin
    with pytest.raises(UserError, match=r"was trained on the base model .* or use another adapter"):
        checkpoint.require_same_pin(pin, {**pin, "sha256": "b" * 64})
    assert compute_our_loss(start(config).eval()).item() == compute_our_loss(loss).item()


@pytest.mark.parametrize("embeddings", [False, True])
def test_the_expected_shapes_are_those_that_are_saved(base, tmp_path, embeddings):
    loss = objective(base, kind="none", rank=3, train_embeddings=embeddings)
    optimizer = build_optimizer(loss, OptimConfig())
    checkpoint.save_checkpoint(tmp_path, loss.model, optimizer, {})
    stored = load_file(tmp_path / "adapter_model.safetensors")
    lora = load_config(None, {"lora.rank": 3, "lora.train_embeddings": embeddings}).lora
    expected = list_weight_shapes(lora, gemma2_config())
    assert {name: tuple(weight.shape) for name, weight in stored.items()} == expected


# differences


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lora.rank": 8}, "lora.rank of the adapter is 4 and of the job 8"),
        ({"lora.alpha": 16}, "lora.alpha of the adapter is 8.0 and of the job 16.0"),
        (
            {"lora.target_modules": ["q_proj", "k_proj"]},
            "lora.target_modules of the adapter is down_proj, q_proj, v_proj "
            "and of the job k_proj, q_proj",
        ),
        (
            {"lora.train_embeddings": True},
            "lora.train_embeddings of the adapter is False and of the job True",
        ),
        ({"model.name": "tiny"}, "the number of layers of the adapter is 2 and of the job 4"),
    ],
)
def test_each_difference_is_named_with_both_values(base, saved, changes, named):
    assert named in refuse(config_of(base, saved[0], **changes))


def test_an_adapter_of_another_width_is_named_with_both_shapes(saved, tmp_path):
    other = save_model(tmp_path, hidden_size=32)
    message = refuse(config_of(other, saved[0]))
    assert "is of another base model: " in message
    assert "has the shape (4, 64) instead of (4, 32)" in message


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"use_rslora": True}, "lora.alpha of the adapter is 16.0 and of the job 8.0"),
        ({"bias": "lora_only"}, "bias=lora_only"),
        ({"lora_alpha": "much"}, "lora_alpha='much'"),
        ({"peft_type": "IA3"}, "of the type IA3, not LORA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa', which changes the base"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern={'q_proj': 2}"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern={'q_proj': 2}"),
        ({"an_option_of_a_later_peft": 1}, "an_option_of_a_later_peft=1"),
    ],
)
def test_a_variant_that_is_not_trained_here_is_refused_by_its_name(base, adapter, options, named):
    set_option(adapter, **options)
    assert named in refuse(config_of(base, adapter))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"r": 1}, "has r=1 and lora_alpha=8, but the weights have the rank 4 (the job: "),
        ({"r": 1, "lora_alpha": 2}, "has r=1 and lora_alpha=2, but the weights have the rank 4"),
        ({"r": "4"}, "has r='4' and"),
        ({"r": None}, "has r=None and"),
        ({"target_modules": ["q_proj"]}, "does not list down_proj, v_proj in target_modules"),
    ],
)
def test_settings_that_the_weights_contradict_are_refused(base, adapter, options, named):
    set_option(adapter, **options)
    message = refuse(config_of(base, adapter))
    assert f"adapter_config.json {named}" in message


def test_targets_with_the_names_of_their_blocks_or_as_a_pattern_are_accepted(base, adapter):
    listed = ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"]
    for targets in (listed, r".*\.(q_proj|v_proj|down_proj)"):
        set_option(adapter, target_modules=targets)
        assert read_initial_adapter(config_of(base, adapter)) is not None


def test_peft_variants_that_add_weights_are_refused(base, tmp_path):
    train_with_peft(base, tmp_path / "dora", steps=0, use_dora=True)
    assert "use_dora=True" in refuse(config_of(base, tmp_path / "dora"))
    set_option(tmp_path / "dora", use_dora=False)
    assert "also holds the weight" in refuse(config_of(base, tmp_path / "dora"))

    train_with_peft(base, tmp_path / "norm", steps=0, modules_to_save=["input_layernorm"])
    assert "also holds the weight base_model.model.model.layers.0.input_layernorm.weight" in refuse(
        config_of(base, tmp_path / "norm")
    )
    train_with_peft(base, tmp_path / "one", steps=0, layers_to_transform=[1])
    assert "lacks the weight base_model.model.model.layers.0." in refuse(
        config_of(base, tmp_path / "one")
    )


def test_a_search_cannot_vary_the_shape_of_an_adapter_that_exists(base, saved):
    space = {"optim.learning_rate": {"loguniform": [1e-4, 1e-3]}, "lora.rank": {"choice": [4, 8]}}
    settings = {"search.space": space, "search.trial_steps": 4}
    with pytest.raises(UserError, match=r"search\.space\.lora\.rank varies the adapter of lora"):
        require_one_adapter(config_of(base, saved[0], **settings))
    del space["lora.rank"]
    require_one_adapter(config_of(base, saved[0], **settings))


# damaged and foreign files


class Bomb:
    def __reduce__(self):
        return print, ("the code of a pickle ran",)


def test_a_pickle_with_code_is_refused_and_not_run(base, adapter, capsys):
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({"x": torch.ones(2), "bomb": Bomb()}, adapter / "adapter_model.bin")
    message = refuse(config_of(base, adapter))
    named = "adapter_model.bin is a pickle that holds Python code, which is not run"
    assert named in message
    torch.save(
        {"bomb": Bomb()}, adapter / "adapter_model.bin", _use_new_zipfile_serialization=False
    )
    assert named in refuse(config_of(base, adapter))
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps({"bomb": Bomb()}))
    assert named in refuse(config_of(base, adapter))
    assert "ran" not in capsys.readouterr().out
    torch.load(_save_bomb(adapter), weights_only=False)  # the injected code works
    assert "the code of a pickle ran" in capsys.readouterr().out


def _save_bomb(folder):
    torch.save(Bomb(), folder / "bomb.bin")
    return folder / "bomb.bin"


def test_a_pickle_of_an_early_torch_is_read(base, saved, adapter):
    weights = load_file(adapter / "adapter_model.safetensors")
    (adapter / "adapter_model.safetensors").unlink()
    file = adapter / "adapter_model.bin"
    torch.save(weights, file, _use_new_zipfile_serialization=False)
    assert compute_our_loss(start(config_of(base, adapter))).item() == pytest.approx(
        saved[1], rel=1e-6
    )

    file.write_bytes(file.read_bytes()[:-9])
    assert "or it is damaged" in refuse(config_of(base, adapter))


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", pickle.dumps({"a": [1.0]}), pickle.dumps({}, protocol=0), b"PK\x03\x04"],
)
def test_bytes_that_torch_did_not_save_are_named_a_pickle_or_damaged(base, adapter, content):
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(content)
    message = refuse(config_of(base, adapter))
    assert "adapter_model.bin is a pickle that holds " in message
    assert message.endswith("in safetensors")


def test_a_pickle_is_not_opened_by_a_torch_that_would_run_it(base, adapter, monkeypatch):
    weights = load_file(adapter / "adapter_model.safetensors")
    torch.save(weights, adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.5.1"))
    assert "CVE-2025-32434" in refuse(config_of(base, adapter))


@pytest.mark.parametrize("keep", [0, 100, 5000])
def test_truncated_safetensors_are_refused(base, adapter, keep):
    file = adapter / "adapter_model.safetensors"
    assert len(file.read_bytes()) > 5000
    file.write_bytes(file.read_bytes()[:keep])
    assert "cannot be read (adapter_model.safetensors: " in refuse(config_of(base, adapter))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_with_their_weight(base, adapter, value):
    file = adapter / "adapter_model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if "layers.1.mlp.down_proj.lora_B" in name)
    weights[name][3, 2] = value
    save_file(weights, file)
    assert f"{name} holds values that are not finite" in refuse(config_of(base, adapter))


def test_tensors_of_no_shape_and_names_that_are_no_text_are_refused(base, adapter):
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({name: torch.tensor(1.0), 7: torch.ones(2)}, adapter / "adapter_model.bin")
    assert "the weights have the rank 1 (the job: lora.rank=4" in refuse(config_of(base, adapter))
    torch.save(torch.ones(2), adapter / "adapter_model.bin")
    refuse(config_of(base, adapter))


def test_a_damaged_config_of_an_adapter_is_refused(base, adapter):
    for text in ('{"r": 4', "[1]", "4"):
        (adapter / "adapter_config.json").write_text(text)
        assert "cannot be read (adapter_config.json: " in refuse(config_of(base, adapter))


def test_a_whole_model_is_no_adapter(base):
    assert "holds no LoRA weights of a Gemma 2" in refuse(config_of(base, base))


# missing


def test_an_adapter_that_is_not_there_is_an_error_or_a_fresh_start(base, tmp_path, capsys):
    config = config_of(base, tmp_path / "checkpoint-90")
    assert "is not there: correct it, or set lora.init_from_missing=fresh" in refuse(config)
    fresh = config_of(base, tmp_path / "checkpoint-90", **{"lora.init_from_missing": "fresh"})
    assert read_initial_adapter(fresh) is None
    print_start(fresh, None)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("the job starts from a new adapter, because lora.init_from=")


def test_a_folder_that_is_there_without_an_adapter_is_never_a_fresh_start(base, tmp_path):
    config = config_of(base, tmp_path, **{"lora.init_from_missing": "fresh"})
    with pytest.raises(UserError, match=r"holds neither adapter_config\.json nor a job"):
        read_initial_adapter(config)
