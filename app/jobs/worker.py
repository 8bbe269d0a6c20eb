"""The main function of each Ray Train worker: build the parts and call the training loop."""

import functools
import gc
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from peft import PeftModel
from torch import nn
from transformers import Gemma2ForCausalLM

from app.config import Config
from app.gemma.activation_checkpoint import apply_memory_config, compile_model
from app.gemma.base_model import BaseModelPin
from app.gemma.load import (
    DTYPES,
    CaptionLoss,
    add_lora,
    count_parameters,
    load_base_model,
    unwrap_gemma,
)
from app.jobs.gpu_share import get_allocator_limit
from app.jobs.train_context import JobContext, RayTrainContext
from app.jobs.watch import build_watch
from app.jobs.worker_job import WorkerJob
from app.speed_plan.calibration import describe_missing, name_device, read_calibration
from app.training import checkpoint, loop
from app.training.loop import TrainState
from app.training.optim import build_optimizer
from app.training.parallel import (
    TrainContext,
    all_reduce_sum,
    choose_loading_device,
    wrap_model,
)
from app.training.speed import SpeedMeter
from app.training.step import compute_mean_loss
from data_pipeline.stream.ray_dataset import iterate_batches
from data_pipeline.stream.token_stream import Batch, Position
from data_pipeline.stream.worker_batches import read_validation_batches


def run_worker(arguments: dict[str, WorkerJob]) -> dict[str, Any]:
    """Train one worker's part of the job, from the newest checkpoint on. Return the final figures.

    It is Ray Train's `train_loop_per_worker`. Ray Train sends the figures of rank 0 to the driver.
    """
    job, device = arguments["job"], ray.train.torch.get_device()
    config, num_workers = job.config, ray.train.get_context().get_world_size()
    configure_device(config, device)

    # build the model
    loading_device = choose_loading_device(
        config.parallel.strategy, size=num_workers, device=device
    )
    base_model = load_base_model(
        config.model,
        config.quantization,
        device=loading_device,
        dtype=DTYPES[config.train.precision],
    )
    objective = adapt_base_model(base_model, config)
    num_parameters = count_parameters(objective.model)
    wrapped = wrap_model(objective, config.parallel.strategy, size=num_workers, device=device)
    optimizer = build_optimizer(wrapped, config.optim)
    context = RayTrainContext(job, objective.model, optimizer)

    # restore
    newest = ray.train.get_checkpoint()
    with nullcontext() if newest is None else newest.as_directory() as folder:
        state = restore_state(folder, job, objective.model, optimizer, context.base_pin)
    start_records(context, num_parameters, state)

    # read the validation split
    validation = read_validation_batches(
        job.stream,
        micro_batch_size=config.evaluate.micro_batch_size,
        rank=context.rank,
        num_workers=context.size,
    )
    own_dropped = torch.tensor(sum(int(batch["num_dropped"].sum()) for batch in validation))
    num_validation_dropped = int(all_reduce_sum(own_dropped, context))

    # train
    setup = build_setup(job, objective, wrapped, optimizer, validation, context)
    batches = _iterate_train_batches(config, context, state.position)
    state = loop.train_model(setup, batches, state)

    # restore the best weights
    if config.train.save_steps:
        _restore_best_weights(objective.model)
    eval_loss = compute_mean_loss(wrapped, validation, context)
    context.tracker.flush()
    return _final_figures(state, eval_loss, num_validation_dropped)


def build_setup(
    job: WorkerJob,
    objective: CaptionLoss,
    wrapped: nn.Module,
    optimizer: torch.optim.Optimizer,
    validation: Sequence[Batch],
    context: JobContext,
) -> loop.TrainSetup:
    """Return the parts of the training loop; `wrapped` is the objective, or contains it."""
    config = job.config

    def after_step(step: int, micro_batches: Sequence[Batch]) -> None:
        _empty_cache(step, config.memory.empty_cache_steps, context.device)
        if context.ledger is not None:
            context.ledger.add(step, micro_batches)

    device = name_device(context.device)
    return loop.TrainSetup(
        objective=wrapped,
        optimizer=optimizer,
        validation=validation,
        config=config.train,
        optim=config.optim,
        context=context,
        compute_progress=job.stream.compute_progress,
        after_step=after_step,
        watch_model=build_watch(config, job.stream, objective, context),
        speed=SpeedMeter(
            unwrap_gemma(objective.model).config,
            config.lora,
            num_workers=context.size,
            peak_flops=None if context.rank else _find_peak_flops(device, config.train.precision),
        ),
    )


@functools.cache  # it prints once, also in a process that runs many trials
def _find_peak_flops(device: str, precision: str) -> float | None:
    """Return the measured peak of a device. Print one sentence if there is none."""
    calibration = read_calibration(device, precision)
    if calibration is not None:
        return calibration.matmul_flops
    print(f"speed/mfu is not logged: {describe_missing(device, precision)}", flush=True)
    return None


def configure_device(config: Config, device: torch.device) -> None:
    """Set this process's number of threads, its use of TF32 and its GPU memory limit."""
    torch.set_num_threads(config.scaling.threads_per_worker)
    torch.backends.cuda.matmul.allow_tf32 = config.train.tf32
    torch.backends.cudnn.allow_tf32 = config.train.tf32

    if device.type == "cuda":
        card_bytes = torch.cuda.get_device_properties(device).total_memory
        limit_bytes = get_allocator_limit(card_bytes, config)
        if limit_bytes is not None:
            fraction = min(1.0, max(0.0, limit_bytes / card_bytes))
            torch.cuda.set_per_process_memory_fraction(fraction, device)


