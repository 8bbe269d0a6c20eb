"""Jobs on a real Ray: killed workers, resuming, other numbers of workers, evaluation, a search."""

import csv
import hashlib
import json
import os
import shutil
import signal
import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
import torch
from mlflow import MlflowClient
from peft import LoraConfig, get_peft_model
from ray.util.state import list_actors
from safetensors.torch import load_file, save_file
from transformers import Gemma2ForCausalLM

from app.config import load_config, make_paths_absolute, override_config
from app.errors import UserError
from app.gemma.base_model import TINY, hash_weights
from app.gemma.config import ModelConfig, QuantizationConfig
from app.jobs.evaluate import evaluate_job
from app.jobs.job_dir import SNAPSHOT, find_adapter, get_job_dir
from app.jobs.materials import describe_code, list_materials
from app.jobs.precision import resolve_precision
from app.jobs.quantize import quantize_model
from app.jobs.train import train_job
from app.jobs.trained_model import find_model
from app.jobs.tune import tune_job
from app.storage import read_json
from app.tracking import check_tracking
from data_pipeline.config import PrepareConfig
from data_pipeline.prepare.dataset import prepare_dataset
from data_pipeline.shards import open_shards
from data_pipeline.stream.encode import PromptEncoder

STEPS = 12


@pytest.fixture(scope="module")
def config(ray_local, tmp_path_factory):
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "refused.jsonl").write_text('{"svg": "<svg", "caption": "cut off"}\n')
    prepare_dataset(
        ["scenes:400:7:list", str(folder / "refused.jsonl")],
        PrepareConfig(out=str(folder / "shards"), validation_share=0.1, test_share=0),
        progress=False,
    )
    made = make_paths_absolute(
        load_config(
            "demo",
            {
                "data.shards": str(folder / "shards"),
                "data.sequence_tokens": 256,
                "data.shuffle_block_examples": 32,
                "data.max_validation_records": 16,
                "train.output_dir": str(folder),
                "train.max_steps": STEPS,
                "train.eval_steps": 4,
                "train.save_steps": 4,
                "train.micro_batch_size": 1,
                "optim.learning_rate": 2e-3,
                "lora.dropout": 0.1,
                "tracking.uri": f"sqlite:///{folder}/mlflow.db",
                "evaluate.max_captions": 6,
                "evaluate.max_new_tokens": 12,
                "evaluate.max_gallery_items": 4,
                "evaluate.fields": {"colour": ["red", "green", "blue"]},
                "search.trial_steps": 6,
            },
        )
    )
    check_tracking(made.tracking)
    return resolve_precision(made)


def job(config, name, **changes):
    return override_config(
        config,
        {
            "train.run_name": name,
            **{key.replace("__", "."): value for key, value in changes.items()},
        },
    )


def train_opened(config):
    return train_job(config, open_shards(config.data.shards))


def evaluate_opened(config):
    return evaluate_job(config, open_shards(config.data.shards), find_adapter(config))


def history(config, run_id, metric):
    client = MlflowClient(config.tracking.uri)
    return sorted((point.step, point.value) for point in client.get_metric_history(run_id, metric))


@pytest.fixture(scope="module")
def uninterrupted(config):
    """One worker that accumulates two micro-batches."""
    return train_opened(
        job(config, "one", scaling__num_workers=1, train__gradient_accumulation_steps=2)
    )


def kill_a_worker_after_the_first_checkpoint(
    folder: Path, killed: list[int], stop: threading.Event
):
    """SIGKILL to one of the training workers, as soon as Ray Train has registered a checkpoint."""
    while not stop.wait(0.1):
        try:
            snapshot = read_json(str(folder / SNAPSHOT)) or {}
        except UserError:  # Ray Train is writing it
            continue
        if not snapshot.get("latest_checkpoint_result"):
            continue
        workers = [
            actor
            for actor in list_actors(filters=[("state", "=", "ALIVE")])
            if actor.class_name == "RayTrainWorker"
        ]
        if workers:
            os.kill(workers[0].pid, signal.SIGKILL)
            killed.append(workers[0].pid)
            return


