"""What runs in each Ray Train worker: builds the parts, hands them to the loop. Knows Ray Train, no Ray Tune."""

import dataclasses
import gc
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from peft import PeftModel
from torch import nn

from app.config import Config
from app.errors import UserError
from app.gemma.activation_checkpoint import apply_memory_config
from app.gemma.base_model import BaseModelPin, pin_base_model
from app.gemma.load import DTYPES, CaptionLoss, add_lora, count_parameters, load_base_model
from app.storage import join_uri
from app.tracking import Tracker, attach_run
from app.training import checkpoint, loop
from app.training.loop import TrainState
from app.training.nonfinite import TrainingDiverged
from app.training.optim import build_optimizer
from app.training.parallel import (
    TrainContext,
    all_reduce_sum,
    choose_loading_device,
    gather_objects,
    wrap_model,
)
from app.training.step import compute_mean_loss
from data_pipeline.stream.ledger import Ledger
from data_pipeline.stream.ray_dataset import iterate_batches as batches_of
from data_pipeline.stream.token_stream import Batch, Position, Stream, compute_progress
from data_pipeline.stream.worker_batches import validation_batches


@dataclass(frozen=True)
class WorkerJob:
    """What the driver sends to every worker."""

    config: Config
    stream: Stream
    job_dir: str
    """Folder or URI that keeps what must outlive a worker."""
    run_id: str | None
    """MLflow run that rank 0 logs to."""


class ProgressPrinter:
    """Says every few seconds how far training is and how long is left."""

    EVERY_SECONDS = 5.0

    def __init__(self) -> None:
        self._started: tuple[float, float] | None = None  # (time, progress) of the first step seen
        self._said = 0.0

    def say(self, step: int, metrics: Mapping[str, float]) -> None:
        now = time.monotonic()
        if "eval/loss" in metrics:
            print(f"step {step}: evaluation loss {metrics['eval/loss']:.4f}", flush=True)
            return
        done = metrics["train/progress"]
        if self._started is None:
            self._started = now, done
        if now - self._said < self.EVERY_SECONDS:
            return
        self._said = now
        since, at = self._started
        left = f", about {(now - since) / (done - at) * (1 - done):.0f} s left" if done > at else ""
        speed = metrics["speed/tokens_per_second"]
        print(
            f"step {step} ({done:.0%}): loss {metrics['train/loss']:.4f}, {speed:.0f} tokens/s{left}",
            flush=True,
        )


class RayTrainContext:
    """The loop's `World` inside Ray Train."""

    def __init__(self, job: WorkerJob, model: PeftModel, optimizer: torch.optim.Optimizer) -> None:
        """The base is hashed once a node, and must be the same on all."""
        context = ray.train.get_context()
        self.rank, self.size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self._job, self._model, self._optimizer = job, model, optimizer
        first = context.get_local_rank() == 0
        self.base = _agreed(
            gather_objects(
                pin_base_model(job.config.model, job.config.quantization) if first else None, self
            )
        )
        self._progress = ProgressPrinter()
        self.ledger: Ledger | None = None
        if job.config.data.ledger:
            self.ledger = Ledger(join_uri(job.job_dir, "ledger"), job.stream, rank=self.rank)
        self.tracker: Tracker = attach_run(
            job.config.tracking, job.run_id if self.rank == 0 else None, job_dir=job.job_dir
        )

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        self.tracker.log_metrics(step, metrics)
        self._progress.say(step, metrics)

    def report(self, state: TrainState, eval_loss: float, *, save: bool) -> None:
        """All ranks lend their shards and rank 0 writes; all report, which is how Ray Train keeps them in step."""
        if self.ledger is not None:
            self.ledger.write(state.step)
        metrics = {"step": state.step, "eval_loss": eval_loss, "progress": state.progress,
                   "position": dataclasses.asdict(state.position)}  # fmt: skip
        if not save:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            saved = {
                "state": loop.state_to_json(state),
                "eval_loss": eval_loss,
                "seed": self._job.config.train.seed,
                "base": self.base,
            }
            writer = self.rank == 0
            checkpoint.save_checkpoint(
                Path(folder) if writer else None, self._model, self._optimizer, saved
            )
            if writer:
                self.tracker.log_checkpoint(
                    state.step,
                    Path(folder),
                    name=f"step-{state.step}",
                    metrics={"eval/loss": eval_loss},
                    files=False,
                )
            ray.train.report(
                metrics, checkpoint=ray.train.Checkpoint.from_directory(folder) if writer else None
            )


def run_worker(arguments: dict[str, Any]) -> dict[str, Any]:
    """Ray Train's `train_loop_per_worker`. Returns the final figures (rank 0's travel back to the driver).

    What would fail again on every restart, and does so on all workers at once, is returned as `error`: Ray Train
    restarts the group for whatever is raised.
    """
    try:
        return _work(arguments["job"])
    except (UserError, TrainingDiverged) as error:
        return {"error": str(error)}


