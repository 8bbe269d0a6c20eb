"""Prepare, train, search, resume and evaluate on S3, whose endpoint is the query of each URI."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.config import load_config, make_paths_absolute, override_config
from app.gemma.base_model import TINY
from app.jobs.cluster import ConnectedRay
from app.jobs.evaluate import evaluate_job
from app.jobs.job import build_stream
from app.jobs.job_dir import find_adapter, get_job_dir
from app.jobs.open_captioner import open_captioner
from app.jobs.train import train_job
from app.jobs.trained_model import find_model
from app.jobs.tune import tune_job
from app.storage import join_uri, read_json, write_json
from benchmarks.s3_server import S3Server, serve_s3
from data_pipeline.config import PrepareConfig
from data_pipeline.filesystem import open_filesystem
from data_pipeline.prepare.dataset import prepare_dataset
from data_pipeline.shards import open_shards
from data_pipeline.stream.cache import encode_cached
from data_pipeline.stream.encode import PromptEncoder
from tests.command_line import run_command
from tests.corpus import write_shards

MAX_OPENING_REQUESTS = 3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with serve_s3(tmp_path_factory.mktemp("s3") / "log") as running:
        running.put("bucket")
        yield running


@pytest.mark.parametrize("query", [
    "scheme=http&endpoint_override=127.0.0.1:{port}",
    "endpoint_override=http://127.0.0.1:{port}",
    "endpoint_override=http%3A%2F%2F127.0.0.1%3A{port}&region=eu",
])  # fmt: skip
def test_files_lie_below_the_path_whatever_the_query(server: S3Server, query: str) -> None:
    folder = "s3://key:secret@bucket/files/?" + query.format(port=server.port)
    file = join_uri(folder, "job", "run.json")
    assert read_json(join_uri(folder, "job", "absent.json")) is None
    for value in (1, 2):
        write_json(file, {"value": value})
        assert read_json(file) == {"value": value}
    fs, path = open_filesystem(join_uri(folder, "job"))
    assert path == "bucket/files/job"
    assert fs.get_file_info(f"{path}/run.json").is_file


def test_a_dataset_is_opened_with_the_same_few_requests_whatever_the_number_of_shards(
    server: S3Server, tmp_path: Path
) -> None:
    requests = []
    for num_records in (64, 64 * 50):
        folder = tmp_path / str(num_records)
        write_shards(folder, train=[30] * num_records)
        assert len(list(folder.glob("train-*"))) == num_records // 64
        for file in folder.iterdir():
            server.put(f"bucket/{num_records}/{file.name}", file.read_bytes())

        before = len(server.list_requests())
        shards = open_shards(server.make_uri(f"bucket/{num_records}"))
        requests.append(len(server.list_requests()) - before)
        assert shards.files == open_shards(str(folder)).files
    assert requests[0] == requests[1] <= MAX_OPENING_REQUESTS


def test_cached_tokens_are_found_on_s3(server: S3Server) -> None:
    encoder, folder = PromptEncoder(str(TINY), "Look:"), server.make_uri("bucket/cache")
    encode_cached(encoder, [("<svg/>", "a box")], folder)
    before = len(server.list_requests())
    (example,) = encode_cached(encoder, [("<svg/>", "a box")], folder)
    np.testing.assert_array_equal(example.input_ids, encoder.encode("<svg/>", "a box").input_ids)
    assert {request.split()[0] for request in server.list_requests()[before:]} == {"HEAD", "GET"}


@pytest.fixture(scope="module")
def settings(server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a short job on prepared shards, all on S3 except for the MLflow database."""
    shards_uri, jobs_uri = server.make_uri("bucket/shards"), server.make_uri("bucket/jobs")
    prepare_dataset(
        ["scenes:150"], PrepareConfig(out=shards_uri, validation_share=0.1), progress=False
    )
    database = tmp_path_factory.mktemp("tracking") / "mlflow.db"
    return {
        "data.shards": shards_uri, "data.sequence_tokens": 256, "data.shuffle_block_examples": 16,
        "train.output_dir": jobs_uri, "train.run_name": "on-s3",
        "train.max_steps": 2, "train.save_steps": 2, "train.eval_steps": 2,
        "train.precision": "fp32", "train.micro_batch_size": 1, "scaling.num_workers": 1,
        "data.max_validation_records": 4, "tracking.uri": f"sqlite:///{database}",
        "evaluate.max_captions": 2, "evaluate.max_new_tokens": 4,
    }  # fmt: skip