def train_and_kill_a_worker(config):
    killed: list[int] = []
    stop = threading.Event()
    killer = threading.Thread(
        target=kill_a_worker_after_the_first_checkpoint,
        args=(Path(get_job_dir(config)), killed, stop),
    )
    killer.start()
    try:
        trained = train_opened(config)
    finally:
        stop.set()
        killer.join()
    assert len(killed) == 1, "the failure was never injected"
    return trained


def ledger_of(config):
    """[(epoch, step, rank, record id)]"""
    table = pq.read_table(Path(get_job_dir(config), "ledger"))
    return [(row["epoch"], row["step"], row["rank"], row["record_id"]) for row in table.to_pylist()]


def test_one_worker_that_is_killed_has_the_losses_of_one_that_is_not_bit_for_bit(
    config, uninterrupted
):
    killed = job(
        config,
        "again",
        scaling__num_workers=1,
        train__gradient_accumulation_steps=2,
        data__ledger=True,
        evaluate__probes=2,
        evaluate__watch_captions=3,
    )
    again = train_and_kill_a_worker(killed)
    losses = history(config, uninterrupted.run_id, "train/loss")
    assert [step for step, _ in losses] == list(range(1, STEPS + 1))
    assert history(config, again.run_id, "train/loss") == losses
    assert history(config, again.run_id, "eval/loss") == history(
        config, uninterrupted.run_id, "eval/loss"
    )
    entries = ledger_of(killed)
    assert {step for _, step, _, _ in entries} == set(range(1, STEPS + 1))
    assert (
        len({(epoch, record_id) for epoch, _, _, record_id in entries})
        == len(entries)
        == again.metrics["num_examples"]
    )

    # looking at the model at each evaluation changed no loss
    client = MlflowClient(config.tracking.uri)
    for metric in ("probe/attention_entropy", "probe/layer_03/score_gradient_lost"):
        points = history(config, again.run_id, metric)
        assert [step for step, _ in points] == [0, 4, 8, 12], metric
        assert len({value for _, value in points}) == 4
    captions = client.list_artifacts(again.run_id, "captions")
    maps = client.list_artifacts(again.run_id, "probes")
    assert [file.path for file in captions] == [f"captions/step-{n:06d}.csv" for n in (0, 4, 8, 12)]
    assert [file.path for file in maps] == [f"probes/step-{n:06d}.svg" for n in (0, 4, 8, 12)]
    newest = Path(client.download_artifacts(again.run_id, captions[-1].path))
    table = list(csv.DictReader(newest.read_text().splitlines()))
    shown = open_shards(config.data.shards).read("validation", 0, 3)
    assert [(row["id"], row["reference"]) for row in table] == [(r.id, r.caption) for r in shown]
    assert all(row["caption"] for row in table)
    # the best checkpoint names its materials, with the ledger up to its step
    materials = list_materials(Path(again.adapter))
    files = sorted(Path(get_job_dir(killed), "ledger").glob("*.parquet"))
    until = [file for file in files if int(file.name[:8]) <= again.metrics["best_step"]]
    sums = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in until]
    assert materials["ledger.sha256"] == hashlib.sha256("".join(sums).encode()).hexdigest()
    assert materials["data.digest"] == open_shards(config.data.shards).digest
    assert (materials["run_id"], materials["code"]) == (again.run_id, describe_code())
    for output in client.get_run(again.run_id).outputs.model_outputs:
        params = client.get_logged_model(output.model_id).params
        assert params["base.sha256"] == materials["base.sha256"]
        if output.step == again.metrics["best_step"]:
            assert params == {name: str(value) for name, value in materials.items()}


