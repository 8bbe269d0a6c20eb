"""Real values that are not finite: the layer they are found in, skipped steps, and fp16."""

import copy
import math
import os

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from app.gemma.config import MemoryConfig
from app.gemma.load import unwrap_gemma
from app.training import checkpoint
from app.training.config import OptimConfig, TrainConfig
from app.training.loop import TrainSetup, TrainState, state_from_json, state_to_json, train_model
from app.training.nonfinite import INITIAL_LOSS_SCALE, TrainingDiverged, update_loss_scale
from app.training.optim import build_optimizer
from app.training.parallel import wrap_model
from data_pipeline.stream.pack import pack_examples
from tests.reference import tensors
from tests.tiny import (
    CPU,
    Recorder,
    batches,
    examples,
    objective,
    run_two_processes,
    save_model,
)

OPTIM = OptimConfig(learning_rate=1e-2, schedule="constant", warmup_ratio=0.0, max_grad_norm=1.0)
WHERE = "model.layers.1.self_attn.v_proj.lora_A.default"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def validation():
    return [batch for batch, _ in batches(12, seed=9)]


def run(
    loss,
    validation,
    *,
    stream=None,
    state=None,
    context=None,
    optimizer=None,
    after_step=None,
    strategy="ddp",
    **config,
):
    config = TrainConfig(**{"max_steps": 6, "eval_steps": 100, "save_steps": 100, **config})
    context = context or Recorder()
    wrapped = wrap_model(loss, strategy, size=context.size, device=CPU)
    setup = TrainSetup(
        objective=wrapped,
        optimizer=optimizer or build_optimizer(wrapped, OPTIM),
        validation=validation,
        config=config,
        optim=OPTIM,
        context=context,
        compute_progress=lambda position: position.index / 1000,
        after_step=after_step or (lambda step, micro_batches: None),
    )
    state = train_model(setup, iter(stream or batches(60)), state or TrainState())
    return state, context


def weight(loss):
    return loss.get_submodule(f"model.base_model.model.{WHERE}").weight


def poison(loss, value=math.inf):
    """Change one number of one trained weight (or of its local shard); return the undo function."""
    spoilt = weight(loss).detach()
    spoilt = spoilt.to_local() if isinstance(spoilt, DTensor) else spoilt
    before = spoilt[0, 0].item()
    spoilt[0, 0] = value
    return lambda: spoilt[0, 0].fill_(before)


@pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning"
)  # torch about its own compiler
@pytest.mark.parametrize(
    ("memory", "compiled", "where"),
    [
        (None, False, WHERE),
        (None, True, WHERE),
        (MemoryConfig(), False, WHERE.removesuffix(".lora_A.default")),
    ],
)
def test_the_job_stops_and_names_the_step_and_the_layer(
    folder, validation, memory, compiled, where
):
    loss = objective(folder, memory=memory)
    if compiled:
        unwrap_gemma(loss.model).model.compile(backend="eager")
    num_hooks = sum(len(module._forward_hooks) for module in loss.modules())

    def after_step(step, _):
        if step == 2:
            poison(loss)

    with pytest.raises(
        TrainingDiverged,
        match=rf"^step 3: loss nan, .*first in the output of {where} \(worker 0\); l",
    ):
        run(loss, validation, after_step=after_step)
    assert sum(len(module._forward_hooks) for module in loss.modules()) == num_hooks


