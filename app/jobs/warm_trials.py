"""Warm trials: one process trains trials one after another, over one base model and one stream."""

import gc
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Gemma2ForCausalLM

from app.config import Config
from app.gemma.base_model import BaseModelPin, pin_base_model
from app.gemma.load import DTYPES, count_parameters, load_base_model
from app.gemma.share import copy_modules
from app.jobs.check import check_job
from app.jobs.failures import find_lasting_error, find_out_of_memory
from app.jobs.micro_batch import halve_micro_batch
from app.jobs.train import open_job
from app.jobs.train_context import TrialContext
from app.jobs.trials import Campaign
from app.jobs.worker import (
    adapt_base_model,
    build_setup,
    check_start,
    configure_device,
    pin_batches,
    restore_state,
    start_records,
)
from app.jobs.worker_job import WorkerJob
from app.training import loop
from app.training.horizon import is_finished
from app.training.loop import TrainState
from app.training.optim import build_optimizer
from data_pipeline.shards import Shards
from data_pipeline.stream.packed_blocks import PackedBlocks
from data_pipeline.stream.token_stream import Batch, Stream
from data_pipeline.stream.worker_batches import read_validation_batches, split_among_workers
from tune.errors import TrialFailed
from tune.warm import Evaluation


@dataclass(frozen=True)
class _Base:
    """A loaded base model, without adapter."""

    key: tuple[Any, ...]
    model: Gemma2ForCausalLM
    pin: BaseModelPin


@dataclass(frozen=True)
class _Data:
    """The packed data of a stream."""

    key: tuple[Any, ...]
    stream: Stream
    train: PackedBlocks
    validation: list[Batch]


@dataclass(frozen=True)
class _Training:
    """A trial that can be trained: its own parts."""

    setup: loop.TrainSetup
    batches: Iterator[Any]
    state: TrainState
    context: TrialContext


