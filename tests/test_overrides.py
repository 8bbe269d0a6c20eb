"""Overrides of a shell are read by the type of their setting; `extends` and `~` name files."""

import os
import re
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.config import (
    Config,
    config_to_yaml,
    flatten_config,
    load_config,
    make_paths_absolute,
)
from app.errors import UserError
from app.overrides import parse_override

TEXT_SETTINGS = [
    "data.system_prompt",
    "data.shards",
    "data.cache_dir",
    "model.name",
    "model.revision",
    "tracking.uri",
    "tracking.experiment",
    "train.output_dir",
]


@pytest.mark.parametrize("key", TEXT_SETTINGS)
@given(text=st.text(st.sampled_from(string.printable + "é…"), min_size=1).filter("null".__ne__))
def test_a_text_setting_takes_the_text_as_it_is(key: str, text: str) -> None:
    assert parse_override(f"{key}={text}", Config) == (key, text)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("data.system_prompt=Colours such as #f00", "Colours such as #f00"),
        ("data.system_prompt=Describe this SVG image:", "Describe this SVG image:"),
        ("data.shards=my shards #2", "my shards #2"),
        ("train.run_name=2024", "2024"),
        ("train.run_name=1e3", "1e3"),
        ("train.run_name=0x1f", "0x1f"),
        ("train.run_name=2024-01-31", "2024-01-31"),
        ("train.run_name=yes", "yes"),
        ("model.revision=0123456", "0123456"),
        ("model.revision=1234567e8", "1234567e8"),
        ("model.revision=null", None),
        ("tracking.uri=null", None),
        ("tracking.experiment=null", "null"),
        ("tracking.experiment=[a, b]", "[a, b]"),
        ("tracking.experiment=a=b", "a=b"),
        ("quantization.kind=none", "none"),
        ("train.max_steps=010", 10),
        ("train.max_steps=null", None),
        ("optim.learning_rate=3e-4", 3e-4),
        ("train.tf32=false", False),
        ("train.tf32=no", False),
        ("lora.target_modules=[q_proj, v_proj]", ["q_proj", "v_proj"]),
        ("evaluate.fields.year=[2024, 1.50, yes, null]", ["2024", "1.50", "yes", "null"]),
        ("evaluate.fields={on: [2024-01-31, '#f00']}", {"on": ["2024-01-31", "#f00"]}),
        ("search.space.lora.rank={choice: [8, 16]}", {"when": {}, "choice": [8, 16]}),
    ],
)
def test_a_value_is_read_by_the_type_of_its_setting(override: str, value: Any) -> None:
    path = override.partition("=")[0]
    hub_model = "model.name=google/gemma-2-2b-it"  # only such a model has a revision
    config = load_config("demo", [hub_model, override]).model_dump(mode="json")
    for part in path.split(".", 2):
        config = config[part]
    assert config == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.max_steps=5 # five", "train.max_steps='5 # five'"),
        ("train.max_steps=1:30", "train.max_steps='1:30'"),
        ("train.max_steps=true", "train.max_steps=true: this is no number"),
        ("train.max_steps=", "train.max_steps=''"),
        ("search.space.lora.rank={choice: [1:30]}", "lora.rank='1:30'"),
        ("search.space.lora.rank={choice: [yes]}", "lora.rank=true: this is no number"),
        ("search.space.lora.dropout={uniform: [no, 0.5]}", "false is not a number"),
        ("search.space.lora.rank={integer: [yes, 8]}", "true is not a number"),
        ("evaluate.fields={a: [x], b: [x], a: [y]}", "key 'a' is already in line 1"),
        ("search.space.lora.rank={choice: [8], choice: [9]}", "key 'choice' is already"),
        ("search.max_hours=inf", "search.max_hours=inf is not finite"),
        ("memory.max_gib_per_gpu=1e999", "memory.max_gib_per_gpu=inf is not finite"),
        ("train.run_name=null:", "train.run_name='null:'"),
        ("lora.target_modules=[q_proj] # and v_proj", "ignores '# and v_proj'"),
        ("lora.target_modules=[q_proj, #v_proj]", "is not YAML"),
        ("lora.target_modules=q_proj", "lora.target_modules='q_proj'"),
        ("search.space.lora.rank={choice: [8]} #16", "ignores '#16'"),
        ("=5", "write section.field=value"),
        ("train.run_name.x=3", "x cannot be set in 'demo'"),
        ("optim.learning_rate.x.y=3", "x.y cannot be set in '3e-3'"),
        ("search.space.train.run_name.x={choice: [a]}", "x cannot be set in 'demo'"),
    ],
)
def test_no_part_of_a_value_is_ignored_in_silence(override: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        load_config("demo", [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("train: {max_steps: 010}", "train.max_steps", 10),
        ("train: {max_steps: -0}", "train.max_steps", None),
        ("train: {max_steps: 1_000}", "train.max_steps", 1000),
        ("train: {max_steps: 0x1F}", "train.max_steps", 31),
        ("train: {max_steps: 1:30}", "train.max_steps", None),
        ("train: {max_steps: 0o17}", "train.max_steps", None),
        ("train: {max_steps: on}", "train.max_steps", None),
        ("optim: {weight_decay: yes}", "optim.weight_decay", None),
        ("optim: {weight_decay: 0.0_5}", "optim.weight_decay", 0.05),
        ("search: {max_hours: 1:30.5}", "search.max_hours", None),
        ("search: {max_hours: .inf}", "search.max_hours", None),
        ("search: {max_hours: .nan}", "search.max_hours", None),
        ("search: {max_hours: 010.5}", "search.max_hours", 10.5),
        ("train: {tf32: off}", "train.tf32", False),
        ("train: {run_name: 2024-01-31}", "train.run_name", "2024-01-31"),
        ("train: {run_name: 0123}", "train.run_name", "0123"),
        ("data: {system_prompt: 12:30:45}", "data.system_prompt", "12:30:45"),
        ("evaluate: {fields: {year: [0123]}}", "evaluate.fields.year", ["0123"]),
        ("search: {space: {lora.alpha: {uniform: [010, 020]}}}", "search.space.lora.alpha",
         {"when": {}, "uniform": [10, 20]}),
    ],
)  # fmt: skip
def test_a_number_in_a_file_is_decimal_or_refused(
    tmp_path: Path, text: str, path: str, value: Any
) -> None:
    """None: the value is refused by its name. Accepted values survive a round trip."""
    file = tmp_path / "job.yaml"
    file.write_text(f"extends: demo\n{text}\n")
    if value is None:
        with pytest.raises(UserError, match=rf"job\.yaml|{re.escape(path)}="):
            load_config(file)
        return
    config = load_config(file)
    assert flatten_config(config)[path] == value
    file.write_text(config_to_yaml(config))
    assert load_config(file) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "lora:\n  rank: 7\n  alpha: 5\n  rank: 9\n",
            "line 4: the key 'rank' is already in line 2",
        ),
        ("lora: {rank: 7}\noptim: {}\nlora: {alpha: 5}\n", "line 3: the key 'lora' is alr"),
        ('search:\n  points:\n  - {lora.rank: 8, "lora.rank": 9}\n', "line 3: the key 'lora.rank'"),
        ("extends: demo\nextends: search\n", "line 2: the key 'extends' is already in line 1"),
    ],
)
def test_two_equal_keys_of_a_mapping_are_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        load_config(file)
    assert str(error.value).startswith(f"{file}, {message}")
    assert str(error.value).endswith("keep one of them")


