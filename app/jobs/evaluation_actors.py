"""Loss and answers of base and tuned model, by actors of Ray Data.

An actor loads the base model and the adapter once. The base model is the same 4-bit model without
the adapter. A unit of work is one batch of prompts, or one worker's part of the validation split.
"""

import logging
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import ray.data
import ray.train
import torch
from peft import PeftModel

from app.config import Config
from app.errors import UserError
from app.evaluation.behaviour import Output
from app.evaluation.bootstrap import Array
from app.evaluation.caption_cache import plan_batches
from app.evaluation.generate import generate_outputs
from app.evaluation.perplexity import measure_documents
from app.evaluation.scores import BASE, TUNED
from app.gemma.activation_checkpoint import apply_memory_config
from app.gemma.base_model import pin_base_model
from app.gemma.load import (
    DTYPES,
    CaptionLoss,
    autocast,
    evaluation_mode,
    load_adapter,
    load_base_model,
)
from app.jobs.job_dir import find_adapter
from app.jobs.worker import configure_device
from app.training.checkpoint import require_same_base_model
from app.training.config import ScalingConfig
from data_pipeline.errors import DataError
from data_pipeline.stream.ray_dataset import SchedulerPause
from data_pipeline.stream.token_stream import Stream
from data_pipeline.stream.worker_batches import read_validation_batches

Row = dict[str, Any]
MODELS = (BASE, TUNED)


@dataclass(frozen=True)
class ModelEvaluation:
    """Results of one model, base or tuned."""

    losses: Array
    """Sum of the loss (nats) and number of targets of each document [N, 2]."""
    num_dropped: int
    """Number of examples that are too long for the loss."""
    outputs: list[Output]
    """One for each prompt."""

    @property
    def eval_loss(self) -> float:
        """Nats per target token."""
        loss_sum, num_targets = self.losses.sum(axis=0)
        return float(loss_sum / num_targets)


def evaluate_models(
    config: Config, stream: Stream, adapter: str, prompts: Sequence[list[int]]
) -> dict[str, ModelEvaluation]:
    """Return the loss on the validation split, and the answers to the prompts (ids), by model.

    There are at most `scaling.num_workers` actors; each takes the resources of a training worker.
    """
    units = make_units(config, prompts)
    dataset = ray.data.from_items(units, override_num_blocks=len(units))
    with map_by_actors(dataset, Evaluator, (config, stream, adapter), config.scaling) as rows:
        return collect_rows(rows, len(prompts))


@contextmanager
def map_by_actors(
    dataset: ray.data.Dataset, actor: Any, arguments: tuple[Any, ...], scaling: ScalingConfig
) -> Iterator[Iterator[Row]]:
    """Yield an iterator over the rows that `actor(*arguments)(row)` returns for each row.

    `actor` is a callable class. There are at most `scaling.num_workers` of it; each takes the
    resources of a training worker. The end of the context stops them, and Ray Data's thread in this
    process: after an error the thread would go on, and connect to Ray again when Ray is left.
    """
    dataset.context.enable_progress_bars = dataset.context.print_on_execution_start = False
    dataset.context.custom_execution_callback_classes = [SchedulerPause]
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it warns that there is no progress bar
    rows = dataset.flat_map(
        actor,
        fn_constructor_args=arguments,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=scaling.num_workers),
        num_cpus=scaling.cpus_per_worker,
        num_gpus=scaling.reserved_gpus,
    )
    with closing(cast(Generator[Row], iter(rows.iter_rows()))) as found:
        yield found


def make_units(config: Config, prompts: Sequence[list[int]]) -> list[Row]:
    """Return the units of work; those with the longest prompts come first among the answers."""
    batches = plan_batches(
        [len(prompt) for prompt in prompts],
        max_prompts=config.evaluate.generation_batch_size,
        max_new_tokens=config.evaluate.max_new_tokens,
        max_cache_tokens=config.evaluate.max_cache_tokens,
    )

    losses = [
        {"kind": "loss", "model": model, "numbers": [rank], "prompts": [[0]]}
        for rank in range(config.scaling.num_workers)
        for model in MODELS
    ]
    answers = [
        {
            "kind": "answers",
            "model": model,
            "numbers": numbers,
            "prompts": [prompts[i] for i in numbers],
        }
        for numbers in batches
        for model in MODELS
    ]
    return losses + answers


