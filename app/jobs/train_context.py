"""The TrainContext of the training loop inside Ray Train: metrics, checkpoints and reports."""

import dataclasses
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import ray.train
import ray.train.torch
import torch
from peft import PeftModel

from app.errors import UserError
from app.gemma.base_model import BaseModelPin, pin_base_model
from app.jobs.materials import list_materials
from app.jobs.resume import pin_job
from app.jobs.trained_model import save_config
from app.jobs.worker_job import WorkerJob
from app.storage import join_uri
from app.tracking import SystemMetrics, Tracker, attach_run
from app.training import checkpoint, loop
from app.training.loop import TrainState
from app.training.parallel import gather_objects
from data_pipeline.stream.ledger import Ledger


class ProgressPrinter:
    """Print the progress of training and the time left, at most once every few seconds."""

    EVERY_SECONDS = 5.0

    def __init__(self) -> None:
        self._started: tuple[float, float] | None = None  # (time, progress) of the first step seen
        self._printed_at = 0.0

    def print_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Print one line for an evaluation, or for a training step if the last line is old."""
        now = time.monotonic()
        if "eval/loss" in metrics:
            print(f"step {step}: evaluation loss {metrics['eval/loss']:.4f}", flush=True)
            return

        progress = metrics["train/progress"]
        if self._started is None:
            self._started = now, progress
        if now - self._printed_at < self.EVERY_SECONDS:
            return
        self._printed_at = now

        started_at, first_progress = self._started
        left = ""
        if progress > first_progress:
            seconds_per_job = (now - started_at) / (progress - first_progress)
            left = f", about {seconds_per_job * (1 - progress):.0f} s left"
        loss, speed = metrics["train/loss"], metrics["speed/tokens_per_second"]
        print(
            f"step {step} ({progress:.0%}): loss {loss:.4f}, {speed:.0f} tokens/s{left}", flush=True
        )


class JobContext:
    """`app.training.parallel.TrainContext` of a job: metrics to MLflow, the ledger, checkpoints.

    A subclass reports the evaluations.
    """

    def __init__(
        self,
        job: WorkerJob,
        model: PeftModel,
        optimizer: torch.optim.Optimizer,
        *,
        rank: int,
        size: int,
        device: torch.device,
        base_pin: BaseModelPin,
    ) -> None:
        self.rank, self.size, self.device = rank, size, device
        self.base_pin = base_pin
        self._job, self._model, self._optimizer = job, model, optimizer
        self._progress = ProgressPrinter()

        # records
        self.ledger: Ledger | None = None
        if job.config.data.ledger:
            self.ledger = Ledger(join_uri(job.job_dir, "ledger"), job.stream, rank=rank)
        run_id = job.run_id if rank == 0 else None
        self.tracker: Tracker = attach_run(job.config.tracking, run_id, job_dir=job.job_dir)
        self._system = None if self.tracker.run_id is None else SystemMetrics()

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of one step to MLflow and print the progress."""
        measured = {} if self._system is None else self._system.sample()
        self.tracker.log_metrics(step, {**metrics, **measured})
        self._progress.print_step(step, metrics)

    def report(self, state: TrainState, eval_loss: float, *, save: bool) -> None:
        """Report an evaluation, and save a checkpoint if `save`."""
        raise NotImplementedError

    def _save_checkpoint(self, folder: Path | None, state: TrainState, eval_loss: float) -> None:
        """Write the checkpoint into `folder`; None: only gather."""
        saved_state = {
            "state": loop.state_to_json(state),
            "eval_loss": eval_loss,
            "base": self.base_pin,
            "code": self._job.code,
            "run_id": self._job.run_id,
        }
        if self.ledger is not None:
            gather_objects(None, self)  # the ledger files of all workers are written
        if folder is not None and self.ledger is not None:
            saved_state["ledger_sha256"] = self.ledger.compute_digest()
        if folder is not None:
            saved_state["job"] = pin_job(self._job.config, self._job.stream)
            save_config(folder, self._job.config)
        checkpoint.save_checkpoint(folder, self._model, self._optimizer, saved_state)


class RayTrainContext(JobContext):
    """The context inside Ray Train."""

    def __init__(self, job: WorkerJob, model: PeftModel, optimizer: torch.optim.Optimizer) -> None:
        """Hash the base model once per node. Raises UserError if two nodes have different ones."""
        ray_context = ray.train.get_context()
        own_pin = None
        if ray_context.get_local_rank() == 0:
            own_pin = pin_base_model(job.config.model, job.config.quantization)
        super().__init__(
            job,
            model,
            optimizer,
            rank=ray_context.get_world_rank(),
            size=ray_context.get_world_size(),
            device=ray.train.torch.get_device(),
            base_pin={},
        )
        self.base_pin = require_one_base_model(gather_objects(own_pin, self))

    def report(self, state: TrainState, eval_loss: float, *, save: bool) -> None:
        """Report an evaluation to Ray Train, with a checkpoint if `save`.

        All ranks call it: Ray Train waits for the report of every rank. Shards are gathered by
        all-gather, so every rank gets each whole tensor; only rank 0 keeps and writes them.
        """
        if self.ledger is not None:
            self.ledger.write(state.step)
        metrics = {
            "step": state.step,
            "eval_loss": eval_loss,
            "progress": state.progress,
            "position": dataclasses.asdict(state.position),
            "precision": self._job.config.train.precision,
            "memory": dataclasses.asdict(self._job.config.memory.settings),
        }
        if not save:
            ray.train.report(metrics)
            return

        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) if self.rank == 0 else None
            self._save_checkpoint(folder, state, eval_loss)
            saved = None
            if folder is not None:
                self.tracker.log_checkpoint(
                    state.step,
                    folder,
                    name=f"step-{state.step}",
                    metrics={"eval/loss": eval_loss},
                    files=False,
                    materials=list_materials(folder),
                )
                saved = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=saved)


class TrialContext(JobContext):
    """The context of a warm trial: one worker, which Ray Train does not run."""

    def report(self, state: TrainState, eval_loss: float, *, save: bool) -> None:
        """Keep the evaluation, for `save`. Send all records, or leave them in the job's folder."""
        if self.ledger is not None:
            self.ledger.write(state.step)
        self.tracker.flush()
        self._evaluated = state, eval_loss

    def save(self, folder: Path) -> None:
        """Write a checkpoint of the last evaluation into a folder."""
        state, eval_loss = self._evaluated
        self._save_checkpoint(folder, state, eval_loss)


def require_one_base_model(pins: list[BaseModelPin | None]) -> BaseModelPin:
    """Return the one base model of all nodes. Raises UserError if two differ under one name."""
    first, *others = (pin for pin in pins if pin is not None)
    for other in others:
        if other != first:
            raise UserError(
                f"model.name={first['name']!r} is not the same on all nodes "
                f"(sha256 {first['sha256'][:16]}… on one, {other['sha256'][:16]}… on another): "
                "give them the same files"
            )
    return first
