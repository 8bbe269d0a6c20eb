"""A job continues only with the settings, data and tokenizer of its newest checkpoint."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from app.config import load_config, override_config
from app.errors import UserError
from app.gemma.base_model import TINY
from app.jobs.check import check_before_ray, check_evaluation, check_job, describe_length
from app.jobs.job import build_stream
from app.jobs.job_dir import SNAPSHOT, get_job_dir
from app.jobs.lease import hold_lease
from app.jobs.resume import PINNED, pin_job, require_same_job
from app.jobs.worker import check_start
from data_pipeline.errors import DataError
from data_pipeline.shards import open_shards
from data_pipeline.stream.token_stream import Position
from data_pipeline.stream.worker_batches import split_among_workers
from tests.checkpoints import write_checkpoint_files
from tests.corpus import save_tokenizer, write_shards
from tests.tiny import save_model


@pytest.fixture
def config(tmp_path):
    write_shards(tmp_path / "shards", train=[60] * 30, validation=[60] * 5)
    return load_config(
        "demo",
        {
            "data.shards": str(tmp_path / "shards"),
            "data.sequence_tokens": 512,
            "data.shuffle_block_examples": 10,
            "train.output_dir": str(tmp_path / "jobs"),
        },
    )


def save_checkpoint(config, *, has_pins=True, **state):
    """Write the files that Ray Train and rank 0 leave after step 7."""
    stream = build_stream(config, open_shards(config.data.shards))
    folder = config.train.output_dir + "/demo/checkpoint_7"
    pins = {"job": pin_job(config, stream)} if has_pins else {}
    write_checkpoint_files(Path(folder), {**pins, **state})
    newest = {"checkpoint_dir_name": "checkpoint_7", "metrics": {"step": 7}}
    write(f"{get_job_dir(config)}/{SNAPSHOT}", {"latest_checkpoint_result": newest})
    return stream


def write(path, value):
    folder = path.rpartition("/")[0]
    Path(folder).mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(value))


def check(config):
    return check_job(config, open_shards(config.data.shards))


CHANGES = {
    "lora.rank": (16, 8),
    "lora.alpha": (32.0, 16.0),
    "lora.use_rslora": (False, True),
    "lora.dropout": (0.0, 0.1),
    "lora.target_modules": (None, ["q_proj", "v_proj"]),
    "lora.train_embeddings": (True, False),
    "lora.init_from": (None, "/adapter"),
    "model.attention_softcap": (True, False),
    "model.logit_softcap": (True, False),
    "data.sequence_tokens": (512, 1024),
    "data.too_long": ("drop", "truncate"),
    "data.shuffle_block_examples": (10, 11),
    "data.seed": (0, 1),
    "data.max_train_records": (None, 29),
    "data.max_validation_records": (240, 3),
    "data.system_prompt": (None, "Look: "),
    "train.seed": (0, 1),
}


def test_every_pinned_setting_is_tried():
    assert set(CHANGES) == set(PINNED)


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_setting_is_refused_with_its_old_and_new_value(config, name):
    save_checkpoint(config)
    old, new = CHANGES[name]
    with pytest.raises(UserError) as error:
        check(override_config(config, {name: new}))
    message = str(error.value)
    assert f"cannot continue from step 7: {name} was {'' if old is None else repr(old)}" in message
    assert f" and is {new!r}; restore the old value" in message
    assert message.count(" was ") == 1
    assert "\n" not in message


def test_what_does_not_change_the_stream_or_the_adapter_may_change(config):
    save_checkpoint(config)
    modules = list(reversed(config.lora.target_modules))
    check(
        override_config(
            config,
            {
                "lora.target_modules": modules,
                "optim.learning_rate": 1e-5,
                "scaling.num_workers": 3,
                "train.micro_batch_size": 2,
                "train.max_steps": 9,
                "train.num_epochs": 4,
                "parallel.strategy": "zero2",
                "data.cache_dir": config.train.output_dir,
                "data.ledger": True,
            },
        )
    )


def test_other_shards_are_refused_and_moved_ones_are_not(config, tmp_path):
    save_checkpoint(config)
    (tmp_path / "shards").rename(tmp_path / "moved")
    check(override_config(config, {"data.shards": str(tmp_path / "moved")}))
    write_shards(tmp_path / "shards", train=[60] * 29 + [61], validation=[60] * 5)
    with pytest.raises(UserError, match=r"step 7: the digest of data\.shards was '\w+' and is "):
        check(config)


def test_another_tokenizer_is_refused(config, tmp_path):
    stream = save_checkpoint(config)
    other = dataclasses.replace(stream, tokenizer=save_tokenizer(tmp_path))
    with pytest.raises(UserError, match="step 7: the sha256 of the tokenizer was '"):
        require_same_job(config, other, get_job_dir(config))


def test_several_changes_are_all_named_in_one_sentence(config):
    save_checkpoint(config)
    with pytest.raises(UserError, match=r"lora\.rank was 16 and is 4; data\.seed was 0 and is 5;"):
        check(override_config(config, {"lora.rank": 4, "data.seed": 5}))


def test_a_checkpoint_without_pins_is_accepted_with_a_warning(config, capsys):
    save_checkpoint(config, has_pins=False)
    check(override_config(config, {"lora.rank": 4}))
    assert "does not name its data and settings" in capsys.readouterr().err


def test_a_job_that_another_process_trains_is_refused_before_ray_starts(config):
    shards = open_shards(config.data.shards)
    with hold_lease(get_job_dir(config)):
        with pytest.raises(UserError, match=r"jobs/demo is running: .* set train\.run_name"):
            check_before_ray(config, shards)
        check_before_ray(override_config(config, {"train.run_name": "other"}), shards)
    check_before_ray(config, shards)


def test_a_missing_checkpoint_is_named(config, tmp_path):
    save_checkpoint(config)
    (tmp_path / "jobs/demo/checkpoint_7/state.json").unlink()
    with pytest.raises(UserError, match="checkpoint_7, is missing: restore it"):
        check(config)


@pytest.mark.parametrize(
    "name", ["state.json", "adapter_model.safetensors", "optimizer.safetensors"]
)
def test_a_job_is_not_continued_from_a_damaged_checkpoint(config, tmp_path, name):
    save_checkpoint(config)
    file = tmp_path / "jobs/demo/checkpoint_7" / name
    check(config)
    for content in (file.read_bytes()[:-1], b""):
        file.write_bytes(content)
        with pytest.raises(UserError, match=rf"checkpoint_7/{name} "):
            check(config)
        assert file.read_bytes() == content


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_split_without_an_example_that_fits_is_refused_with_the_length_to_set(
    config, split, tmp_path
):
    lengths = {"train": [60] * 30, "validation": [60] * 5, split: [900, 800, 1000]}
    write_shards(tmp_path / "long", **lengths)
    config = override_config(config, {"data.shards": str(tmp_path / "long")})
    limit = config.data.sequence_tokens
    message = rf"none of 3 examples of the {split} split fits into data\.sequence_tokens={limit}: "
    with pytest.raises(DataError, match=message + r"raise it to at least (\d+), or set") as error:
        check(config)

    enough = int(re.findall(r"at least (\d+)", str(error.value))[0])
    check(override_config(config, {"data.sequence_tokens": enough}))
    with pytest.raises(DataError, match=f"at least {enough},"):
        check(override_config(config, {"data.sequence_tokens": enough - 1}))
    check(override_config(config, {"data.too_long": "truncate"}))


def test_sequences_shorter_than_prompt_and_caption_are_refused(config):
    short = {"data.too_long": "truncate", "data.sequence_tokens": 16}
    with pytest.raises(DataError, match=r"=16: prompt and caption alone are longer; raise it"):
        check(override_config(config, short))


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(config, tmp_path):
    folder = save_model(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((TINY / "tokenizer.json").read_bytes())
    with pytest.raises(UserError, match=r"ids up to 20\d\d, but the model has 96 embeddings"):
        check(override_config(config, {"model.name": folder}))
    with pytest.raises(UserError, match="but the model has 96 embeddings"):
        check_evaluation(
            override_config(config, {"model.name": folder}), open_shards(config.data.shards)
        )


def test_the_tokenizer_is_that_of_the_models_revision(config):
    shards = open_shards(config.data.shards)
    hub = {"model.name": "google/gemma-2-2b-it", "model.revision": "abc123"}
    stream = build_stream(override_config(config, hub), shards)
    assert stream.tokenizer == "google/gemma-2-2b-it@abc123"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train.max_steps": None}, r"the end of the data, after about (\d+) optimizer steps$"),
        ({"train.max_steps": 2}, r"train\.max_steps=2 of about (\d+) optimizer steps$"),
        ({"train.max_steps": 800}, r"after about (\d+) .*train\.max_steps=800 is beyond it$"),
    ],
)
def test_the_horizon_is_the_earlier_end(config, changes, sentence):
    changed = override_config(config, {**changes, "scaling.num_workers": 1, "train.num_epochs": 3})
    stream = check(changed)
    said = describe_length(changed, stream)
    num_sequences = sum(
        len(stream.pack_shuffle_block(number)["index"])
        for number in range(stream.num_shuffle_blocks)
    )
    found = re.search(sentence, said)
    assert found, said
    assert int(found[1]) == num_sequences


def test_a_stream_that_starts_elsewhere_than_the_checkpoint_is_noticed(config):
    stream = check(config)
    blocks = [stream.pack_shuffle_block(number) for number in range(stream.num_shuffle_blocks)]
    for start in (Position(), Position(1), Position(2)):
        batches = split_among_workers(
            blocks[start.shuffle_block :], micro_batch_size=1, rank=0, num_workers=2
        )
        rest = list(batches)
        assert list(check_start(iter(rest), start)) == rest
        for other in {Position(), Position(1), Position(2), Position(1, 1, 2)} - {start}:
            with pytest.raises(AssertionError):
                next(check_start(iter(rest), other))