def test_a_key_beside_a_merge_replaces_the_merged_one(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(
        "evaluate:\n  fields:\n    <<: {a: [x], b: [y]}\n    <<: {c: [z]}\n    a: [w]\n"
    )
    assert load_config(file).evaluate.fields == {"a": ("w",), "b": ("y",), "c": ("z",)}


@pytest.mark.parametrize("name", ["..", ".", ".hidden", "-rf", "a/b", "", "a\n", "~", "a b"])
def test_a_run_name_is_a_plain_name(name: str) -> None:
    with pytest.raises(UserError, match=r"^train\.run_name="):
        load_config("demo", {"train.run_name": name})


def test_extends_is_relative_to_the_file_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "team" / "jobs").mkdir(parents=True)
    (tmp_path / "team" / "base.yaml").write_text("extends: demo\nlora: {rank: 7, alpha: 5}\n")
    (tmp_path / "team" / "jobs" / "near.yaml").write_text(
        "extends: ../base.yaml\nlora: {rank: 9}\n"
    )
    (tmp_path / "team" / "jobs" / "far.yaml").write_text("extends: near.yaml\n")
    (tmp_path / "home.yaml").write_text("extends: ~/team/base.yaml\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in (tmp_path, tmp_path / "team", tmp_path / "team" / "jobs"):
        monkeypatch.chdir(folder)
        for file in ("near.yaml", "far.yaml"):
            lora = load_config(os.path.relpath(tmp_path / "team" / "jobs" / file)).lora
            assert (lora.rank, lora.alpha) == (9, 5)
    monkeypatch.chdir(tmp_path / "team")
    assert load_config("jobs/far.yaml").lora.rank == 9
    assert load_config("~/home.yaml").lora.rank == 7


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": "extends: a.yaml"}, r"a\.yaml extends \S*a\.yaml, a circle: remove one"),
        ({"a": "extends: b.yaml", "b": "extends: ./a.yaml"}, r"b\.yaml extends \S*a\.yaml, a cir"),
        ({"a": "extends: b.yaml"}, r"config 'b\.yaml' not found in "),
        ({"a": "extends: [demo, search]"}, r"extends=\['demo', 'search'\] is not the name of one"),
    ],
)
def test_a_chain_that_has_no_end_is_one_sentence(
    tmp_path: Path, files: dict[str, str], message: str
) -> None:
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        load_config(tmp_path / "a.yaml")
    assert "\n" not in str(error.value)


def test_a_tilde_is_the_home_folder_in_every_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    config = make_paths_absolute(
        load_config(
            "demo",
            [
                "model.name=~/base-9b",
                "data.shards=~/shards",
                "data.cache_dir=~/cache",
                "train.output_dir=~",
                "tracking.uri=sqlite:///~/mlflow.db",
            ],
        )
    )
    assert {
        path: value.replace(str(tmp_path), "HOME")
        for path, value in flatten_config(config).items()
        if str(tmp_path) in str(value)
    } == {
        "model.name": "HOME/base-9b",
        "data.shards": "HOME/shards",
        "data.cache_dir": "HOME/cache",
        "train.output_dir": "HOME",
        "tracking.uri": "sqlite:///HOME/mlflow.db",
    }