class WarmWorker:
    """Implement `tune.warm.TrialWorker`.

    The base model and the packed data stay from one trial to the next, as long as the settings that
    they depend on stay. Adapter, optimizer and MLflow run are new, so that the losses are those of
    a trial in a process of its own.
    """

    def __init__(self, campaign: Campaign) -> None:
        self._campaign = campaign
        self._base: _Base | None = None
        self._data: _Data | None = None
        self._training: _Training | None = None
        self._shapes: tuple[Any, ...] | None = None
        use_gpu = campaign.config.scaling.use_gpu
        self._device = torch.device("cuda:0" if use_gpu else "cpu")

    def start(
        self, overrides: Mapping[str, Any], trial_id: str, folder: Path | None
    ) -> Iterator[Evaluation]:
        """Start a trial, see `tune.warm.TrialWorker`."""
        started = time.monotonic()
        with _raise_lasting_errors():
            self._release()

            # job
            tracker = self._campaign.open_run(overrides, trial_id)
            config = self._campaign.make_config(overrides, trial_id)
            data = self._get_data(config, self._campaign.open_shards(config))
            job = open_job(config, data.stream, tracker)
            tracker.flush()

            # training
            try:
                self._training = self._build(job, folder)
            except Exception as error:
                job = self._halve_micro_batch(job, error)
            if self._training is None:
                self._training = self._build(job, None)

            seconds = time.monotonic() - started
            self._training.context.tracker.set_tags({"start_seconds": f"{seconds:.3f}"})
        return self._iterate(job)

    def save(self, folder: Path) -> None:
        """Write a checkpoint of the last evaluation into a folder."""
        assert self._training is not None
        self._training.context.save(folder)

    def _iterate(self, job: WorkerJob) -> Iterator[Evaluation]:
        """Yield the evaluations of the started trial. Start it again if memory does not suffice."""
        last_step = -1
        with _raise_lasting_errors():
            try:
                for evaluation in self._train():
                    last_step = evaluation.step
                    yield evaluation
                return
            except Exception as error:
                smaller = self._halve_micro_batch(job, error)
            self._training = self._build(smaller, None)
            yield from (one for one in self._train() if one.step > last_step)

    def _train(self) -> Iterator[Evaluation]:
        assert self._training is not None
        setup, state = self._training.setup, self._training.state
        for loss in loop.iterate_evaluations(setup, self._training.batches, state):
            is_last = is_finished(state.step, state.num_stale_evaluations, setup.config)
            yield Evaluation(state.step, loss, is_last, state.progress)

    def _build(self, job: WorkerJob, folder: Path | None) -> _Training:
        """Make the trial's own parts, from the checkpoint in a folder if there is one."""
        config, device = job.config, self._device
        configure_device(config, device)
        base, data = self._get_base(config), self._get_data(config, job.stream.shards)

        # adapter and optimizer
        objective = adapt_base_model(copy_modules(base.model), config)
        optimizer = build_optimizer(objective, config.optim)
        context = TrialContext(
            job,
            objective.model,
            optimizer,
            rank=0,
            size=1,
            device=device,
            base_pin=base.pin,
        )
        name = None if folder is None else str(folder)
        state = restore_state(name, job, objective.model, optimizer, base.pin)
        start_records(context, count_parameters(objective.model), state)

        # data
        blocks = data.train.iterate(state.position)
        micro_batch_size = config.train.micro_batch_size
        batches = split_among_workers(
            blocks, micro_batch_size=micro_batch_size, rank=0, num_workers=1
        )
        batches = pin_batches(check_start(batches, state.position), config, device)
        setup = build_setup(job, objective, objective, optimizer, data.validation, context)
        return _Training(setup, batches, state, context)

    def _get_base(self, config: Config) -> _Base:
        """Return the base model. Load another one if its settings have changed."""
        key = (config.model, config.quantization, config.train.precision)
        if self._base is None or self._base.key != key:
            self._base = None  # before the next one is loaded
            gc.unfreeze()
            self._free_memory()
            model = load_base_model(
                config.model,
                config.quantization,
                device=self._device,
                dtype=DTYPES[config.train.precision],
            )
            pin = pin_base_model(config.model, config.quantization)
            self._base = _Base(key, model, pin)
            gc.freeze()  # later collections look at the objects of a trial only: 1 s less
        self._compile_again_for(config)
        return self._base

    def _get_data(self, config: Config, shards: Shards) -> _Data:
        """Return the packed data. Read it again if its settings have changed."""
        key = (
            config.data,
            config.model,
            config.train.num_epochs,
            config.evaluate.micro_batch_size,
            shards.digest,
        )
        if self._data is None or self._data.key != key:
            stream = check_job(config, shards)
            validation = read_validation_batches(
                stream,
                micro_batch_size=config.evaluate.micro_batch_size,
                rank=0,
                num_workers=1,
            )
            self._data = _Data(key, stream, PackedBlocks(stream), validation)
        return self._data

    def _compile_again_for(self, config: Config) -> None:
        """Forget compiled functions, if this trial's shapes are not those before.

        For the second shape of a function, torch would compile a version for any shape, and its
        sums may differ in the last bits from those of a new process. A compiled model is compiled
        again for each trial, whose modules are new.
        """
        if self._device.type != "cuda" and not config.train.compile:
            return
        sizes = config.train.micro_batch_size, config.evaluate.micro_batch_size
        shapes = (config.model, config.lora, config.memory, config.data, sizes)
        if config.train.compile or self._shapes not in (None, shapes):
            torch._dynamo.reset()
        self._shapes = shapes

    def _release(self) -> None:
        """Send the records of the trial before, and free its memory."""
        if self._training is not None:
            self._training.context.tracker.flush()
        self._training = None
        self._free_memory()

    def _free_memory(self) -> None:
        gc.collect()  # modules and optimizers are in reference circles
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def _halve_micro_batch(self, job: WorkerJob, error: Exception) -> WorkerJob:
        """Return the job of `halve_micro_batch`, and free the memory of the failed attempt."""
        smaller = halve_micro_batch(job, error)

        # Tensors are alive in the frames of the error.
        error.__traceback__ = None
        if self._training is not None:
            self._training.context.tracker.flush()
        self._training = None
        self._free_memory()
        return smaller


@contextmanager
def _raise_lasting_errors() -> Iterator[None]:
    """Raise TrialFailed for an error that a restart would not remove."""
    try:
        yield
    except TrialFailed:
        raise
    except Exception as error:
        lasting = find_out_of_memory(error) or find_lasting_error(error)
        if lasting is None:
            raise
        raise TrialFailed(str(lasting)) from error