def adapt_base_model(base_model: Gemma2ForCausalLM, config: Config) -> CaptionLoss:
    """Add a new LoRA adapter to the base model; return the loss module in training mode."""
    model = add_lora(base_model, config.lora, seed=config.train.seed)
    apply_memory_config(base_model, config.memory)
    if config.train.compile:
        compile_model(base_model)
    return CaptionLoss(model, DTYPES[config.train.precision]).train()


def restore_state(
    folder: str | None,
    job: WorkerJob,
    model: PeftModel,
    optimizer: torch.optim.Optimizer,
    base_pin: BaseModelPin,
) -> TrainState:
    """Load the checkpoint in a folder in place and return its state.

    Without a checkpoint load the initial adapter, if there is one, and return a new state.
    """
    if folder is None:
        if job.initial_adapter is not None:
            initial = ray.get(job.initial_adapter)
            checkpoint.require_same_pin(initial.base, base_pin)
            weights = {name: torch.tensor(value) for name, value in initial.weights.items()}
            checkpoint.load_weights(weights, model)
        return TrainState()
    checkpoint.require_same_base_model(Path(folder), base_pin)
    restored = checkpoint.restore_checkpoint(Path(folder), model, optimizer)
    return loop.state_from_json(restored["state"])


def _restore_best_weights(model: PeftModel) -> None:
    """Load the weights of the checkpoint with the lowest evaluation loss, if there is one."""
    reported = ray.train.get_all_reported_checkpoints()
    if reported:
        best = min(reported, key=lambda one: float(one.metrics.get("eval_loss", math.inf)))
        with best.checkpoint.as_directory() as folder:
            checkpoint.restore_weights(Path(folder), model)


def start_records(context: JobContext, num_parameters: tuple[int, int], state: TrainState) -> None:
    """Write the numbers of parameters and the base model's hash to the MLflow run, on rank 0.

    `num_parameters` is the result of `count_parameters`. Delete the ledger's entries after the step
    from which the job continues.
    """
    if context.rank != 0:
        return
    tags = {
        "trained_parameters": str(num_parameters[0]),
        "parameters": str(num_parameters[1]),
        "base.sha256": context.base_pin["sha256"],
        "device": f"{context.size} × {name_device(context.device)}",
    }
    context.tracker.set_tags(tags)
    if context.ledger is not None:
        context.ledger.delete_entries_after(state.step)


def _final_figures(
    state: TrainState, eval_loss: float, num_validation_dropped: int
) -> dict[str, Any]:
    """Return the figures of the finished job, as in result.json.

    `eval_loss` is the loss of the best saved weights, or of the last weights if none were saved.
    """
    return {
        "step": state.step,
        "eval_loss": eval_loss,
        "num_examples": state.num_examples,
        "num_dropped": state.num_dropped,
        "num_truncated": state.num_truncated,
        "num_tokens": state.num_tokens,
        "num_skipped_steps": state.num_skipped_steps,
        "num_skipped_examples": state.num_skipped_examples,
        "num_validation_dropped": num_validation_dropped,
        "progress": state.progress,
    }


def _iterate_train_batches(
    config: Config, context: TrainContext, start: Position
) -> Iterator[tuple[Batch, Position]]:
    """Yield this worker's micro-batches from `start` on; in page-locked memory if configured."""
    batches = iterate_batches(
        ray.train.get_dataset_shard("train"),
        micro_batch_size=config.train.micro_batch_size,
        num_workers=context.size,
        prefetch=config.data.prefetch_batches,
    )
    if context.rank == 0:
        batches = check_start(batches, start)
    return pin_batches(batches, config, context.device)


def pin_batches(
    batches: Iterator[tuple[Batch, Position]], config: Config, device: torch.device
) -> Iterator[tuple[Batch, Position]]:
    """Return the micro-batches, in page-locked memory if configured and the device is a GPU."""
    if device.type != "cuda" or not config.memory.pin_memory:
        return batches
    return (
        ({name: _pin_column(column) for name, column in batch.items()}, position)
        for batch, position in batches
    )


def _pin_column(column: Any) -> Any:
    """Return a copy in page-locked memory, which makes the copy to the GPU asynchronous."""
    return torch.from_numpy(column).pin_memory().numpy()


def check_start(
    batches: Iterator[tuple[Batch, Position]], start: Position
) -> Iterator[tuple[Batch, Position]]:
    """Assert that the stream of rank 0, which has the first sequence, starts at `start`.

    The driver starts the stream at the newest checkpoint, and this worker has restored one: both
    must be the same.
    """
    for i, (batch, after) in enumerate(batches):
        first = (int(batch["shuffle_block"][0]), int(batch["index"][0]))
        assert i or first == (start.shuffle_block, start.index), (first, start)
        yield batch, after


def _empty_cache(step: int, every_steps: int, device: torch.device) -> None:
    """Return the allocator's unused GPU memory to the device every `every_steps` steps."""
    if every_steps and step % every_steps == 0 and device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
