"""One training job: checks what can be checked, builds the TorchTrainer, waits, and names the best checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray.data
import ray.train
import ray.train.torch
from ray.train.v2.api.result import Result

from app.config import Config, config_to_yaml, flatten_config
from app.errors import UserError
from app.jobs.job import build_stream, get_job_dir, track_run
from app.jobs.worker import WorkerJob, run_worker
from app.storage import join_uri, read_json, write_json
from app.tracking import Tracker, open_run
from data_pipeline.shards import Shards
from data_pipeline.stream.ray_dataset import build_data_config, build_dataset
from data_pipeline.stream.token_stream import Position, Stream

Checkpoints = list[tuple[ray.train.Checkpoint, dict[str, Any]]]

SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Where Ray Train 2.60 keeps its list of checkpoints, in the run's folder."""


@dataclass(frozen=True)
class TrainResult:
    """What a finished job leaves."""

    metrics: Mapping[str, Any]
    """Rank 0's final figures: step, eval_loss of the restored best weights, num_examples, …"""
    adapter: str | None
    """Folder or URI of the best checkpoint; None if none was saved."""
    run_id: str | None


def train_job(config: Config, shards: Shards) -> TrainResult:
    """Run or continue the job `train.run_name` in one MLflow run. Needs a connected Ray (app.jobs.cluster.connect)."""
    folder = get_job_dir(config)
    with track_run(config, folder) as tracker:
        _describe(tracker, config, shards)
        metrics, checkpoints = _fit(
            _trainer(config, build_stream(config, shards), folder, tracker.run_id)
        )
        return _finish(metrics, checkpoints, folder, tracker)


def train_trial(
    config: Config, shards: Shards, *, parent_run_id: str | None, tags: Mapping[str, str]
) -> dict[str, Any]:
    """One trial of a search, inside its Tune session: every evaluation goes to Tune as it comes.

    When Tune stops the trial this process just ends, and the trial's MLflow run stays RUNNING: whoever sees the
    trial end gives the run its true status.
    """
    from ray.tune.integration.ray_train import TuneReportCallback

    folder = get_job_dir(config)
    tracker = open_run(
        config.tracking,
        run_name=config.train.run_name,
        job_dir=folder,
        parent_run_id=parent_run_id,
        tags=tags,
    )
    _describe(tracker, config, shards)
    metrics, _ = _fit(
        _trainer(
            config,
            build_stream(config, shards),
            folder,
            tracker.run_id,
            callbacks=[TuneReportCallback()],
        )
    )
    tracker.finish("FINISHED")
    return metrics


def _fit(trainer: ray.train.torch.TorchTrainer) -> tuple[dict[str, Any], Checkpoints]:
    """What rank 0 returned, and the kept checkpoints with their metrics.

    Raises UserError with the reason in one sentence; the workers' tracebacks have been printed by then."""
    try:
        result = cast(Result, trainer.fit())
    except ray.train.TrainingFailedError as error:
        failures = getattr(error, "worker_failures", None) or {0: error}
        rank, first = next(iter(failures.items()))
        reason = str(first).strip().splitlines()[-1]
        raise UserError(
            f"training failed on worker {rank}: {reason} (its traceback is above)"
        ) from error
    returned: dict[str, Any] = dict(result.return_value or {})
    if "error" in returned:
        raise UserError(returned["error"])
    return returned, result.best_checkpoints or []


def _describe(tracker: Tracker, config: Config, shards: Shards) -> None:
    tracker.log_params(flatten_config(config))
    tracker.log_text(config_to_yaml(config), "config.yaml")
    for split, context in (("train", "training"), ("validation", "validation")):
        tracker.log_dataset(
            split,
            digest=shards.digest,
            num_records=shards.num_records(split),
            context=context,
            source=config.data.shards,
        )
    refused = {
        f"prepare/quarantined/{reason}": number for reason, number in shards.quarantined.items()
    }
    counted = {
        "prepare/duplicates": shards.num_duplicates,
        "prepare/quarantined": sum(refused.values()),
        **refused,
    }
    tracker.log_metrics(0, counted)


def _finish(
    metrics: dict[str, Any], checkpoints: Checkpoints, folder: str, tracker: Tracker
) -> TrainResult:
    adapter = None
    if checkpoints:
        best, best_metrics = min(checkpoints, key=lambda pair: float(pair[1]["eval_loss"]))
        adapter = join_uri(folder, Path(best.path).name)
        with best.as_directory() as local:
            tracker.log_checkpoint(
                best_metrics["step"], Path(local), name="best",
                metrics={"eval/loss": best_metrics["eval_loss"]}, files=True,
            )  # fmt: skip
        metrics["best_step"] = best_metrics["step"]
    write_json(
        join_uri(folder, "result.json"), {**metrics, "adapter": adapter, "run_id": tracker.run_id}
    )
    return TrainResult(metrics, adapter, tracker.run_id)


def _trainer(
    config: Config,
    stream: Stream,
    folder: str,
    run_id: str | None,
    callbacks: list[Any] | None = None,
) -> ray.train.torch.TorchTrainer:
    scaling = config.scaling
    parent, _, name = folder.rpartition("/")
    gpu = {"GPU": 1.0} if scaling.use_gpu else {}
    return ray.train.torch.TorchTrainer(
        cast(Any, run_worker),  # the result that it returns is newer than the type of this argument
        train_loop_config={"job": WorkerJob(config, stream, folder, run_id)},
        torch_config=ray.train.torch.TorchConfig(timeout_s=config.parallel.timeout_seconds),
        datasets={
            "train": ResumingDataset(stream, join_uri(folder, SNAPSHOT), scaling.num_workers)
        },
        dataset_config=build_data_config(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=scaling.num_workers,
            use_gpu=scaling.use_gpu,
            resources_per_worker={"CPU": scaling.cpus_per_worker, **gpu},
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=parent,
            failure_config=ray.train.FailureConfig(max_failures=config.train.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=config.train.save_total_limit,
                checkpoint_score_attribute="eval_loss",
                checkpoint_score_order="min",
            ),
            callbacks=callbacks,
        ),
    )


@dataclass(frozen=True)
class ResumingDataset:
    """Called by Ray Train at each start of the worker group: the stream from its newest checkpoint on."""

    stream: Stream
    snapshot: str
    num_workers: int

    def __call__(self) -> ray.data.Dataset:
        newest = (read_json(self.snapshot) or {}).get("latest_checkpoint_result")
        start = Position() if newest is None else Position(**newest["metrics"]["position"])
        return build_dataset(self.stream, start=start, num_workers=self.num_workers)
