"""The horizon of a job: the schedule ends with the data or with max_steps, and early stopping."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import EarlyStoppingCallback, TrainerControl, TrainerState, TrainingArguments

from app.errors import UserError
from app.training.config import OptimConfig, TrainConfig
from app.training.horizon import compute_progress, is_gain
from app.training.loop import TrainSetup, TrainState, train_model
from app.training.optim import build_optimizer, compute_learning_rate
from data_pipeline.stream.encode import IGNORE_INDEX
from tests.tiny import CPU, Recorder, batches

OPTIM = OptimConfig(learning_rate=0.1, schedule="cosine", warmup_ratio=0.1)


class Point(nn.Module):
    """The smallest objective: one weight that should be 1."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, input_ids, position_ids, targets):
        count = (targets != IGNORE_INDEX).sum()
        return (self.weight - 1) ** 2 * count, count


def train(stream, *, state=None, validation=None, **config):
    """Return the state, and the learning rate of each step."""
    objective, context = Point(), Recorder(device=CPU)
    setup = TrainSetup(
        objective=objective,
        optimizer=build_optimizer(objective, OPTIM),
        validation=validation or [batch for batch, _ in batches(4, seed=9)],
        config=TrainConfig(**{"eval_steps": 100, "save_steps": None, **config}),
        optim=OPTIM,
        context=context,
        compute_progress=lambda position: position.index / position.num_block_sequences,
    )
    state = train_model(setup, iter(stream), state or TrainState())
    key = "train/learning_rate"
    return state, {step: metrics[key] for step, metrics in context.metrics if key in metrics}


def schedule(num_steps, *, first=1, last=None):
    """Return the learning rates of transformers' schedule in the middle of each step."""
    return {
        step: pytest.approx(compute_learning_rate(OPTIM, (step - 0.5) / num_steps))
        for step in range(first, (last or num_steps) + 1)
    }


def without_targets(pair):
    """Return a micro-batch whose examples were all dropped, with its position."""
    batch, position = pair
    empty = {name: np.zeros_like(column) for name, column in batch.items()}
    dropped = np.array([7, *[0] * (len(batch["num_examples"]) - 1)])
    targets = np.full_like(batch["targets"], IGNORE_INDEX)
    return {**empty, "targets": targets, "num_dropped": dropped}, position


STREAM = batches(200)
NUM_STEPS = len(STREAM)


@pytest.mark.parametrize("max_steps", [None, NUM_STEPS, NUM_STEPS + 1, 100 * NUM_STEPS])
def test_the_schedule_ends_with_the_data_however_large_max_steps_is(max_steps):
    state, rates = train(STREAM, max_steps=max_steps)
    assert rates == schedule(NUM_STEPS)
    assert rates[NUM_STEPS] < 0.01 * OPTIM.learning_rate
    assert state.progress == 1.0


@pytest.mark.parametrize("max_steps", [1, 7, NUM_STEPS - 1])
def test_the_schedule_ends_with_max_steps_if_there_are_more_data(max_steps):
    state, rates = train(STREAM, max_steps=max_steps)
    assert rates == schedule(max_steps)
    assert (state.step, state.progress) == (max_steps, 1.0)


@pytest.mark.parametrize("longer", [9, NUM_STEPS - 1, 100 * NUM_STEPS, None])
def test_a_job_that_continues_with_more_steps_has_the_rates_of_the_longer_job(longer):
    state, rates = train(STREAM, max_steps=6)
    _, rest = train(STREAM[6:], state=state, max_steps=longer)
    num_steps = min(longer or NUM_STEPS, NUM_STEPS)
    assert rest == schedule(num_steps, first=7)
    assert rates == schedule(6)


def test_progress_never_leaves_0_to_1():
    config = TrainConfig(max_steps=10)
    assert [compute_progress(step, 0.3, config) for step in (0, 3, 5, 10, 11)] == [
        0.3, 0.3, 0.5, 1.0, 1.0,
    ]  # fmt: skip


@pytest.mark.parametrize("dropped", [{0}, {4, 5}, {NUM_STEPS - 1}], ids=["first", "two", "last"])
def test_a_step_without_targets_is_no_step_and_its_dropped_examples_are_counted(dropped):
    stream = [
        without_targets(pair) if number in dropped else pair for number, pair in enumerate(STREAM)
    ]
    state, rates = train(stream)
    assert sorted(rates) == list(range(1, NUM_STEPS - len(dropped) + 1))
    assert state.num_dropped == 7 * len(dropped)
    assert state.position == STREAM[-1][1]
    whole, _ = train([pair for number, pair in enumerate(STREAM) if number not in dropped])
    assert state.num_examples == whole.num_examples


def test_a_validation_split_without_targets_is_named():
    empty = [without_targets(pair)[0] for pair in batches(4, seed=9)]
    with pytest.raises(UserError, match=r"validation split fits .* raise data\.sequence_tokens"):
        train(STREAM, validation=empty)


LOSSES = {
    "falls by half the threshold": [2.0 - 0.00025 * n for n in range(12)],
    "falls by the threshold": [2.0, 1.9995, 1.999],
    "falls by more": [2.0, 1.9994, 1.9987, 1.99],
    "rises and returns": [2.0, 2.1, 2.0, 1.9999, 1.5, 1.4996, 1.4994],
}
GAINS = {
    "falls by half the threshold": [0, 3, 6, 9],
    "falls by the threshold": [0, 2],
    "falls by more": [0, 1, 2, 3],
    "rises and returns": [0, 4, 6],
}


def ours(losses):
    best, gains = np.inf, []
    for number, loss in enumerate(losses):
        if is_gain(loss, best, TrainConfig(early_stopping_threshold=0.0005)):
            best = loss
            gains.append(number)
    return gains


def theirs(losses, folder):
    """Return the gains that transformers counts; its Trainer keeps the lowest loss."""
    arguments = TrainingArguments(str(folder), metric_for_best_model="loss", use_cpu=True)
    callback, state, gains = EarlyStoppingCallback(100, 0.0005), TrainerState(), []
    for number, loss in enumerate(losses):
        callback.on_evaluate(arguments, state, TrainerControl(), {"eval_loss": loss})
        if callback.early_stopping_patience_counter == 0:
            gains.append(number)
        state.best_metric = min(loss, state.best_metric or loss)
    return gains


@pytest.mark.parametrize("name", LOSSES)
def test_gains_below_the_threshold_add_up(name):
    assert ours(LOSSES[name]) == GAINS[name]


def test_early_stopping_differs_from_transformers_only_in_small_gains(tmp_path):
    for name, losses in LOSSES.items():
        assert (theirs(losses, tmp_path) == ours(losses)) == (name == "falls by more"), name
    assert theirs(LOSSES["falls by half the threshold"], tmp_path) == [0]
