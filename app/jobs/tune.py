"""One search: an MLflow run with a child run per trial. Combines `tune.search` with `train`."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.config import Config, config_to_yaml, flatten_config, override_config
from app.errors import UserError
from app.jobs.campaign_report import STATE, report_campaign
from app.jobs.check import check_job, describe_length
from app.jobs.initial_adapter import require_one_adapter
from app.jobs.job import track_run
from app.jobs.job_dir import get_job_dir, read_job_file
from app.jobs.lease import hold_lease
from app.jobs.resources import count_concurrent_trials
from app.jobs.run_tags import NOTE, add_result, describe_job, describe_source
from app.jobs.search_facts import find_trial_facts
from app.jobs.stop import kill_private_ray
from app.jobs.trials import Campaign, get_trial_steps
from app.storage import join_uri, write_json, write_text
from app.tracking import Status, kill_running_children
from data_pipeline.filesystem import open_filesystem
from data_pipeline.masking import mask_secrets
from data_pipeline.shards import Shards
from tune.outcome import SearchResult, TrialOutcome, format_outcome
from tune.search import run_search
from tune.warm import TrialWorker, WarmTrials

MLFLOW_STATUS: dict[str, Status] = {
    "finished": "FINISHED",
    "pruned": "KILLED",
    "interrupted": "KILLED",
    "failed": "FAILED",
}
"""MLflow status of a trial's run, by the state of the trial."""

UNPINNED = (
    "scaling.",
    "tracking.",
    "evaluate.",
    "search.",
    "train.output_dir",
    "train.max_failures",
    "data.cache_dir",
)
"""Settings that may change while a search continues, by the beginnings of their names."""
PINNED_SEARCH = ("space", "algorithm", "trial_steps", "workers_per_trial", "seed")
"""Settings of the search that may not change."""


@dataclass(frozen=True)
class TuneResult:
    """Result of a finished search."""

    result: SearchResult
    best_config: str
    """File with the best trial's config, ready for `train`."""
    run_id: str | None
    """The parent run on MLflow."""
    trial_run_ids: tuple[str | None, ...]
    """MLflow runs of the trials, in the order of `result.trials`; None if nothing is tracked."""
    best_checkpoint: str | None
    """Folder or URI of the best trial's checkpoint; None for trials of several workers."""

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

    def write_trials(self, file: str | None) -> None:
        """Write all trials to the file of `tune --json`, if there is one."""
        if file is not None:
            Path(file).write_text(json.dumps(self.list_trials(), indent=2) + "\n")

    def list_trials(self) -> dict[str, Any]:
        """Return all trials as JSON types."""
        runs = zip(self.result.trials, self.trial_run_ids, strict=True)
        trials = [
            {
                "trial_id": trial.trial_id,
                "run_id": run_id,
                "state": trial.state,
                "params": trial.overrides,
                "best_eval_loss": trial.eval_loss,
                "steps": trial.step,
            }
            for trial, run_id in runs
        ]
        best = next(one for one in trials if one["trial_id"] == self.result.best.trial_id)
        return {"parent_run_id": self.run_id, "trials": trials, "best": best}


def tune_job(config: Config, shards: Shards, *, is_warm: bool | None = None) -> TuneResult:
    """Search over `search.space`; each trial is a child of one MLflow run. Needs a connected Ray.

    A search that was interrupted continues: trials that have ended stay as they are. Trials of one
    worker share processes, unless `is_warm` is False. Then each is a TorchTrainer, as those of
    several workers are.

    Write the best trial's config to best.yaml in the job's folder, and log it to MLflow. Raises
    UserError if the search varies the shape of the adapter that `lora.init_from` names, or if an
    earlier search in the folder had other settings.
    """
    require_one_adapter(config)
    job_dir = get_job_dir(config)
    note = describe_job(config, shards, "Search")
    source = describe_source()
    tags = {**source, "kind": "search", NOTE: note}
    with hold_lease(job_dir), track_run(config, job_dir, tags) as parent:
        # search
        campaign = Campaign(config, shards, job_dir, parent.run_id, source)
        trial = campaign.make_config({}, "0000")
        print(f"each trial: {describe_length(trial, check_job(config, shards))}", file=sys.stderr)
        require_same_search(config, shards, job_dir)
        parent.log_params(flatten_config(config))
        if is_warm is None:
            is_warm = config.search.workers_per_trial == 1
        result = _search(campaign, is_warm=is_warm)

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
        paragraph = report_campaign(config, job_dir, result, parent)
        parent.set_tags({NOTE: add_result(note, paragraph)})
        run_ids = tuple(campaign.read_run_id(one.trial_id) for one in result.trials)
        checkpoint = result.best_checkpoint and join_uri(job_dir, "tune", result.best_checkpoint)
        return TuneResult(result, best_file, parent.run_id, run_ids, checkpoint)


