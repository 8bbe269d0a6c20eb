"""One search: an MLflow run with a child run per trial. Combines `tune.search` with `train`."""

import sys
from dataclasses import dataclass
from typing import Any

from app.config import Config, config_to_yaml, flatten_config, override_config
from app.jobs.check import check_job, describe_length
from app.jobs.initial_adapter import require_one_adapter
from app.jobs.job import track_run
from app.jobs.job_dir import get_job_dir
from app.jobs.lease import hold_lease
from app.jobs.search_facts import find_trial_facts
from app.jobs.stop import kill_private_ray
from app.jobs.train import train_trial
from app.storage import join_uri, write_text
from app.tracking import Status, kill_running_children, open_run
from data_pipeline.filesystem import open_filesystem
from data_pipeline.masking import mask_secrets
from data_pipeline.shards import Shards, open_shards
from tune.outcome import SearchResult, TrialOutcome
from tune.search import run_search

MLFLOW_STATUS: dict[str, Status] = {
    "completed": "FINISHED",
    "pruned": "KILLED",
    "interrupted": "KILLED",
    "failed": "FAILED",
}
"""MLflow status of a trial's run, by the outcome of the trial."""


@dataclass(frozen=True)
class TuneResult:
    """Result of a finished search."""

    result: SearchResult
    best_config: str
    """File with the best trial's config, ready for `train`."""
    run_id: str | None
    """The parent run on MLflow."""
    trial_run_ids: tuple[str, ...]

    def describe(self) -> dict[str, Any]:
        """Return the best trial and the files of the search, for JSON."""
        best = self.result.best
        return {
            "best": best.overrides,
            "eval_loss": best.eval_loss,
            "config": self.best_config,
            "trials": len(self.result.trials),
            "ended_by": self.result.ended_by,
            "run_id": self.run_id,
        }


def tune_job(config: Config, shards: Shards) -> TuneResult:
    """Search over `search.space`; each trial is a child of one MLflow run. Needs a connected Ray.

    Write the best trial's config to best.yaml in the job's folder, and log it to MLflow. Raises
    UserError if the search varies the shape of the adapter that `lora.init_from` names.
    """
    require_one_adapter(config)
    job_dir = get_job_dir(config)
    with hold_lease(job_dir), track_run(config, job_dir, {"kind": "search"}) as parent:
        # search
        trial = _trial_config(config, job_dir, {}, "0")
        print(f"each trial: {describe_length(trial, check_job(config, shards))}", file=sys.stderr)
        parent.log_params(flatten_config(config))
        result, run_ids = _search(config, shards, job_dir, parent.run_id)

        # write the best config
        best = result.best
        overrides = {**best.overrides, "train.run_name": f"{config.train.run_name}-best"}
        best_yaml = config_to_yaml(override_config(config, overrides))
        masked_yaml = mask_secrets(best_yaml)
        if masked_yaml != best_yaml:
            print("best.yaml has *** instead of credentials: give them as overrides", flush=True)
        best_file = join_uri(job_dir, "best.yaml")
        write_text(best_file, masked_yaml)

        # log
        parent.log_text(masked_yaml, "best.yaml")
        parent.log_metrics(best.step, {"search/best_eval_loss": float(best.eval_loss or 0.0)})
        parent.set_tags({"best_trial": best.trial_id})
        return TuneResult(result, best_file, parent.run_id, tuple(run_ids))


def _trial_config(config: Config, job_dir: str, overrides: dict[str, Any], trial_id: str) -> Config:
    """Return the config of one trial.

    Gradient accumulation keeps the job's global batch. Its steps are rounded down, at least 1.
    """
    num_workers = config.search.workers_per_trial
    micro_batches = config.train.gradient_accumulation_steps * config.scaling.num_workers
    own = {
        "scaling.num_workers": num_workers,
        "train.gradient_accumulation_steps": max(1, micro_batches // num_workers),
        "train.run_name": f"trial-{trial_id}",
        "train.output_dir": join_uri(job_dir, "trials"),
        "train.max_steps": _get_trial_steps(config),
        "train.save_steps": None,
    }
    return override_config(config, {**overrides, **own})


def _get_trial_steps(config: Config) -> int:
    trial_steps = config.search.trial_steps or config.train.max_steps
    assert trial_steps is not None  # Config's validator
    return trial_steps


def _search(
    config: Config, shards: Shards, job_dir: str, parent_run_id: str | None
) -> tuple[SearchResult, list[str]]:
    """Run the search. Return its result and the MLflow run ids of the trials."""
    run_ids: list[str] = []

    def run_trial(overrides: dict[str, Any], trial_id: str) -> dict[str, Any]:
        tags = {
            "kind": "trial",
            **{f"searched.{path}": str(value) for path, value in overrides.items()},
        }
        trial = _trial_config(config, job_dir, overrides, trial_id)
        is_same = trial.data.shards == shards.folder
        trial_shards = shards if is_same else open_shards(trial.data.shards)
        return train_trial(trial, trial_shards, parent_run_id=parent_run_id, tags=tags)

    def on_trial_end(outcome: TrialOutcome) -> None:
        """Set the true status of the trial's run, which a trial stopped by Tune cannot set."""
        if outcome.status == "interrupted" and outcome.error is None:  # by the user
            kill_private_ray()  # before kill_running_children: a starting trial opens its run
            return
        trial = _trial_config(config, job_dir, outcome.overrides, outcome.trial_id)
        tracker = open_run(
            trial.tracking,
            run_name=trial.train.run_name,
            job_dir=get_job_dir(trial),
            parent_run_id=parent_run_id,
        )
        is_pruned = str(outcome.status == "pruned").lower()
        tracker.set_tags({"trial_status": outcome.status, "pruned": is_pruned})
        tracker.finish(MLFLOW_STATUS[outcome.status])
        if tracker.run_id is not None:
            run_ids.append(tracker.run_id)

    filesystem, path = open_filesystem(job_dir)  # Ray would cut the query off a URI
    try:
        result = run_search(
            config.search,
            run_trial,
            name="tune",
            storage_path=path,
            filesystem=filesystem,
            trial_steps=_get_trial_steps(config),
            on_trial_end=on_trial_end,
            facts=find_trial_facts(config, _get_trial_steps(config)),
        )
    except KeyboardInterrupt:
        tags = {"trial_status": "interrupted", "pruned": "false"}
        kill_running_children(config.tracking, parent_run_id, tags)
        raise
    return result, run_ids
