"""One training job: build Ray's TorchTrainer, run it, and record the best checkpoint."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray
import ray.train
import ray.train.torch
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.result import Result

from app.config import Config, config_to_yaml, flatten_config
from app.errors import UserError
from app.jobs.check import check_job, describe_length
from app.jobs.failures import StopAtLastingErrors, find_lasting_error
from app.jobs.initial_adapter import InitialAdapter, print_start, read_initial_adapter
from app.jobs.job import track_run
from app.jobs.job_dir import get_job_dir
from app.jobs.lease import hold_lease
from app.jobs.materials import describe_code, list_materials
from app.jobs.micro_batch import halve_micro_batch
from app.jobs.run_tags import NOTE, add_result, describe_job, describe_source
from app.jobs.worker import run_worker
from app.jobs.worker_job import ResumingDataset, WorkerJob
from app.storage import join_uri, write_json
from app.tracking import Tracker
from data_pipeline.filesystem import open_filesystem
from data_pipeline.shards import Shards
from data_pipeline.stream.ray_dataset import build_data_config
from data_pipeline.stream.token_stream import Stream

Checkpoints = list[tuple[ray.train.Checkpoint, dict[str, Any]]]


@dataclass(frozen=True)
class TrainResult:
    """Result of a finished job."""

    metrics: Mapping[str, Any]
    """Rank 0's final figures: step, eval_loss of the restored best weights, num_examples, …"""
    adapter: str | None
    """Folder or URI of the best checkpoint; None if none was saved."""
    run_id: str | None
    """MLflow run of the job; None if nothing is tracked."""


class _Trainer(ray.train.torch.TorchTrainer):
    """TorchTrainer that keeps the handler of SIGINT, which raises KeyboardInterrupt."""

    def _register_sigint_handler(self, controller: Any) -> None:
        """Do not wait until the controller has ended, as Ray's handler does."""


def train_job(config: Config, shards: Shards) -> TrainResult:
    """Run or continue the job `train.run_name` in one MLflow run.

    Needs a connected Ray (app.jobs.cluster.connect_ray). Raises UserError if training fails, if
    another process trains this job, or if the newest checkpoint is of other settings or data.
    """
    job_dir = get_job_dir(config)
    with hold_lease(job_dir):
        stream = check_job(config, shards)
        initial = read_initial_adapter(config)
        print_start(config, initial)
        print(describe_length(config, stream), file=sys.stderr)
        return _train(config, stream, job_dir, initial)


def _train(
    config: Config, stream: Stream, job_dir: str, initial: InitialAdapter | None
) -> TrainResult:
    """Run or continue a checked job."""
    note = describe_job(config, stream.shards, "Training")
    with track_run(config, job_dir, {**describe_source(), NOTE: note}) as tracker:
        _log_job(tracker, config, stream.shards)
        sent = _send(initial, tracker)
        job = WorkerJob(config, stream, job_dir, tracker.run_id, describe_code(), sent)
        metrics, checkpoints = _fit(_build_trainer(job))
        result = _record_result(metrics, checkpoints, job_dir, tracker)
        tracker.set_tags({NOTE: add_result(note, _describe_result(result))})
        return result


def train_trial(config: Config, shards: Shards, tracker: Tracker) -> dict[str, Any]:
    """Run one trial of a search inside its Tune session. Return rank 0's final figures.

    A trial that runs out of memory continues once from its newest checkpoint, with half the
    micro-batch.

    Every evaluation goes to Tune as soon as it is reported. When Tune stops the trial, this process
    ends without cleaning up, and the trial's MLflow run keeps the status RUNNING. The driver of the
    search sets the true status of every trial.
    """
    from ray.tune.integration.ray_train import TuneReportCallback

    job = open_job(config, check_job(config, shards), tracker)
    callbacks = [StopAtLastingErrors(is_trial=True), TuneReportCallback()]
    try:
        metrics, _ = _fit(_build_trainer(job, callbacks))
    except UserError as error:
        smaller = halve_micro_batch(job, error)
        metrics, _ = _fit(_build_trainer(smaller, callbacks))
    tracker.flush()
    return metrics


def open_job(config: Config, stream: Stream, tracker: Tracker) -> WorkerJob:
    """Log a checked job to its MLflow run, and return it as its workers need it."""
    _log_job(tracker, config, stream.shards)
    sent = _send(read_initial_adapter(config), tracker)
    return WorkerJob(config, stream, get_job_dir(config), tracker.run_id, describe_code(), sent)