def test_two_workers_of_which_one_is_killed_train_as_one_that_is_not(config, uninterrupted):
    two = job(config, "two", scaling__num_workers=2, data__ledger=True)
    trained = train_and_kill_a_worker(two)
    theirs = dict(history(config, uninterrupted.run_id, "eval/loss"))
    ours = dict(history(config, trained.run_id, "eval/loss"))
    assert sorted(ours) == sorted(theirs) == [0, 4, 8, 12]
    assert ours == pytest.approx(theirs, rel=1e-3)
    losses = history(config, trained.run_id, "train/loss")
    assert [step for step, _ in losses] == list(range(1, STEPS + 1)), "a step is missing or doubled"
    assert dict(losses) == pytest.approx(
        dict(history(config, uninterrupted.run_id, "train/loss")), rel=5e-3
    )
    assert trained.metrics["num_examples"] == uninterrupted.metrics["num_examples"]
    entries = ledger_of(two)
    assert {(step, rank) for _, step, rank, _ in entries} == {
        (n, rank) for n in range(1, STEPS + 1) for rank in (0, 1)
    }
    assert (
        len({(epoch, record_id) for epoch, _, _, record_id in entries})
        == len(entries)
        == trained.metrics["num_examples"]
    )
    assert MlflowClient(config.tracking.uri).get_run(trained.run_id).info.status == "FINISHED"


def save_plain_peft_adapter(config, folder):
    """Train an adapter with transformers and PEFT alone; return its validation loss."""
    shards = open_shards(config.data.shards)
    encoder = PromptEncoder(str(TINY), config.data.system_prompt)
    records = shards.read("validation", 0, config.data.max_validation_records)
    examples = [encoder.encode(record.svg, record.caption) for record in records]
    torch.manual_seed(0)
    base = Gemma2ForCausalLM.from_pretrained(TINY, attn_implementation="eager", dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=5e-3)

    def loss_of(examples):
        total, count = torch.zeros(()), 0
        for example in examples:
            logits = model(input_ids=torch.tensor(example.input_ids)[None], use_cache=False).logits
            targets = torch.tensor(example.targets).long()
            total += torch.nn.functional.cross_entropy(logits[0], targets, reduction="sum")
            count += int((targets != -100).sum())
        return total / count

    before = loss_of(examples).item()
    for _ in range(3):
        loss_of(examples[:4]).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    after = loss_of(examples).item()
    assert after < before - 0.1
    return after


def test_a_job_starts_from_an_adapter_of_plain_peft_with_the_loss_it_had(config, tmp_path):
    its_loss = save_plain_peft_adapter(config, tmp_path / "adapter")
    started = job(
        config,
        "from-peft",
        quantization__kind="none",
        lora__init_from=str(tmp_path / "adapter"),
        lora__rank=4,
        lora__alpha=8,
        lora__target_modules=["q_proj", "v_proj"],
        lora__train_embeddings=False,
        train__max_steps=2,
        train__eval_steps=2,
        train__save_steps=2,
    )
    trained = train_opened(started)
    losses = dict(history(config, trained.run_id, "eval/loss"))
    assert losses[0] == pytest.approx(its_loss, rel=1e-5)
    assert losses[2] < losses[0]
    tags = MlflowClient(config.tracking.uri).get_run(trained.run_id).data.tags
    assert tags["init_from"] == str(tmp_path / "adapter")
    assert len(tags["init_from.sha256"]) == 64

    # its own checkpoint comes first, even if the adapter is gone
    shutil.rmtree(tmp_path / "adapter")
    train_opened(override_config(started, {"train.max_steps": 4}))
    continued = history(config, trained.run_id, "eval/loss")
    assert [step for step, _ in continued] == [0, 2, 4]
    assert dict(continued)[2] == losses[2]


