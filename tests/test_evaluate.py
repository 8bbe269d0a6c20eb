"""The drawings that `evaluate` captions, its split and model, and the run that it logs to."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from app.config import Config, load_config, override_config
from app.errors import UserError
from app.evaluation.generate import generate_outputs
from app.evaluation.scores import BASE, TUNED
from app.gemma.activation_checkpoint import apply_memory_config
from app.gemma.base_model import TINY
from app.gemma.load import (
    DTYPES,
    CaptionLoss,
    add_lora,
    autocast,
    evaluation_mode,
    load_base_model,
)
from app.jobs.evaluate import _track_evaluation, use_split
from app.jobs.evaluate_command import find_evaluated
from app.jobs.evaluation_actors import Evaluator, collect_rows, make_units
from app.jobs.held_out import read_held_out
from app.jobs.job import build_stream
from app.jobs.job_dir import SNAPSHOT, get_job_dir
from app.jobs.precision import resolve_precision
from app.jobs.trained_model import save_config
from app.tracking import check_tracking, open_run
from app.training.parallel import LocalContext
from app.training.step import compute_mean_loss
from data_pipeline.config import PrepareConfig
from data_pipeline.errors import DataError
from data_pipeline.prepare.dataset import prepare_dataset
from data_pipeline.shards import open_shards
from data_pipeline.stream.encode import PromptEncoder
from data_pipeline.stream.worker_batches import read_validation_batches
from tests.checkpoints import write_checkpoint_files
from tests.reference import jogged


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder: Path = tmp_path_factory.mktemp("evaluate")
    prepare_dataset(
        ["scenes:120:3"],
        PrepareConfig(out=str(folder / "shards"), validation_share=0.3),
        progress=False,
    )
    return load_config(
        "demo", {"data.shards": str(folder / "shards"), "train.output_dir": str(folder)}
    )


@pytest.mark.parametrize("too_long", ["drop", "truncate"])
def test_drawings_longer_than_a_sequence_are_named_and_left_out_or_cut(
    config: Config, too_long: str
) -> None:
    shards = open_shards(config.data.shards)
    records = shards.read("validation", 0, 20)
    encoder = PromptEncoder(str(TINY), config.data.system_prompt)
    lengths = {record.id: len(encoder.encode_prompt(record.svg)) for record in records}
    limit = sorted(lengths.values())[12]
    changed = override_config(
        config,
        {
            "data.sequence_tokens": limit,
            "data.too_long": too_long,
            "evaluate.max_captions": len(records),
        },
    )
    held_out = read_held_out(changed, build_stream(changed, shards))
    assert held_out.too_long == [record.id for record in records if lengths[record.id] > limit]
    assert 0 < len(held_out.too_long) < 8
    kept = [one.id for one in records if too_long == "truncate" or lengths[one.id] <= limit]
    assert [record.id for record in held_out.records] == kept
    assert len(held_out.caption_prompts) == len(held_out.instruction_prompts) == len(kept)
    assert max(map(len, held_out.prompts)) <= limit


def test_an_evaluation_logs_to_the_jobs_run_and_leaves_its_status(
    config: Config, tmp_path: Path
) -> None:
    tracked = override_config(
        config, {"tracking.uri": f"sqlite:///{tmp_path}/mlflow.db", "train.run_name": "tracked"}
    )
    check_tracking(tracked.tracking)
    job_dir = get_job_dir(tracked)
    run = open_run(tracked.tracking, run_name="tracked", job_dir=job_dir)
    run.finish("KILLED")
    with _track_evaluation(tracked, job_dir) as tracker:
        tracker.log_metrics(3, {"held_out/bleu4": 0.5})
    with pytest.raises(RuntimeError), _track_evaluation(tracked, job_dir):
        raise RuntimeError
    assert tracker.run_id == run.run_id
    stored = MlflowClient(str(tracked.tracking.uri)).get_run(str(run.run_id))
    assert stored.info.status == "KILLED"
    assert stored.data.metrics == {"held_out/bleu4": 0.5}

    # an adapter of another job, evaluated under a new name
    with _track_evaluation(tracked, f"{job_dir}-new") as created:
        created.log_metrics(3, {"held_out/bleu4": 0.5})
    assert created.run_id != run.run_id
    stored = MlflowClient(str(tracked.tracking.uri)).get_run(str(created.run_id))
    assert stored.info.status == "FINISHED"


def test_a_dataset_without_a_test_split_is_refused_in_one_sentence(config: Config) -> None:
    opened = open_shards(config.data.shards)
    shards = dataclasses.replace(opened, files={**opened.files, "test": ()})
    with pytest.raises(DataError, match="has no test split: prepare it with --test or"):
        use_split(config, shards, "test")
    assert use_split(config, shards, "validation") == (config, shards)


def test_the_test_split_takes_the_place_of_the_validation_split(config: Config) -> None:
    shards = open_shards(config.data.shards)
    with_test = dataclasses.replace(shards, files={**shards.files, "test": shards.files["train"]})
    changed, replaced = use_split(config, with_test, "test")
    assert replaced.read("validation", 0, 3) == shards.read("train", 0, 3)
    assert changed.data.max_validation_records is None


def test_the_base_model_of_an_actor_is_the_base_model_alone(config: Config, tmp_path: Path) -> None:
    config = override_config(
        resolve_precision(config),
        {
            "data.max_validation_records": 12,
            "evaluate.max_captions": 6,
            "evaluate.max_instruction_prompts": 4,
            "evaluate.max_new_tokens": 12,
            "evaluate.generation_batch_size": 3,
        },
    )
    dtype, cpu = DTYPES[config.train.precision], torch.device("cpu")
    stream = build_stream(config, open_shards(config.data.shards))
    prompts = read_held_out(config, stream).prompts

    # an adapter that changes the captions
    base_model = load_base_model(config.model, config.quantization, device=cpu, dtype=dtype)
    apply_memory_config(base_model, config.memory)
    batches = read_validation_batches(stream, micro_batch_size=2, rank=0, num_workers=1)
    loss = compute_mean_loss(CaptionLoss(base_model, dtype), batches, LocalContext(cpu))
    with evaluation_mode(base_model), autocast(cpu, dtype):
        expected = generate_outputs(
            base_model, stream.encoder, prompts, batch_size=3, max_new_tokens=12
        )
    jogged(add_lora(base_model, config.lora, seed=0)).save_pretrained(tmp_path)

    evaluator = Evaluator(config, stream, str(tmp_path))
    rows = [row for unit in make_units(config, prompts)[::-1] for row in evaluator(unit)]
    found = collect_rows(iter(rows), len(prompts))
    assert found[BASE].outputs == expected
    assert found[BASE].eval_loss == pytest.approx(loss, rel=1e-5)
    assert found[TUNED].outputs != expected
    assert abs(found[TUNED].eval_loss - loss) > 0.01
    for one in found.values():
        assert len(one.losses) + one.num_dropped == 12


def test_the_report_of_a_model_goes_to_the_folder_of_its_job(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = override_config(config, {"train.output_dir": str(tmp_path / "deleted")})
    for name in ("jobs/one/checkpoint_1", "copied"):
        folder = tmp_path / name
        write_checkpoint_files(folder, {"state": {"step": 1}})
        save_config(folder, config)
    newest = {"checkpoint_dir_name": "checkpoint_1", "metrics": {"step": 1}}
    (tmp_path / "jobs" / "one" / SNAPSHOT).write_text(
        json.dumps({"latest_checkpoint_result": newest})
    )

    # a job, or its checkpoint, although the folder of the job has moved
    for source in ("jobs/one", "jobs/one/checkpoint_1"):
        found, adapter = find_evaluated(source, None, ["evaluate.max_captions=3"])
        assert adapter == str(tmp_path / "jobs" / "one" / "checkpoint_1")
        assert get_job_dir(found) == str(tmp_path / "jobs" / "one")
        assert found.evaluate.max_captions == 3
        assert found.data == config.data

    # a checkpoint alone
    found, adapter = find_evaluated("copied", None, [])
    assert adapter == str(tmp_path / "copied")
    assert get_job_dir(found) == str(tmp_path / "outputs" / "evaluations" / "demo")
    with pytest.raises(UserError, match="--adapter x is for a config, but copied is a model"):
        find_evaluated("copied", "x", [])


def test_an_error_of_the_user_in_an_actor_is_raised_as_it_is(config: Config) -> None:
    stream = build_stream(config, open_shards(config.data.shards))
    evaluator = Evaluator(resolve_precision(config), stream, "nowhere")
    rows = evaluator(make_units(config, [])[0])
    with pytest.raises(UserError, match="nowhere is not an adapter"):
        collect_rows(rows, 0)
