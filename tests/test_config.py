"""Configuration: wrong keys and values are named, shipped files load, shell and search agree."""

import inspect
import subprocess
import sys

import peft
import pytest
import ray.tune
import ray.tune.schedulers
import transformers
import yaml

from app.config import (
    Config,
    config_to_yaml,
    flatten_config,
    load_config,
    make_paths_absolute,
    override_config,
)
from app.config_files import CONFIGS
from app.config_reference import render_reference
from app.errors import UserError
from tests.command_line import run_command

SHIPPED = sorted(CONFIGS.glob("*.yaml"))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_shipped_config_loads_and_survives_a_round_trip(file, tmp_path):
    config = load_config(file)
    copy = tmp_path / "copy.yaml"
    copy.write_text(config_to_yaml(config))
    assert load_config(copy) == config


def test_the_shipped_configs_are_the_ones_the_readme_names():
    assert {file.stem for file in SHIPPED} == {
        "demo",
        "gemma2-2b",
        "gemma2-9b",
        "gemma2-27b",
        "search",
    }


def test_gemma2_9b_has_every_training_value_of_the_users_job():
    values = flatten_config(load_config("gemma2-9b"))
    expected = {
        "model.name": "google/gemma-2-9b-it",
        "lora.rank": 64,
        "lora.alpha": 128.0,
        "lora.dropout": 0.1,
        "lora.target_modules": [
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ],
        "lora.train_embeddings": False,
        "optim.learning_rate": 1e-4,
        "optim.schedule": "cosine_with_restarts",
        "optim.warmup_ratio": 0.05,
        "optim.weight_decay": 0.01,
        "optim.beta1": 0.9,
        "optim.beta2": 0.95,
        "optim.epsilon": 1e-8,
        "optim.max_grad_norm": 0.5,
        "train.num_epochs": 2,
        "train.micro_batch_size": 1,
        "train.gradient_accumulation_steps": 16,
        "train.eval_steps": 10,
        "train.save_steps": 10,
        "train.early_stopping_patience": 10,
        "train.early_stopping_threshold": 0.0005,
        "train.precision": "bf16",
        "train.tf32": True,
        "train.compile": True,
        "quantization.kind": "nf4",
        "quantization.double_quant": True,
        "memory.gradient_checkpointing": None,  # memory.policy recomputes what does not fit
        "memory.max_gib_per_gpu": 28.0,
        "memory.empty_cache_steps": 10,
        "memory.pin_memory": True,
        "evaluate.micro_batch_size": 2,
        "scaling.num_workers": 2,
        "scaling.use_gpu": True,
    }
    assert {path: values[path] for path in expected} == expected


def test_extending_a_config_changes_only_the_named_settings():
    nine, two = flatten_config(load_config("gemma2-9b")), flatten_config(load_config("gemma2-2b"))
    assert {path for path in nine if nine[path] != two[path]} == {
        "model.name",
        "lora.rank",
        "lora.alpha",
        "optim.learning_rate",
        "train.run_name",
        "memory.max_gib_per_gpu",
        "scaling.num_workers",
    }


@pytest.mark.parametrize(
    ("override_text", "message"),
    [
        (
            "optim.lerning_rate=1",
            "optim.lerning_rate is not a setting; did you mean optim.learning_rate?",
        ),
        ("learning_rate=1", "learning_rate is not a setting; did you mean optim.learning_rate?"),
        ("optm.schedule=cosine", "did you mean optim.schedule?"),
        (
            "optim.learning_rate=7",
            "optim.learning_rate=7: input should be less than or equal to 1; allowed: number",
        ),
        ("optim.learning_rate=fast", "optim.learning_rate='fast'"),
        ("optim.schedule=cosin", "allowed: cosine_with_restarts, cosine, linear, constant"),
        ("train.max_steps=1.5", "allowed: whole number ≥ 1 or null"),
        ("train.save_steps=7", "save_steps=7 must be a multiple of eval_steps=200"),
        ("optim", "write section.field=value"),
        ("optim=3", "optim=3"),
        ("lora.target_modules=[q_proj, zz]", "lora.target_modules.1='zz'"),
        ("search.space.optim.learning_rat={uniform: [1, 2]}", "did you mean optim.learning_rate?"),
        (
            "search.space.train.precision={choice: [fp32, auto]}",
            "name the precisions, without auto",
        ),
        (
            "search.space.optim.learning_rate={loguniform: [1e-4, 3]}",
            "search.space: optim.learning_rate=3.0",
        ),
        (
            "search.space.optim.learning_rate={loguniform: [1e-2, 1e-4]}",
            "must be below the high end",
        ),
        (
            "search.space.lora.rank={pick: [1]}",
            "search.space.lora.rank is not a range of values; allowed: {loguniform",
        ),
    ],
)
def test_a_wrong_override_is_named_with_what_is_allowed(override_text, message):
    with pytest.raises(UserError) as error:
        load_config("demo", [override_text])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_search_needs_the_length_of_a_trial():
    with pytest.raises(UserError, match=r"search.trial_steps and train.max_steps are both null"):
        load_config("demo", ["search.trial_steps=null", "train.max_steps=null"])