def collect_rows(rows: Iterable[Row], num_prompts: int) -> dict[str, ModelEvaluation]:
    """Gather the rows of `Evaluator` by model, and print the progress.

    Raises UserError if an actor met one.
    """
    losses: dict[str, dict[int, list[float]]] = {model: {} for model in MODELS}
    outputs = {model: [Output("", is_finished=False)] * num_prompts for model in MODELS}
    num_dropped, num_done = Counter[str](), Counter[str]()

    for row in rows:
        model = row["model"]
        if row["kind"] == "error":
            raise UserError(row["text"])
        if row["kind"] == "document":
            losses[model][row["number"]] = [row["loss_sum"], row["count"]]
        elif row["kind"] == "dropped":
            num_dropped[model] += int(row["count"])
        else:
            outputs[model][row["number"]] = Output(row["text"], row["is_finished"])
            num_done[model] += 1
            if num_done[model] % 20 == 0 or num_done[model] == num_prompts:
                print(f"{model} model: {num_done[model]}/{num_prompts} answers", flush=True)

    return {
        model: ModelEvaluation(
            np.array([losses[model][i] for i in sorted(losses[model])], np.float64).reshape(-1, 2),
            num_dropped[model],
            outputs[model],
        )
        for model in MODELS
    }


class Evaluator:
    """Callable class of Ray Data: a unit of work → rows of results."""

    def __init__(self, config: Config, stream: Stream, adapter: str) -> None:
        self._config, self._stream, self._adapter = config, stream, adapter
        self._device = torch.device("cuda" if config.scaling.use_gpu else "cpu")
        self._dtype = DTYPES[config.train.precision]

    def __call__(self, unit: Row) -> list[Row]:
        """Return the rows of one unit; an error of the user is a row, because Ray Data hides it."""
        work = self._measure if unit["kind"] == "loss" else self._answer
        try:
            with nullcontext() if unit["model"] == TUNED else self._model.disable_adapter():
                rows = list(work(unit))
        except (UserError, DataError) as error:
            rows = [{"kind": "error", "text": str(error)}]
        empty = {"number": 0, "text": "", "is_finished": False, "loss_sum": 0.0, "count": 0.0}
        return [{**empty, **row, "model": unit["model"]} for row in rows]

    @cached_property
    def _model(self) -> PeftModel:
        """The base model with the adapter.

        It is loaded here and not in `__init__`, because Ray Data starts an actor again and again
        whose `__init__` fails.
        """
        config = self._config
        configure_device(config, self._device)
        base_model = load_base_model(
            config.model, config.quantization, device=self._device, dtype=self._dtype
        )
        # this node may lack a folder of the node that started the evaluation
        with ray.train.Checkpoint(find_adapter(config, self._adapter)).as_directory() as folder:
            pin = pin_base_model(config.model, config.quantization)
            require_same_base_model(Path(folder), pin)
            model = load_adapter(base_model, folder)
        apply_memory_config(base_model, config.memory)
        return model

    def _measure(self, unit: Row) -> Iterator[Row]:
        """Yield the loss of each document in one worker's part of the validation split."""
        rank, num_workers = int(unit["numbers"][0]), self._config.scaling.num_workers
        batches = read_validation_batches(
            self._stream,
            micro_batch_size=self._config.evaluate.micro_batch_size,
            rank=rank,
            num_workers=num_workers,
        )
        num_dropped = sum(int(batch["num_dropped"].sum()) for batch in batches)
        yield {"kind": "dropped", "count": float(num_dropped)}

        objective = CaptionLoss(self._model, self._dtype)
        losses = measure_documents(objective, batches, self._device).tolist()
        for i, (loss_sum, count) in enumerate(losses):
            number = i * num_workers + rank  # the same for both models
            yield {"kind": "document", "number": number, "loss_sum": loss_sum, "count": count}

    def _answer(self, unit: Row) -> Iterator[Row]:
        """Yield the answer to each prompt of one batch."""
        evaluate = self._config.evaluate
        with evaluation_mode(self._model), autocast(self._device, self._dtype):
            outputs = generate_outputs(
                self._model,
                self._stream.encoder,
                [[int(token) for token in prompt] for prompt in unit["prompts"]],
                batch_size=evaluate.generation_batch_size,
                max_new_tokens=evaluate.max_new_tokens,
                max_cache_tokens=evaluate.max_cache_tokens,
            )
        for number, output in zip(unit["numbers"], outputs, strict=True):
            yield {
                "kind": "answer",
                "number": int(number),
                "text": output.text,
                "is_finished": output.is_finished,
            }