def _search(campaign: Campaign, *, is_warm: bool) -> SearchResult:
    """Run or continue the search."""
    config = campaign.config

    def on_trial_end(outcome: TrialOutcome) -> None:
        """Set the true status of the trial's run, which a trial stopped by Tune cannot set."""
        if outcome.state == "interrupted" and outcome.error is None:  # by the user
            kill_private_ray()  # before kill_running_children: a starting trial opens its run
            return
        tracker = campaign.open_run(outcome.overrides, outcome.trial_id)
        note = campaign.describe_trial(outcome.overrides, outcome.trial_id)
        note = add_result(note, format_outcome(outcome))
        reason = {"failure": outcome.error} if outcome.error else {}
        tracker.set_tags({STATE: outcome.state, NOTE: note, **reason})
        tracker.finish(MLFLOW_STATUS[outcome.state])

    max_concurrent = _choose_concurrency(config, is_warm=is_warm)
    filesystem, path = open_filesystem(campaign.job_dir)  # Ray would cut the query off a URI
    try:
        return run_search(
            config.search.model_copy(update={"max_concurrent": max_concurrent}),
            _make_warm_trials(campaign) if is_warm else campaign.run_nested,
            name="tune",
            storage_path=path,
            filesystem=filesystem,
            trial_steps=get_trial_steps(config),
            on_trial_end=on_trial_end,
            facts=find_trial_facts(config, get_trial_steps(config)),
        )
    except KeyboardInterrupt:
        interrupted = {STATE: "interrupted"}
        kill_running_children(config.tracking, campaign.parent_run_id, interrupted)
        raise


def _make_warm_trials(campaign: Campaign) -> WarmTrials:
    """Return how trials of one worker run: in processes that have the resources of the worker."""
    scaling = campaign.config.scaling

    def make_worker() -> TrialWorker:
        from app.jobs.warm_trials import WarmWorker  # torch and MLflow

        return WarmWorker(campaign)

    return WarmTrials(make_worker, scaling.worker_resources, campaign.config.train.max_failures)


def _choose_concurrency(config: Config, *, is_warm: bool) -> int:
    """Return the number of trials that run at the same time, and print it."""
    search, scaling = config.search, config.scaling
    number = search.max_concurrent
    origin = "search.max_concurrent"
    if number is None:
        number, origin = count_concurrent_trials(
            search.workers_per_trial,
            scaling.cpus_per_worker,
            scaling.reserved_gpus,
            # a warm trial reads its data itself
            0.0 if is_warm else config.data.cpus_per_task,
        )
    number = min(number, search.num_trials)
    print(f"{search.num_trials} trials, {number} at a time ({origin})", file=sys.stderr)
    return number


def require_same_search(config: Config, shards: Shards, job_dir: str) -> None:
    """Raise UserError if the search in the folder has other settings or data; store new ones."""
    values = {
        name: value
        for name, value in flatten_config(config).items()
        if not name.startswith(UNPINNED)
    }
    search = config.search.model_dump(mode="json")
    now = {
        **values,
        **{f"search.{name}": search[name] for name in PINNED_SEARCH},
        "the digest of data.shards": shards.digest,
    }
    now = json.loads(mask_secrets(json.dumps(now)))  # as it will be read again

    saved = read_job_file(job_dir, "search.json")
    if saved is None:
        write_json(join_uri(job_dir, "search.json"), now)
        return
    changes = [
        f"{name} was {saved.get(name)!r} and is {now.get(name)!r}"
        for name in sorted({*saved, *now})
        if saved.get(name) != now.get(name)
    ]
    if changes:
        raise UserError(
            f"the search {config.train.run_name} cannot continue: {'; '.join(changes)}; restore "
            "the old value, or set train.run_name to a new search"
        )