def test_moments_in_8_bits_are_not_sharded():
    with pytest.raises(
        UserError, match=r"optim.kind=adamw_8bit cannot shard .* set parallel.strategy=ddp"
    ):
        load_config("demo", ["optim.kind=adamw_8bit", "parallel.strategy=fsdp"])


def test_captions_during_training_need_a_whole_model():
    with pytest.raises(
        UserError, match=r"evaluate.watch_captions=3 needs .* parallel.strategy=ddp instead of fsdp"
    ):
        load_config("demo", ["evaluate.watch_captions=3", "parallel.strategy=fsdp"])


IGNORED = {
    "memory.offload=true": "memory.gradient_checkpointing=true, or memory.offload=false",
    "memory.keep_layers=2": "memory.gradient_checkpointing=true, or memory.keep_layers=0",
    "memory.tile_tokens=64": "memory.gradient_checkpointing=true, or memory.tile_tokens=2048",
    "optim.num_cycles=2": "optim.schedule=cosine_with_restarts, or optim.num_cycles=1",
    "model.revision=abc": "model.revision=null",
    "memory.embedding=host": "lora.train_embeddings=false, or memory.embedding=device",
}


@pytest.mark.parametrize("setting", IGNORED)
def test_a_setting_that_would_be_ignored_is_refused_with_the_ways_out(setting):
    """The demo recomputes no layer, has a plain cosine, its own model and trained embeddings."""
    with pytest.raises(UserError) as error:
        load_config("demo", [setting])
    assert setting in str(error.value)
    assert str(error.value).endswith(f"set {IGNORED[setting]}")
    assert "\n" not in str(error.value)
    for way_out in IGNORED[setting].split(", or "):
        load_config("demo", [setting, way_out])


def test_flash_attention_is_not_run_in_fp32():
    flash = ["model.attention=flash_attention_2", "train.precision=fp32"]
    with pytest.raises(UserError, match=r"in 16 bits only.* set train\.precision=bf16"):
        load_config("demo", flash)
    load_config("demo", [*flash, "train.precision=bf16"])


def test_a_local_model_has_no_revision(tmp_path):
    with pytest.raises(UserError, match=f"model.name={tmp_path} is on this machine"):
        load_config("demo", [f"model.name={tmp_path}", "model.revision=abc"])
    load_config("demo", ["model.name=google/gemma-2-2b-it", "model.revision=abc"])


def test_files_that_are_not_configs(tmp_path):
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "broken.yaml").write_text("optim: [1\n")
    for name, message in [
        ("absent", "config .*absent' not found.*gemma2-9b"),
        ("list.yaml", "holds a list"),
        ("broken.yaml", "is not YAML"),
    ]:
        with pytest.raises(UserError, match=message):
            load_config(tmp_path / name)


def test_a_config_at_a_uri_is_read_as_its_file_is(tmp_path):
    (tmp_path / "best.yaml").write_text(config_to_yaml(load_config("demo")))
    uri = f"file://{tmp_path}/best.yaml"
    assert load_config(uri, ["train.run_name=x"]) == load_config("demo", ["train.run_name=x"])
    (tmp_path / "latin.yaml").write_bytes(b"train: {run_name: \xe9}")
    for wrong, message in {
        f"file://{tmp_path}/absent.yaml": "URI cannot be read: there is no such file; correct the",
        f"file://{tmp_path}": "URI cannot be read: .*; correct the URI",
        f"file://{tmp_path}/latin.yaml": r"URI is not UTF-8 \(.*\): save it as UTF-8",
        "nosuch://a/b.yaml": "cannot open 'URI': .*; give a local path, or a URI of s3",
    }.items():
        with pytest.raises(UserError, match=f"^{message.replace('URI', wrong, 1)}"):
            load_config(wrong)


def test_shell_and_search_overrides_are_one_function():
    shell = load_config(
        "demo",
        ["optim.learning_rate=3e-4", "lora.rank=4", "train.max_steps=null", "search.trial_steps=5"],
    )
    mapping = load_config(
        "demo",
        {
            "optim.learning_rate": 3e-4,
            "lora.rank": 4,
            "train.max_steps": None,
            "search.trial_steps": 5,
        },
    )
    assert shell == mapping == override_config(load_config("demo"), flatten_config(shell))
    assert (shell.optim.learning_rate, shell.lora.rank, shell.train.max_steps) == (3e-4, 4, None)