def test_a_job_that_goes_on_with_other_workers_trains_on_every_example_once_per_epoch(
    config, tmp_path
):
    records = open_shards(config.data.shards).read("train", 0, 50)
    encoder = PromptEncoder(str(TINY), config.data.system_prompt)
    lengths = [len(encoder.encode(one.svg, one.caption).input_ids) for one in records]
    limit = sorted(set(lengths))[-2]  # longer ones are truncated, and no less trained on
    changes = {
        "train__num_epochs": 2,
        "train__eval_steps": 100,
        "train__save_steps": 100,
        "data__max_train_records": len(records),
        "data__sequence_tokens": limit,
        "data__too_long": "truncate",
        "data__ledger": True,
        "data__cache_dir": str(tmp_path),
        "evaluate__probes": 1,
    }
    for num_workers, strategy, max_steps in ((2, "fsdp", 4), (3, "zero2", 8), (1, "ddp", None)):
        part = job(
            config,
            "rescaled",
            **changes,
            scaling__num_workers=num_workers,
            parallel__strategy=strategy,
            train__max_steps=max_steps,
        )
        trained = train_opened(part)
    entries = ledger_of(part)
    assert sorted((epoch, record_id) for epoch, _, _, record_id in entries) == sorted(
        (epoch, record.id) for epoch in (0, 1) for record in records
    )
    spans = ((1, 4), (5, 8), (9, trained.metrics["step"]))
    ranks = [
        {rank for _, step, rank, _ in entries if first <= step <= last} for first, last in spans
    ]
    assert ranks == [{0, 1}, {0, 1, 2}, {0}]
    counts = {
        name: trained.metrics[f"num_{name}"]
        for name in ("examples", "dropped", "truncated", "validation_dropped")
    }
    num_truncated = 2 * sum(length > limit for length in lengths)
    assert counts == {
        "examples": 100,
        "dropped": 0,
        "truncated": num_truncated,
        "validation_dropped": 0,
    }
    steps = [step for step, _ in history(config, trained.run_id, "train/loss")]
    assert steps == list(range(1, trained.metrics["step"] + 1))
    entropies = history(config, trained.run_id, "probe/attention_entropy")
    assert [step for step, _ in entropies] == [0, 4, 8, trained.metrics["step"]]
    # two shuffle blocks, read again in the second epoch, and the validation split
    assert len(list(tmp_path.glob("*.tokens"))) == 3


def test_the_same_name_continues_the_job_in_the_same_run(config, uninterrupted):
    longer = job(
        config,
        "one",
        scaling__num_workers=1,
        train__gradient_accumulation_steps=2,
        train__max_steps=STEPS + 4,
    )
    continued = train_opened(longer)
    assert continued.run_id == uninterrupted.run_id
    steps = [step for step, _ in history(config, continued.run_id, "train/loss")]
    assert steps == list(range(1, STEPS + 5))


def test_the_best_checkpoint_is_restored_and_linked_to_its_step(config, uninterrupted):
    evaluations = dict(history(config, uninterrupted.run_id, "eval/loss"))
    best = min(value for step, value in evaluations.items() if 0 < step <= STEPS)
    assert uninterrupted.metrics["eval_loss"] == pytest.approx(best, rel=1e-6)
    best_step = min(evaluations, key=lambda step: evaluations[step])  # the job may have gone on
    client = MlflowClient(config.tracking.uri)
    run = client.get_run(uninterrupted.run_id)
    linked = {output.step for output in run.outputs.model_outputs}
    assert {4, 8, 12} <= linked
    found = find_model(get_job_dir(job(config, "one")))
    assert (found.step, found.config.train.run_name) == (best_step, "one")
    assert run.data.params["lora.rank"] == "16"
    assert {dataset.dataset.name for dataset in run.inputs.dataset_inputs} == {
        "train",
        "validation",
    }
    counted = {
        name: value
        for name, value in run.data.metrics.items()
        if name.startswith("prepare/quarantined")
    }
    assert counted == {"prepare/quarantined": 1, "prepare/quarantined/not_xml": 1}