def _send(
    initial: InitialAdapter | None, tracker: Tracker
) -> "ray.ObjectRef[InitialAdapter] | None":
    """Record the initial adapter's origin, and send its weights to Ray's object store."""
    if initial is None:
        return None
    tracker.set_tags(initial.tags)
    return ray.put(initial)


def _log_job(tracker: Tracker, config: Config, shards: Shards) -> None:
    """Log the config, the two splits and the counts of `prepare` to the MLflow run."""
    # MLflow's charts have linear axes only
    log10_lr = round(math.log10(config.optim.learning_rate), 4)
    tracker.log_params({**flatten_config(config), "log10_lr": log10_lr})
    tracker.log_text(config_to_yaml(config), "config.yaml")

    for split, context in (("train", "training"), ("validation", "validation")):
        tracker.log_dataset(
            split,
            digest=shards.digest,
            num_records=shards.num_records(split),
            context=context,
            source=config.data.shards,
        )

    quarantined = {
        f"prepare/quarantined/{reason}": number for reason, number in shards.quarantined.items()
    }
    counts = {
        "prepare/duplicates": shards.num_duplicates,
        "prepare/quarantined": sum(quarantined.values()),
        **quarantined,
    }
    tracker.log_metrics(0, counts)


def _build_trainer(
    job: WorkerJob, callbacks: Sequence[Any] = (StopAtLastingErrors(),)
) -> ray.train.torch.TorchTrainer:
    config, scaling = job.config, job.config.scaling
    # Ray would cut the query off a URI, such as an S3 endpoint
    filesystem, path = open_filesystem(job.job_dir)
    storage_path, _, name = path.rpartition("/")
    dataset = ResumingDataset(
        job.stream, job.job_dir, config.train.micro_batch_size, scaling.num_workers
    )

    return _Trainer(
        cast(Any, run_worker),  # Ray's annotation of this argument allows no returned value
        train_loop_config={"job": job},
        torch_config=ray.train.torch.TorchConfig(timeout_s=config.parallel.timeout_seconds),
        datasets={"train": dataset},
        dataset_config=build_data_config(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=scaling.num_workers,
            use_gpu=scaling.use_gpu,
            resources_per_worker=scaling.worker_resources,
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage_path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(
                max_failures=config.train.max_failures,
                max_preemption_failures=-1,  # a spot node that is taken back is not a failure
            ),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=config.train.save_total_limit,
                checkpoint_score_attribute="eval_loss",
                checkpoint_score_order="min",
            ),
            callbacks=cast(Any, list(callbacks)),
        ),
    )


def _fit(trainer: ray.train.torch.TorchTrainer) -> tuple[dict[str, Any], Checkpoints]:
    """Return the figures of rank 0, and the kept checkpoints with their metrics.

    Raises UserError with the reason in one sentence; the workers have printed their tracebacks.
    """
    try:
        result = cast(Result, trainer.fit())
    except ray.train.TrainingFailedError as error:
        lasting = find_lasting_error(error)
        if lasting is not None:
            raise lasting from error
        failures = getattr(error, "worker_failures", None) or {0: error}
        rank, first = next(iter(failures.items()))
        reason = str(first).strip().splitlines()[-1]
        raise UserError(
            f"training failed on worker {rank}: {reason} (its traceback is above)"
        ) from error

    return dict(result.return_value or {}), result.best_checkpoints or []


def _record_result(
    metrics: dict[str, Any], checkpoints: Checkpoints, job_dir: str, tracker: Tracker
) -> TrainResult:
    """Log the best checkpoint to MLflow, write result.json and return the result."""
    adapter = None
    if checkpoints:
        best, best_metrics = min(checkpoints, key=lambda pair: float(pair[1]["eval_loss"]))
        adapter = join_uri(job_dir, Path(best.path).name)
        with best.as_directory() as folder:
            tracker.log_checkpoint(
                best_metrics["step"],
                Path(folder),
                name="best",
                metrics={"eval/loss": best_metrics["eval_loss"]},
                files=True,
                materials=list_materials(Path(folder)),
            )
        metrics["best_step"] = best_metrics["step"]

    result = {**metrics, "adapter": adapter, "run_id": tracker.run_id}
    write_json(join_uri(job_dir, "result.json"), result)
    return TrainResult(metrics, adapter, tracker.run_id)


def _describe_result(result: TrainResult) -> str:
    """Return the result of a finished job in one sentence."""
    metrics = result.metrics
    step = metrics.get("best_step", metrics["step"])
    return (
        f"evaluation loss {metrics['eval_loss']:.4f} at step {step} of {metrics['step']}, after "
        f"{metrics['num_examples']:,} examples."
    )