def _work(job: WorkerJob) -> dict[str, Any]:
    config = job.config
    device = ray.train.torch.get_device()
    configure_device(config, device)
    objective = _objective(config, device)
    model = objective.model
    trained, total = count_parameters(model)
    size = ray.train.get_context().get_world_size()
    wrapped = wrap_model(objective, config.parallel.strategy, size=size, device=device)
    optimizer = build_optimizer(wrapped, config.optim)
    context = RayTrainContext(job, model, optimizer)
    state, restored = TrainState(), ray.train.get_checkpoint()
    if restored is not None:
        with restored.as_directory() as folder:
            checkpoint.require_same_base_model(Path(folder), context.base)
            state = loop.state_from_json(
                checkpoint.restore_checkpoint(Path(folder), model, optimizer)["state"]
            )
    if context.rank == 0:
        context.tracker.set_tags(
            {
                "trained_parameters": str(trained),
                "parameters": str(total),
                "base.sha256": context.base["sha256"],
            }
        )
    validation = validation_batches(
        job.stream,
        micro_batch_size=config.evaluate.micro_batch_size,
        rank=context.rank,
        num_workers=context.size,
    )
    unseen = torch.tensor(sum(int(batch["num_dropped"].sum()) for batch in validation))
    num_validation_dropped = int(all_reduce_sum(unseen, context))
    num_shuffle_blocks = job.stream.num_shuffle_blocks
    if context.ledger is not None and context.rank == 0:
        context.ledger.forget_after(state.step)

    def after_step(step: int, micro_batches: Sequence[Batch]) -> None:
        _empty_cache(step, config.memory.empty_cache_steps, device)
        if context.ledger is not None:
            context.ledger.add(step, micro_batches)

    setup = loop.TrainSetup(
        objective=wrapped,
        optimizer=optimizer,
        validation=validation,
        config=config.train,
        optim=config.optim,
        context=context,
        compute_progress=lambda position: compute_progress(position, num_shuffle_blocks),
        after_step=after_step,
    )
    batches = _from_position(_batches(config, context), state.position)
    state = loop.train_model(setup, batches, state)
    final_loss = _restore_best(model, wrapped, validation, context, config)
    context.tracker.flush()
    return {"step": state.step, "eval_loss": final_loss, "num_examples": state.num_examples,
            "num_dropped": state.num_dropped, "num_truncated": state.num_truncated, "num_tokens": state.num_tokens,
            "num_skipped_steps": state.num_skipped_steps, "num_skipped_examples": state.num_skipped_examples,
            "num_validation_dropped": num_validation_dropped, "progress": state.progress}  # fmt: skip


def _objective(config: Config, device: torch.device) -> CaptionLoss:
    size = ray.train.get_context().get_world_size()
    start = choose_loading_device(config.parallel.strategy, size=size, device=device)
    dtype = DTYPES[config.train.precision]
    base = load_base_model(config.model, config.quantization, device=start, dtype=dtype)
    model = add_lora(base, config.lora, seed=config.train.seed)
    apply_memory_config(base, config.memory)
    if config.train.compile:
        base.model.compile()
    return CaptionLoss(model, dtype).train()


def _agreed(bases: list[BaseModelPin | None]) -> BaseModelPin:
    """The base of all nodes. Raises UserError if two have different ones under one name."""
    first, *others = (base for base in bases if base is not None)
    for other in others:
        if other != first:
            raise UserError(
                f"model.name={first['name']!r} is not the same on all nodes (sha256 {first['sha256'][:16]}… on one, "
                f"{other['sha256'][:16]}… on another): give them the same files"
            )
    return first


def configure_device(config: Config, device: torch.device) -> None:
    """Threads, TF32 and the memory cap of this process."""
    torch.set_num_threads(config.scaling.threads_per_worker)
    torch.backends.cuda.matmul.allow_tf32 = config.train.tf32
    torch.backends.cudnn.allow_tf32 = config.train.tf32
    if device.type == "cuda" and config.memory.max_gib_per_gpu is not None:
        card = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(
            min(1.0, config.memory.max_gib_per_gpu * 2**30 / card), device
        )


def _batches(config: Config, context: TrainContext) -> Iterator[tuple[Batch, Position]]:
    batches = batches_of(
        ray.train.get_dataset_shard("train"), micro_batch_size=config.train.micro_batch_size,
        rank=context.rank, num_workers=context.size, prefetch=config.data.prefetch_batches,
    )  # fmt: skip
    if context.device.type != "cuda" or not config.memory.pin_memory:
        return batches
    return (
        ({name: _pinned(column) for name, column in batch.items()}, after)
        for batch, after in batches
    )


def _pinned(column: Any) -> Any:
    """The same numbers in page-locked memory, from which a copy to the GPU need not be waited for."""
    return torch.from_numpy(column).pin_memory().numpy()


def _from_position(
    batches: Iterator[tuple[Batch, Position]], start: Position
) -> Iterator[tuple[Batch, Position]]:
    """The driver started the stream at the newest checkpoint; it must be the one that was restored."""
    for i, (batch, after) in enumerate(batches):
        first = (int(batch["shuffle_block"][0]), int(batch["index"][0]))
        assert i or first >= (start.shuffle_block, start.index), (first, start)
        yield batch, after


def _empty_cache(step: int, every: int, device: torch.device) -> None:
    if every and step % every == 0 and device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def _restore_best(
    model: PeftModel,
    objective: nn.Module,
    validation: list[Batch],
    context: RayTrainContext,
    config: Config,
) -> float:
    """Put the weights with the lowest evaluation loss back; returns that loss, measured again."""
    saved = ray.train.get_all_reported_checkpoints() if config.train.save_steps else []
    if saved:
        best = min(saved, key=lambda reported: float(reported.metrics.get("eval_loss", math.inf)))
        with best.checkpoint.as_directory() as folder:
            checkpoint.restore_weights(Path(folder), model)
    return compute_mean_loss(objective, validation, context)