def test_evaluation_writes_a_gallery_and_figures_beside_their_baselines(config, uninterrupted):
    report = evaluate_opened(job(config, "one"))
    for name in (
        "eval_loss_before",
        "eval_loss_after",
        "bleu4_before",
        "bleu4_after",
        "bleu4_constant",
        "colour_accuracy",
    ):
        assert isinstance(report[name], float), name
    result = json.loads(Path(get_job_dir(job(config, "one")), "result.json").read_text())
    assert report["eval_loss_after"] == pytest.approx(result["eval_loss"], abs=2e-3)
    assert report["eval_loss_before"] > report["eval_loss_after"]
    assert Path(report["gallery"]).read_text().count("<article>") == 4
    run = MlflowClient(config.tracking.uri).get_run(uninterrupted.run_id)
    assert run.data.metrics["held_out/bleu4_constant"] == pytest.approx(report["bleu4_constant"])
    assert run.info.status == "FINISHED"


def test_an_evaluation_without_a_trained_adapter_says_so(config):
    with pytest.raises(UserError, match="holds no trained adapter: run `train`"):
        evaluate_opened(job(config, "never"))


def test_a_checkpoint_of_one_base_is_neither_continued_nor_judged_on_another(
    config, uninterrupted, tmp_path
):
    quantize_model(ModelConfig(name="tiny"), QuantizationConfig(), tmp_path / "tiny4")
    other = job(
        config,
        "one",
        model__name=str(tmp_path / "tiny4"),
        scaling__num_workers=1,
        train__max_steps=40,
    )
    pin = r"\(nf4, double; sha256"
    message = rf"trained on the base (model )?tiny {pin} .*not on {tmp_path}/tiny4 {pin}"
    for run in (train_opened, evaluate_opened):
        with pytest.raises(UserError, match=message) as error:
            run(other)
        assert "\n" not in str(error.value)
        assert not any("StreamingExecutor" in thread.name for thread in threading.enumerate())
    run = MlflowClient(config.tracking.uri).get_run(uninterrupted.run_id)
    assert run.data.tags["base.sha256"] == hash_weights(config.model)


def test_a_loss_that_diverges_ends_the_job_once_with_a_sentence_and_a_failed_run(config):
    """A checkpoint whose weights have become NaN is continued."""
    train_opened(job(config, "wild", scaling__num_workers=1, train__max_steps=4))
    files = list(
        Path(get_job_dir(job(config, "wild"))).glob("checkpoint_*/adapter_model.safetensors")
    )
    assert files
    for file in files:
        save_file(
            {name: torch.full_like(value, torch.nan) for name, value in load_file(file).items()},
            file,
        )
    with pytest.raises(UserError, match=r"step 5: loss nan.*lower optim\.learning_rate"):
        train_opened(job(config, "wild", scaling__num_workers=1, train__max_steps=8))
    run = MlflowClient(config.tracking.uri).search_runs(
        [
            MlflowClient(config.tracking.uri)
            .get_experiment_by_name(config.tracking.experiment)
            .experiment_id
        ],
        "attributes.run_name = 'wild'",
    )
    assert [found.info.status for found in run] == ["FAILED"]


def test_a_search_is_a_parent_run_with_a_true_status_for_every_trial(config):
    searching = job(
        config,
        "search",
        search__num_trials=3,
        search__max_concurrent=1,
        search__grace_steps=2,
        train__eval_steps=2,
        train__save_steps=2,
        search__space={"optim.learning_rate": {"choice": [3e-3, 1e-7]}},
    )
    searched = tune_job(searching, open_shards(searching.data.shards))
    client = MlflowClient(config.tracking.uri)
    parent = client.get_run(searched.run_id)
    assert parent.info.status == "FINISHED"
    children = [client.get_run(run_id) for run_id in searched.trial_run_ids]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {searched.run_id}
    expected = {"finished": "FINISHED", "pruned": "KILLED"}
    for trial, run in zip(searched.result.trials, children, strict=True):
        assert run.info.status == expected[trial.state]
        assert run.data.tags["trial_state"] == trial.state
    assert (
        load_config(searched.best_config).optim.learning_rate
        == searched.result.best.overrides["optim.learning_rate"]
    )
    assert ray.available_resources().get("CPU", 0) > 0
