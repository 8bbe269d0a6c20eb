"""The drawings that `evaluate` captions, and the run that it logs to."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from app.config import Config, load_config, override_config
from app.gemma.base_model import TINY
from app.jobs.evaluate import _read_held_out, _track_evaluation
from app.jobs.job import build_stream
from app.jobs.job_dir import get_job_dir
from app.tracking import check_tracking, open_run
from data_pipeline.config import PrepareConfig
from data_pipeline.prepare.dataset import prepare_dataset
from data_pipeline.shards import open_shards
from data_pipeline.stream.encode import PromptEncoder


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
    captioned, named = _read_held_out(changed, build_stream(changed, shards))
    assert named == [record.id for record in records if lengths[record.id] > limit]
    assert 0 < len(named) < 8
    kept = [one.id for one in records if too_long == "truncate" or lengths[one.id] <= limit]
    assert [record.id for record in captioned] == kept


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
