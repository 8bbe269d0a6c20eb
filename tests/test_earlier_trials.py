"""Trials of earlier searches, read from a real MLflow database."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from app.errors import UserError
from app.tracking import TrackingConfig, check_tracking, open_run, read_finished_trials

# MLflow's use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


def add_search(
    config: TrackingConfig, folder: Path, trials: Mapping[str, tuple[str, list[float]]]
) -> str:
    """Record a search with a trial for each learning rate: (outcome, losses)."""
    parent = open_run(config, run_name="job", job_dir=f"{folder}/s", tags={"kind": "search"})
    parent.finish("FINISHED")
    for rate, (status, losses) in trials.items():
        tags = {"kind": "trial", "searched.optim.learning_rate": rate, "trial_state": status}
        trial = open_run(
            config,
            run_name=f"trial-{rate}",
            job_dir=f"{folder}/{rate}",
            parent_run_id=parent.run_id,
            tags=tags,
        )
        for step, loss in enumerate(losses):
            trial.log_metrics(step, {"eval/loss": loss})
        trial.finish("FINISHED")
    assert parent.run_id is not None
    return parent.run_id


def test_finished_trials_are_found_by_run_id_and_by_the_newest_run_of_a_name(
    tmp_path: Path,
) -> None:
    config = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="team/icons")
    check_tracking(config)
    first = {"0.001": ("finished", [3.0, 1.5, 2.0]), "0.1": ("pruned", [9.0])}
    first_id = add_search(config, tmp_path / "first", first)
    add_search(config, tmp_path / "second", {"0.002": ("finished", [1.0])})
    # a training job of the same name is no search
    open_run(config, run_name="job", job_dir=f"{tmp_path}/train", tags={}).finish("FINISHED")

    elsewhere = config.model_copy(update={"experiment": "another"})
    rate = "optim.learning_rate"
    assert read_finished_trials(elsewhere, first_id) == [({rate: "0.001"}, 1.5)]
    assert read_finished_trials(elsewhere, "team/icons/job") == [({rate: "0.002"}, 1.0)]

    for reference, part in (
        ("0" * 32, "is not in tracking.uri="),
        ("nothing", "is not in tracking.uri="),
        ("no/such/job", "is not in tracking.uri="),
        ("team/icons/jobs", "is not in tracking.uri="),
    ):
        with pytest.raises(UserError, match=f"search.warm_start='{reference}' {part}"):
            read_finished_trials(config, reference)

    empty = add_search(config, tmp_path / "third", {"0.3": ("failed", [1.0])})
    with pytest.raises(UserError, match="has no finished trials"):
        read_finished_trials(config, empty)


def test_a_warm_start_without_tracking_is_refused() -> None:
    with pytest.raises(UserError, match=r"needs the runs of MLflow: set tracking\.uri"):
        read_finished_trials(TrackingConfig(uri=None), "team/job")
