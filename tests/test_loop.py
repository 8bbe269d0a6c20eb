"""The loop without Ray: worker-count invariance, resuming, early stopping, harmless evaluation."""

import math
import os

import pytest
import torch
import torch.distributed as dist

from app.gemma.config import MemoryConfig
from app.training import checkpoint
from app.training.config import OptimConfig, TrainConfig
from app.training.loop import TrainSetup, TrainState, state_from_json, state_to_json, train_model
from app.training.nonfinite import TrainingDiverged
from app.training.optim import build_optimizer
from app.training.parallel import wrap_model
from app.training.step import compute_mean_loss
from tests.tiny import CPU, Recorder, batches, objective, run_two_processes, save_model

OPTIM = OptimConfig(learning_rate=2e-2, schedule="cosine", warmup_ratio=0.1, max_grad_norm=1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


def run(
    loss, stream, validation, *, state=None, context=None, optimizer=None, watch=None, **config
):
    config = TrainConfig(**{"eval_steps": 4, "save_steps": 4, "max_steps": 8, **config})
    context = context or Recorder()
    optimizer = optimizer or build_optimizer(loss, OPTIM)
    setup = TrainSetup(
        objective=wrap_model(loss, "ddp", size=context.size, device=CPU),
        optimizer=optimizer,
        validation=validation,
        config=config,
        optim=OPTIM,
        context=context,
        compute_progress=lambda position: position.index / position.num_block_sequences,
        watch_model=watch or (lambda step: {}),
    )
    state = train_model(setup, iter(stream), state or TrainState())
    return state, context, optimizer


def validation():
    return [batch for batch, _ in batches(12, seed=9)]


def test_training_lowers_the_loss_and_reports_every_step_and_evaluation(folder):
    loss = objective(folder, train_embeddings=True)
    stream = batches(260, micro_batch_size=2)
    state, context, _ = run(loss, stream, validation(), max_steps=32, eval_steps=16, save_steps=16)

    steps = [(step, "train/loss" in metrics) for step, metrics in context.metrics]
    assert [step for step, is_train_step in steps if is_train_step] == list(range(1, 33))
    assert [report[0] for report in context.reports] == [0, 16, 32]
    assert [report[2] for report in context.reports] == [False, True, True]
    assert context.reports[-1][1] < 0.8 * context.reports[0][1]
    assert state.best_loss == context.reports[-1][1]
    last = context.metrics[-2][1]
    assert last["train/perplexity"] == pytest.approx(math.exp(last["train/loss"]))
    assert 0.0 <= last["data/padding_share"] < 0.3
    assert last["memory/peak_mib"] > 50


def test_the_end_of_the_stream_ends_training_after_a_shorter_last_step(folder):
    stream = batches(44)
    assert len(stream) % 4
    state, context, _ = run(
        objective(folder), stream, validation(), max_steps=None, gradient_accumulation_steps=4
    )
    assert state.step == math.ceil(len(stream) / 4)
    assert state.num_examples == sum(int(batch["num_examples"].sum()) for batch, _ in stream)
    assert state.position == stream[-1][1]
    assert context.reports[-1][0] == state.step
    assert context.metrics[-2][1]["train/progress"] == 1.0


def test_resuming_from_a_checkpoint_continues_bit_for_bit(folder, tmp_path):
    stream, held_out = batches(60), validation()
    _, whole, _ = run(objective(folder, dropout=0.1), stream, held_out)

    # killed at step 4
    first = objective(folder, dropout=0.1)
    context = Recorder()
    saved = {}

    def save_at_4(state, eval_loss, *, save):
        context.reports.append((state.step, eval_loss, save))
        if state.step == 4:
            checkpoint.save_checkpoint(
                tmp_path, first.model, optimizer_of_first, state_to_json(state)
            )
            saved["state"] = state_to_json(state)
            raise KeyboardInterrupt  # the job is killed right after its checkpoint

    context.report = save_at_4
    optimizer_of_first = build_optimizer(first, OPTIM)
    with pytest.raises(KeyboardInterrupt):
        run(first, stream, held_out, context=context, optimizer=optimizer_of_first)

    # resumed
    second = objective(folder, dropout=0.1)
    with torch.no_grad():  # the checkpoint replaces all trained weights
        for parameter in second.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    optimizer = build_optimizer(second, OPTIM)
    state = state_from_json(checkpoint.restore_checkpoint(tmp_path, second.model, optimizer))
    assert state_to_json(state) == saved["state"]
    _, rest, _ = run(second, stream[4:], held_out, state=state, optimizer=optimizer)
    assert context.losses() + rest.losses() == whole.losses()
    assert rest.reports[-1] == whole.reports[-1]


def test_evaluation_between_steps_changes_no_loss(folder):
    """On some CPUs bitsandbytes repacks 4-bit weights in evaluation mode, in bf16 only."""
    losses = []
    for every in (1, 100):
        loss = objective(folder, dtype=torch.bfloat16)
        _, context, _ = run(loss, batches(60), validation(), eval_steps=every, save_steps=None)
        losses.append(context.losses())
    assert losses[0] == losses[1]


def test_metrics_of_a_watched_model_belong_to_each_evaluation(folder):
    _, context, _ = run(
        objective(folder), batches(60), validation(), max_steps=6, watch=lambda step: {"x": step}
    )
    watched = [(step, metrics) for step, metrics in context.metrics if "x" in metrics]
    assert [(step, metrics["x"]) for step, metrics in watched] == [(0, 0), (4, 4), (6, 6)]
    assert all("eval/loss" in metrics for _, metrics in watched)


def test_early_stopping_after_evaluations_without_a_gain(folder):
    state, context, _ = run(
        objective(folder), batches(200), validation(), max_steps=50, eval_steps=1, save_steps=1,
        early_stopping_patience=3, early_stopping_threshold=1e9,
    )  # fmt: skip
    assert state.step == 3
    assert [report[0] for report in context.reports] == [0, 1, 2, 3]


def test_a_loss_that_is_not_a_number_stops_the_job_and_names_the_step(folder):
    loss = objective(folder)
    with torch.no_grad():
        next(p for n, p in loss.named_parameters() if "lora_A" in n).fill_(math.nan)
    with pytest.raises(TrainingDiverged, match=r"step 1: loss nan"):
        run(loss, batches(60), validation())


def work(rank, size, folder, port, out):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=size)
    loss = objective(folder, dropout=0.1, memory=MemoryConfig(offload=True))
    held_out = [batch for batch, _ in batches(12, seed=9, rank=rank, num_workers=size)]
    stream = batches(90, rank=rank, num_workers=size)
    _, context, _ = run(
        loss,
        stream,
        held_out,
        context=Recorder(rank, size),
        gradient_accumulation_steps=2,
        max_steps=6,
    )
    if rank == 0:
        torch.save((context.losses(), [report[1] for report in context.reports]), out)
    dist.destroy_process_group()


def test_two_workers_train_as_one_at_equal_global_batch(folder, tmp_path, free_port):
    run_two_processes(work, (2, folder, free_port, str(tmp_path / "two")))
    two, two_evaluations = torch.load(tmp_path / "two")
    _, one, _ = run(
        objective(folder, dropout=0.1),
        batches(90),
        validation()[:4],
        gradient_accumulation_steps=4,
        max_steps=6,
    )
    assert two == pytest.approx(one.losses(), rel=1e-5)
    assert two_evaluations == pytest.approx([report[1] for report in one.reports], rel=1e-5)


def test_mean_loss_does_not_depend_on_how_documents_are_packed_into_sequences(folder):
    loss = objective(folder)
    alone = compute_mean_loss(
        loss, [batch for batch, _ in batches(20, sequence_tokens=20)], Recorder()
    )
    packed = compute_mean_loss(
        loss, [batch for batch, _ in batches(20, sequence_tokens=100)], Recorder()
    )
    assert packed == pytest.approx(alone, rel=1e-5)