def test_a_job_is_trained_continued_and_evaluated_on_s3(
    server: S3Server, ray_local: ConnectedRay, settings: dict[str, Any]
) -> None:
    config = make_paths_absolute(load_config("demo", {**settings, "data.ledger": True}))
    shards = open_shards(config.data.shards)
    assert train_job(config, shards).metrics["step"] == 2

    # continue the job
    before = len(server.list_requests())
    result = train_job(override_config(config, {"train.max_steps": 4}), shards)
    assert result.metrics["step"] == 4
    requests = server.list_requests()
    assert not any("dataset.json" in request for request in requests[before:])  # opened once

    # evaluation finds the adapter and reads the held-out drawings
    adapter = find_adapter(config)
    assert adapter == result.adapter
    fs, path = open_filesystem(adapter)
    with fs.open_input_file(f"{path}/adapter_model.safetensors") as file:
        assert file.size() > 0
    assert len(build_stream(config, shards).shards.read("validation", 0, 4)) == 4

    # all files lie in the folder of the job
    job_dir = get_job_dir(config)
    assert re.fullmatch(r"s3://key:secret@bucket/jobs/on-s3\?scheme=http&.*", job_dir)
    written = {request.split()[1] for request in requests if request.startswith("PUT /bucket/jobs")}
    assert {name.split("/")[3] for name in written if name.count("/") > 3} == {"on-s3"}
    assert any("/ledger/" in name for name in written)
    assert math.isfinite(result.metrics["eval_loss"])

    # evaluate on S3: report and gallery lie in the folder of the job
    report = evaluate_job(config, shards, adapter)
    assert report["metrics"]["eval_loss"]["n"] == 4
    assert (read_json(join_uri(job_dir, "evaluation.json")) or {})["metrics"] == report["metrics"]


def test_a_search_that_was_interrupted_continues_on_s3_and_its_winner_captions(
    ray_local: ConnectedRay, settings: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    rates = [1e-3, 2e-3]
    searched = {
        **settings, "train.run_name": "search", "search.num_trials": 2, "search.trial_steps": 6,
        "search.space": {"optim.learning_rate": {"choice": rates}}, "search.scheduler": "none",
        "search.points": [{"optim.learning_rate": rate} for rate in rates],
        "search.max_concurrent": 1, "search.max_total_steps": 10,
    }  # fmt: skip
    config = make_paths_absolute(load_config("demo", searched))
    job_dir, shards = get_job_dir(config), open_shards(config.data.shards)

    # the budget ends the second trial at step 4, after its checkpoint of step 2
    found = tune_job(config, shards)
    assert [(one.state, one.step) for one in found.result.trials] == [
        ("finished", 6), ("interrupted", 4)
    ]  # fmt: skip
    capfd.readouterr()

    # continue it
    found = tune_job(override_config(config, {"search.max_total_steps": None}), shards)
    assert [(one.state, one.step) for one in found.result.trials] == [("finished", 6)] * 2
    printed = capfd.readouterr().out
    assert "1 of 2 trials have ended" in printed
    assert "step 6: evaluation loss" in printed
    assert "step 0: evaluation loss" not in printed  # it went on from its checkpoint

    # best.yaml and the winner
    best = found.result.best.overrides["optim.learning_rate"]
    shown = run_command("config", "show", found.best_config, "train.max_steps=7")
    assert f"learning_rate: {best}\n" in shown.stdout
    assert "max_steps: 7\n" in shown.stdout
    assert found.best_checkpoint is not None
    assert found.best_checkpoint.startswith(join_uri(job_dir, "tune").partition("?")[0])
    model = find_model(found.best_checkpoint)
    assert model.step == 6
    (caption,) = open_captioner(model.config, model.adapter).caption(["<svg/>"])
    assert caption