def test_a_skipped_step_changes_nothing_and_is_counted_and_printed(folder, validation, capsys):
    loss = objective(folder)
    optimizer = build_optimizer(loss, OPTIM)
    stream = batches(60)
    trained_on, snapshots, undo = [], [], []

    def after_step(step, micro_batches):
        trained_on.append(sum(int(batch["num_examples"].sum()) for batch in micro_batches))
        if step == 3:
            undo.pop()()
        snapshots.append(copy.deepcopy((weight(loss).detach(), optimizer.state[weight(loss)])))
        if step == 2:
            undo.append(poison(loss, math.nan))

    state, context = run(
        loss,
        validation,
        stream=stream,
        optimizer=optimizer,
        after_step=after_step,
        on_nonfinite="skip",
    )

    assert (state.step, state.num_skipped_steps) == (6, 1)
    torch.testing.assert_close(snapshots[2], snapshots[1], rtol=0, atol=0)
    assert not torch.equal(snapshots[3][0], snapshots[2][0])
    given = [int(batch["num_examples"].sum()) for batch, _ in stream[:6]]
    assert trained_on == [*given[:2], 0, *given[3:]]
    assert (state.num_examples, state.num_skipped_examples) == (sum(trained_on), given[2])
    skipped = [m["train/skipped_steps"] for _, m in context.metrics if "train/loss" in m]
    assert skipped == [0, 0, 1, 1, 1, 1]
    assert [step for step, loss in enumerate(context.losses(), 1) if not math.isfinite(loss)] == [3]
    assert len(context.losses()) == 6

    printed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert len(printed) == 1
    assert printed[0].startswith(
        "step 3: loss nan, gradient norm nan; first in the output of model.layers.1"
    )
    assert printed[0].endswith("the step is skipped")
    assert state_from_json(state_to_json(state)) == state


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_an_evaluation_that_is_not_finite_is_printed_and_saves_no_checkpoint(
    folder, validation, policy, capsys
):
    loss = objective(folder)

    def after_step(step, _):
        if step == 2:
            poison(loss)

    message = f"step 2: evaluation loss nan; first in the output of {WHERE}"
    context = Recorder()
    changes = {"max_steps": 2, "after_step": after_step, "on_nonfinite": policy, "context": context}
    if policy == "stop":
        with pytest.raises(TrainingDiverged, match=message):
            run(loss, validation, **changes)
    else:
        run(loss, validation, **changes)
        assert message in capsys.readouterr().err
        assert [save for *_, save in context.reports] == [False, False]