def test_paths_are_made_absolute_for_ray_workers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = make_paths_absolute(load_config("demo", ["train.output_dir=s3://bucket/jobs"]))
    assert config.data.shards == str(tmp_path / "outputs/demo/shards")
    assert config.tracking.uri == f"sqlite:///{tmp_path}/outputs/demo/mlflow.db"
    assert (config.train.output_dir, config.model.name) == ("s3://bucket/jobs", "tiny")


def test_the_reference_names_every_field_once_with_a_meaning():
    text = render_reference(Config)
    for path in flatten_config(Config()):
        section, field = path.split(".")[:2]
        (line,) = [
            line for line in text.splitlines() if line.startswith(f"| `{section}.{field}` |")
        ]
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        assert cells[1].strip("` ")
        assert cells[2]
        assert len(cells[-1]) > 10, line


LIBRARIES = {
    "TrainingArguments": transformers.TrainingArguments,
    "LoraConfig": peft.LoraConfig,
    "BitsAndBytesConfig": transformers.BitsAndBytesConfig,
    "EarlyStoppingCallback": transformers.EarlyStoppingCallback,
    "GenerationConfig": transformers.GenerationConfig,
    "Gemma2Config": transformers.Gemma2Config,
    "TuneConfig": ray.tune.TuneConfig,
    "ASHAScheduler": ray.tune.schedulers.ASHAScheduler,
}


def counterparts():
    """(section.field, Library.name) of every counterpart in the reference."""
    for section, info in Config.model_fields.items():
        for name, field in info.annotation.model_fields.items():
            for counterpart in (field.json_schema_extra or {}).get("counterpart", "").split(", "):
                if counterpart:
                    yield f"{section}.{name}", counterpart


def test_every_counterpart_exists_in_its_library():
    for _, counterpart in counterparts():
        library, name = counterpart.split(".")
        if library == "GenerationConfig":
            assert hasattr(transformers.GenerationConfig(), name)
        elif library in LIBRARIES:
            assert name in inspect.signature(LIBRARIES[library]).parameters, counterpart


@pytest.mark.parametrize("prefix", ["", "train.", "nosuch."])
def test_a_name_of_another_library_is_answered_with_ours(prefix):
    for key, counterpart in counterparts():
        name = counterpart.split(".")[1]
        if name in {field.split(".")[1] for field, _ in counterparts()} | {"optim"}:
            continue
        with pytest.raises(UserError) as error:
            load_config(None, [f"{prefix}{name}=1"])
        if prefix != "nosuch.":
            assert str(error.value).endswith(f"{counterpart} is called {key} here")


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        ("max_seq_length=512", "SFTConfig.max_seq_length is called data.sequence_tokens here"),
        ("TrainingArguments.bf16=true", "TrainingArguments.bf16 is called train.precision here"),
        (
            "optim=adamw_8bit",
            "optim is a section; TrainingArguments.optim is called optim.kind here",
        ),
        ("lora=8", "lora is a section; write lora.KEY=value"),
        ("logging_steps=5", "logging_steps is not a setting; every step is logged"),
        ("push_to_hub=true", "is not a setting; `python -m app config docs` lists all settings"),
        ("lora.rnak=8", "did you mean lora.rank?"),
    ],
)
def test_a_user_of_another_library_gets_a_useful_answer(override, answer):
    with pytest.raises(UserError) as error:
        load_config(None, [override])
    assert str(error.value).endswith(answer)


def test_a_wrong_value_is_named_before_anything_heavy_is_imported():
    code = (
        "import sys; from app.__main__ import main;"
        "code = main(['train', 'gemma2-9b', 'optim.learning_rate=7']);"
        "heavy = {'torch', 'ray', 'mlflow', 'transformers', 'pyarrow'} & set(sys.modules);"
        "sys.exit(99 if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done
    assert done.stderr.startswith("svgscribe: optim.learning_rate=7: ")
    assert done.stderr.count("\n") == 1


def test_config_show_prints_yaml_that_loads_to_the_same_config():
    done = run_command("config", "show", "search", "lora.rank=32")
    assert Config.model_validate(yaml.safe_load(done.stdout)) == load_config(
        "search", ["lora.rank=32"]
    )


def test_a_file_or_override_that_is_too_deep_is_named(tmp_path):
    file = tmp_path / "deep.yaml"
    file.write_text("data: " + "[" * 3000)
    with pytest.raises(UserError, match=r"deep\.yaml is not YAML"):
        load_config(file)
    with pytest.raises(UserError, match=r"lora\.target_modules.* is not YAML"):
        load_config("demo", ["lora.target_modules=" + "[" * 3000])
