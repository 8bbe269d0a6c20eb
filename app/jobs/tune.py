"""A search as one MLflow run with a child per trial. Composes `tune` with the training driver."""

from dataclasses import dataclass
from typing import Any

from app.config import Config, config_to_yaml, flatten_config, override_config
from app.jobs.job import get_job_dir, track_run
from app.jobs.train import train_trial
from app.storage import join_uri, write_text
from app.tracking import Status, Tracker, open_run
from data_pipeline.shards import Shards, open_shards
from tune.search import SearchResult, TrialOutcome, run_search

STATUS: dict[str, Status] = {
    "completed": "FINISHED",
    "pruned": "KILLED",
    "interrupted": "KILLED",
    "failed": "FAILED",
}


@dataclass(frozen=True)
class TuneResult:
    """What a search leaves."""

    result: SearchResult
    best_config: str
    """File with the best trial's config, ready for `train`."""
    run_id: str | None
    """The parent run on MLflow."""
    trial_run_ids: tuple[str, ...]


def tune_job(config: Config, shards: Shards) -> TuneResult:
    """Search over `search.space`, each trial a child of one MLflow run. Needs a connected Ray."""
    folder = get_job_dir(config)
    with track_run(config, folder, {"kind": "search"}) as parent:
        parent.log_params(flatten_config(config))
        run_ids: list[str] = []
        result = _search(config, shards, folder, parent, run_ids)
        best = override_config(
            config, {**result.best.overrides, "train.run_name": f"{config.train.run_name}-best"}
        )
        best_file = join_uri(folder, "best.yaml")
        write_text(best_file, config_to_yaml(best))
        parent.log_text(config_to_yaml(best), "best.yaml")
        parent.log_metrics(
            result.best.step, {"search/best_eval_loss": float(result.best.eval_loss or 0.0)}
        )
        parent.set_tags({"best_trial": result.best.trial_id})
        return TuneResult(result, best_file, parent.run_id, tuple(run_ids))


def _search(
    config: Config, shards: Shards, folder: str, parent: Tracker, run_ids: list[str]
) -> SearchResult:
    trial_steps = config.search.trial_steps or config.train.max_steps
    assert trial_steps is not None  # Config's validator
    parent_run_id = parent.run_id

    workers = config.search.workers_per_trial
    accumulation = max(
        1, config.train.gradient_accumulation_steps * config.scaling.num_workers // workers
    )

    def trial_config(overrides: dict[str, Any], trial_id: str) -> Config:
        own = {
            "scaling.num_workers": workers,
            "train.gradient_accumulation_steps": accumulation,
            "train.run_name": f"trial-{trial_id}",
            "train.output_dir": join_uri(folder, "trials"),
            "train.max_steps": trial_steps,
            "train.save_steps": None,
        }
        return override_config(config, {**overrides, **own})

    def shards_of(trial: Config) -> Shards:
        same = trial.data.shards == shards.folder
        return shards if same else open_shards(trial.data.shards)

    def run_trial(overrides: dict[str, Any], trial_id: str) -> dict[str, Any]:
        tags = {
            "kind": "trial",
            **{f"searched.{path}": str(value) for path, value in overrides.items()},
        }
        trial = trial_config(overrides, trial_id)
        return train_trial(trial, shards_of(trial), parent_run_id=parent_run_id, tags=tags)

    def on_trial_end(outcome: TrialOutcome) -> None:
        """Only here is it known how a trial ended; one that Tune stopped can't say it itself."""
        trial = trial_config(outcome.overrides, outcome.trial_id)
        tracker = open_run(
            trial.tracking,
            run_name=trial.train.run_name,
            job_dir=get_job_dir(trial),
            parent_run_id=parent_run_id,
        )
        tracker.set_tags(
            {"trial_status": outcome.status, "pruned": str(outcome.status == "pruned").lower()}
        )
        tracker.finish(STATUS[outcome.status])
        if tracker.run_id is not None:
            run_ids.append(tracker.run_id)

    return run_search(
        config.search,
        run_trial,
        name="tune",
        storage_path=folder,
        trial_steps=trial_steps,
        on_trial_end=on_trial_end,
    )
