"""Trials of a search: the config, the folder and the MLflow run of each, and nested trials."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from app.config import Config, override_config
from app.errors import UserError
from app.jobs.campaign_report import get_run_name
from app.jobs.job_dir import read_job_file
from app.jobs.run_tags import NOTE, describe_job
from app.jobs.train import train_trial
from app.storage import join_uri
from app.tracking import Tracker, open_run
from data_pipeline.shards import Shards, open_shards


@dataclass(frozen=True)
class Campaign:
    """A search, as the processes of its trials need it."""

    config: Config
    shards: Shards
    job_dir: str
    """Folder or URI of the search."""
    parent_run_id: str | None
    """MLflow run of the search; None if nothing is tracked."""
    source: Mapping[str, str] = field(default_factory=dict)
    """Tags about the command that runs the search."""

    def make_config(self, overrides: Mapping[str, Any], trial_id: str) -> Config:
        """Return the config of one trial.

        Gradient accumulation keeps the job's global batch. Its steps are rounded down, at least 1.
        Raises UserError if the values do not fit together.
        """
        config = self.config
        num_workers = config.search.workers_per_trial
        micro_batches = config.train.gradient_accumulation_steps * config.scaling.num_workers
        own = {
            "scaling.num_workers": num_workers,
            "train.gradient_accumulation_steps": max(1, micro_batches // num_workers),
            "train.run_name": get_run_name(trial_id),
            "train.output_dir": join_uri(self.job_dir, "trials"),
            "train.max_steps": get_trial_steps(config),
            # A trial of several workers continues from a checkpoint of Ray Train. Tune saves the
            # others.
            "train.save_steps": config.train.eval_steps if num_workers > 1 else None,
            "train.save_total_limit": 1,
        }
        return override_config(config, {**overrides, **own})

    def open_shards(self, trial: Config) -> Shards:
        """Return the shards of a trial's config."""
        is_same = trial.data.shards == self.shards.folder
        return self.shards if is_same else open_shards(trial.data.shards)

    def open_run(self, overrides: Mapping[str, Any], trial_id: str) -> Tracker:
        """Open or continue the MLflow run of a trial."""
        return open_run(
            self.config.tracking,
            run_name=get_run_name(trial_id),
            job_dir=join_uri(self.job_dir, "trials", get_run_name(trial_id)),
            parent_run_id=self.parent_run_id,
            tags={
                **self.source,
                "kind": "trial",
                NOTE: self.describe_trial(overrides, trial_id),
                **{f"searched.{path}": str(value) for path, value in overrides.items()},
            },
        )

    def describe_trial(self, overrides: Mapping[str, Any], trial_id: str) -> str:
        """Return the description of a trial's run."""
        work = f"Trial of the search `{self.config.train.run_name}`: training"
        try:
            trial = self.make_config(overrides, trial_id)
        except UserError:  # the trial fails with this reason
            trial = self.config
        return describe_job(trial, self.shards, work)

    def read_run_id(self, trial_id: str) -> str | None:
        """Return the MLflow run of a trial; None if nothing is tracked."""
        folder = join_uri(self.job_dir, "trials", get_run_name(trial_id))
        return (read_job_file(folder, "mlflow_run.json") or {}).get("run_id")

    def run_nested(self, overrides: dict[str, Any], trial_id: str) -> dict[str, Any]:
        """Run one trial as a TorchTrainer of its own. Return its final figures."""
        tracker = self.open_run(overrides, trial_id)
        trial = self.make_config(overrides, trial_id)
        return train_trial(trial, self.open_shards(trial), tracker)


def get_trial_steps(config: Config) -> int:
    """Return the number of optimizer steps of a full trial."""
    trial_steps = config.search.trial_steps or config.train.max_steps
    assert trial_steps is not None  # Config's validator
    return trial_steps