def work(rank, size, folder, port, out):
    """Worker 1 spoils its weights at step 3, and restores them after a skipped step."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=size)
    seen = {}
    for strategy in ("ddp", "fsdp"):
        for policy in ("skip", "stop"):
            seen[strategy, policy] = spoilt_at_step_3(
                folder, rank, size, strategy=strategy, on_nonfinite=policy
            )
    torch.save(seen, f"{out}-{rank}")
    dist.destroy_process_group()


def spoilt_at_step_3(folder, rank, size, **config):
    """Return (number of skipped steps, True if the trained weights are finite), or the error."""
    loss, undo = objective(folder), []

    def after_step(step, _):
        if step == 3:
            undo.pop()()
        elif step == 2:
            undo.append(poison(loss) if rank == 1 else lambda: None)

    stream, held_out = (batches(num, rank=rank, num_workers=size) for num in (90, 12))
    try:
        state, _ = run(
            loss,
            [batch for batch, _ in held_out],
            stream=stream,
            context=Recorder(rank, size),
            after_step=after_step,
            gradient_accumulation_steps=2,
            max_steps=4,
            **config,
        )
    except TrainingDiverged as error:
        return str(error)
    return state.num_skipped_steps, all(
        bool(p.isfinite().all()) for p in loss.parameters() if p.requires_grad
    )


def test_workers_skip_and_stop_together_and_name_the_worker(folder, tmp_path, free_port):
    run_two_processes(work, (2, folder, free_port, str(tmp_path / "out")))
    one, other = (torch.load(f"{tmp_path}/out-{rank}") for rank in (0, 1))
    assert one == other
    for strategy, first in (("ddp", 1), ("fsdp", 0)):  # a spoilt shard is gathered by all
        assert one[strategy, "skip"] == (1, True)
        assert one[strategy, "stop"].startswith("step 3: loss nan")
        assert f"first in the output of {WHERE} (worker {first}); " in one[strategy, "stop"]


@pytest.mark.parametrize("memory", [None, MemoryConfig()])
def test_fp16_halves_its_scale_until_gradients_fit_and_then_trains(
    folder, validation, capsys, memory
):
    loss = objective(folder, dtype=torch.float16, memory=memory, train_embeddings=True)
    state, context = run(
        loss,
        validation,
        stream=batches(260, micro_batch_size=2),
        state=TrainState(loss_scale=2.0**28),
        max_steps=40,
        precision="fp16",
    )

    printed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert 3 <= state.num_skipped_steps == len(printed) < 20
    assert printed[0].startswith("step 1: loss ")
    assert "first in the gradient of " in printed[0]
    assert printed[0].endswith(f"the step is skipped and the loss scale {2**28} halved")
    assert state.loss_scale == 2.0 ** (28 - state.num_skipped_steps)
    assert all(map(math.isfinite, context.losses()))
    assert context.losses()[-1] < 0.8 * context.losses()[0]


@pytest.mark.parametrize("memory", [None, MemoryConfig()])
def test_fp16_trains_as_fp32_does(folder, validation, memory):
    runs = []
    for precision, dtype in (("fp32", torch.float32), ("fp16", torch.float16)):
        loss = objective(folder, dtype=dtype, memory=memory)
        state, context = run(
            loss, validation, precision=precision, state=TrainState(loss_scale=2.0**10)
        )
        assert state.num_skipped_steps == 0
        runs.append(context.losses())
    assert runs[1] == pytest.approx(runs[0], rel=2e-3)


def test_fp16_resumes_with_the_scale_it_had(folder, validation, tmp_path):
    stream, changes = batches(60), {"precision": "fp16", "on_nonfinite": "stop"}

    # without interruption
    state, whole = run(
        objective(folder, dtype=torch.float16),
        validation,
        stream=stream,
        max_steps=10,
        state=TrainState(loss_scale=2.0**26),
        **changes,
    )

    # until the checkpoint
    first, second = (objective(folder, dtype=torch.float16) for _ in range(2))
    optimizer, other = build_optimizer(first, OPTIM), build_optimizer(second, OPTIM)
    half, context = run(
        first,
        validation,
        stream=stream,
        max_steps=5,
        state=TrainState(loss_scale=2.0**26),
        optimizer=optimizer,
        **changes,
    )
    assert half.num_skipped_steps > 0
    checkpoint.save_checkpoint(tmp_path, first.model, optimizer, state_to_json(half))

    # resumed
    restored = state_from_json(checkpoint.restore_checkpoint(tmp_path, second.model, other))
    rest_state, rest = run(
        second,
        validation,
        stream=stream[5:],
        max_steps=10,
        state=restored,
        optimizer=other,
        **changes,
    )
    assert context.losses() + rest.losses() == whole.losses()
    assert (rest_state.loss_scale, rest_state.num_good_steps) == (
        state.loss_scale,
        state.num_good_steps,
    )


def test_fp16_keeps_a_residual_stream_beyond_its_own_range(folder):
    """Gemma 2's residual stream is reported to reach 200,000; the fp16 maximum is 65,504."""
    (sequence,) = pack_examples(examples(4), 200)
    losses = {}
    for dtype in (torch.float16, torch.float32):
        loss = objective(folder, dtype=dtype, train_embeddings=True)
        layers = unwrap_gemma(loss.model).model.layers
        seen = []
        layers[0].register_forward_hook(
            lambda _module, _inputs, output, seen=seen: seen.append(output)
        )
        with torch.no_grad():
            layers[0].post_feedforward_layernorm.weight.fill_(60_000.0)
            losses[dtype] = float(loss(**tensors(sequence))[0])
        assert {output.dtype for output in seen} == {torch.float32}
        assert seen[0].abs().max() > 100_000
    assert losses[torch.float16] == pytest.approx(losses[torch.float32], rel=5e-3)


def test_the_loss_scale_changes_as_in_torch_grad_scaler():
    """Overflows, then enough steps without one to double: all rules of torch.amp.GradScaler."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=INITIAL_LOSS_SCALE)
    ours, good = INITIAL_LOSS_SCALE, 0
    for step in range(4500):
        finite = step not in {0, 1, 7, 2100, 4200}
        parameter.grad = torch.tensor([1.0 if finite else math.inf])
        scaler.scale(torch.zeros(()))
        scaler.step(optimizer)
        scaler.update()
        ours, good = update_loss_scale(ours, good, finite=finite)
        assert ours == scaler.get_scale(), step
    assert ours == 2.0**13
    assert update_loss_scale(1.0, 5, finite=False) == (1.0, 0)
