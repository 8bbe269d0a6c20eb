"""Code that runs on a GPU only, compared with definitions and with the CPU: `make test-gpu`."""

import itertools

import pytest
import torch
from bitsandbytes.nn import Params4bit
from torch import nn

from app.config import load_config, make_paths_absolute
from app.evaluation.caption_cache import CaptionCache
from app.evaluation.generate import read_prompts, read_tokens
from app.gemma.activation_checkpoint import HostOffload
from app.gemma.attention import softcapped_attention
from app.gemma.compile_kernel import compile_kernel
from app.gemma.config import MemoryConfig
from app.gemma.load import evaluation_mode, unwrap_gemma
from app.jobs.evaluate import evaluate_job
from app.jobs.job_dir import find_adapter
from app.jobs.train import train_job
from app.jobs.worker import configure_device
from app.tracking import check_tracking
from app.training import checkpoint
from app.training.config import OptimConfig, TrainConfig
from app.training.loop import TrainSetup, TrainState, state_from_json, state_to_json, train_model
from app.training.optim import build_optimizer, get_moments, restore_moments
from data_pipeline.config import PrepareConfig
from data_pipeline.prepare.dataset import prepare_dataset
from data_pipeline.shards import open_shards
from tests.reference import (
    POLICIES,
    furthest,
    inputs,
    jogged,
    loss_and_gradients,
    naive,
    packed,
    row,
    with_gradients,
)
from tests.tiny import CPU, Recorder, batches, objective, save_model

if not torch.cuda.is_available():
    pytest.exit("tests/test_gpu.py needs a GPU that torch can use", returncode=2)

CUDA = torch.device("cuda", 0)
KINDS = ("adamw", "adamw_8bit", "paged_adamw_8bit")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


def on_gpu(batch):
    return {name: column.to(CUDA) for name, column in batch.items()}


@pytest.mark.parametrize(
    ("dtype", "width", "tolerance", "softcap", "window"),
    [
        (torch.float32, 32, 2e-5, 2.0, None),
        (torch.bfloat16, 256, 2e-2, 50.0, 129),
        (torch.float16, 128, 4e-3, None, 700),
    ],
)
def test_flex_attention_is_the_definition(dtype, width, tolerance, softcap, window):
    """Relative to the largest entry, for lengths that are and are not multiples of 128."""
    compile_kernel.cache_clear()
    torch.compiler.reset()
    for lengths in ([1, 127, 128, 44], [200, 1, 1, 1, 700], [76]):
        how = {"scale": width**-0.5, "softcap": softcap, "window": window}
        ids = packed(lengths, lengths[::-1])
        tensors, grad_output = inputs(2, sum(lengths), width=width, dtype=dtype, spread=2.0)
        exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
        truth = with_gradients(naive, exact, grad_output.double(), **how, document_ids=ids)
        on_card = [tensor.detach().to(CUDA).requires_grad_() for tensor in tensors]
        ours = with_gradients(
            softcapped_attention, on_card, grad_output.to(CUDA), **how, document_ids=ids.to(CUDA)
        )
        for mine, true in zip(ours, truth, strict=True):
            assert mine.dtype == dtype
            assert (mine.cpu().double() - true).abs().max() <= tolerance * true.abs().max(), lengths


def test_sequences_of_many_lengths_compile_a_few_kernels():
    compile_kernel.cache_clear()
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    for length, window, grad in itertools.product(range(100, 1200, 77), (None, 64), (True, False)):
        tensors, _ = inputs(1, length, width=32, dtype=torch.bfloat16)
        on_card = [tensor.detach().to(CUDA).requires_grad_(grad) for tensor in tensors]
        ids = packed([length - 50, 50]).to(CUDA)
        softcapped_attention(*on_card, scale=0.2, softcap=50.0, window=window, document_ids=ids)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 8


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-4), (torch.bfloat16, 5e-2), (torch.float16, 2e-2)],
    ids=str,
)
def test_nf4_and_lora_on_the_gpu(folder, policy, dtype, tolerance):
    """The reference: modules of transformers, PEFT and bitsandbytes, with eager attention."""
    batch = on_gpu(row())
    theirs = loss_and_gradients(jogged(objective(folder, dtype=dtype, device=CUDA)), batch)
    ours = jogged(objective(folder, dtype=dtype, attention="blockwise", memory=policy, device=CUDA))
    assert furthest(loss_and_gradients(ours, batch), theirs) < tolerance
    with evaluation_mode(ours):
        assert ours(**batch)[0].item() == pytest.approx(theirs[0], rel=tolerance / 10)


def test_a_gpu_computes_what_a_cpu_computes(folder):
    """And quantises to the same bits."""
    theirs, ours = (
        objective(
            folder, attention="blockwise", memory=MemoryConfig(), double_quant=False, device=device
        )
        for device in (CPU, CUDA)
    )
    jogged(theirs)
    for reference, parameter in zip(theirs.parameters(), ours.parameters(), strict=True):
        if parameter.requires_grad:
            parameter.data.copy_(reference.data)
        elif isinstance(parameter, Params4bit):
            assert torch.equal(reference.data, parameter.data.cpu())
    value, gradients = loss_and_gradients(ours, on_gpu(row()))
    on_cpu = {name: gradient.cpu() for name, gradient in gradients.items()}
    assert furthest((value, on_cpu), loss_and_gradients(theirs, row())) < 1e-4


@pytest.mark.parametrize("embedding", ["device", "host"])
def test_a_gpu_reads_prompts_and_tokens_as_a_cpu_does(folder, embedding):
    prompts = [[2, *range(3, number)] for number in (90, 40, 33)]
    made = {}
    for device in (CPU, CUDA):
        memory = MemoryConfig(embedding=embedding)
        loss = objective(folder, attention="blockwise", memory=memory, device=device, kind="none")
        gemma, cache = unwrap_gemma(loss.model), CaptionCache(3, 100)
        with evaluation_mode(loss):
            tokens = [read_prompts(gemma, cache, prompts)]
            lengths = torch.tensor([[len(prompt)] for prompt in prompts], device=device)
            for i in range(8):
                tokens.append(read_tokens(gemma, cache, tokens[-1], lengths + i))
        made[device] = torch.cat(tokens, dim=1).tolist()
    assert made[CPU] == made[CUDA]


def test_an_embedding_on_the_host(folder):
    batch, memory = on_gpu(row()), MemoryConfig(embedding="host")
    theirs = loss_and_gradients(jogged(objective(folder, device=CUDA)), batch)
    ours = jogged(objective(folder, memory=memory, device=CUDA))
    assert furthest(loss_and_gradients(ours, batch), theirs) < 1e-4
    assert {p.device.type for p in ours.parameters()} == {"cuda"}
    assert ours.model.get_base_model().lm_head.weight.device == CPU


def test_trained_embeddings_on_the_gpu(folder):
    batch = on_gpu(row())
    theirs = loss_and_gradients(
        jogged(objective(folder, train_embeddings=True, device=CUDA)), batch
    )
    ours = jogged(objective(folder, train_embeddings=True, memory=POLICIES["all"], device=CUDA))
    assert furthest(loss_and_gradients(ours, batch), theirs) < 1e-4


def test_offloaded_tensors_survive_the_reuse_of_their_memory():
    """The side stream runs late on purpose, after the device's memory was freed or overwritten."""
    host, sources = HostOffload(), [torch.full((1 << 22,), float(i), device=CUDA) for i in range(4)]
    waiting = [host.put(sources[0])]
    for source in sources[1:]:
        with torch.cuda.stream(host._stream):
            torch.cuda._sleep(50_000_000)
        waiting.append(host.put(source))
    del source, sources[:]
    taken = [torch.full((1 << 22,), -1.0, device=CUDA) for _ in range(8)]
    for i in (3, 2, 1, 0):
        with torch.cuda.stream(host._stream):
            torch.cuda._sleep(50_000_000)
        back = host.get(waiting.pop())
        assert bool((back == float(i)).all())
        assert (waiting[-1].back is not None) if waiting else True
        back.fill_(-2.0)
    assert all(bool((tensor == -1.0).all()) for tensor in taken)


def test_offload_takes_the_layers_inputs_off_the_card(folder):
    batch = on_gpu(row(100, 1800))
    inputs_bytes = 2 * batch["input_ids"].numel() * 64 * 2
    kept = {}
    for offload in (False, True):
        loss = objective(
            folder,
            dtype=torch.bfloat16,
            attention="blockwise",
            device=CUDA,
            memory=MemoryConfig(offload=offload),
        )
        loss(**batch)[0].backward()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        value, _ = loss(**batch)
        torch.cuda.synchronize()
        kept[offload] = torch.cuda.memory_allocated() - before
        del value
    assert kept[False] - kept[True] == pytest.approx(inputs_bytes, rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_optimizers_step_as_on_the_cpu_and_go_on_from_a_checkpoint(kind):
    def steps(model, optimizer, number):
        for _ in range(number):
            model(torch.randn(16, 128).to(model.weight.device)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    made = {}
    for device in (CPU, CUDA):
        torch.manual_seed(0)
        model = nn.Linear(128, 64, bias=False)
        before = model.weight.detach().clone()
        model = model.to(device)
        optimizer = build_optimizer(
            model, OptimConfig(kind=kind if device is CUDA else "adamw", learning_rate=1e-3)
        )
        steps(model, optimizer, 5)
        made[device] = model.weight.detach().cpu() - before
    limit = 1e-4 if kind == "adamw" else 0.1
    assert (made[CUDA] - made[CPU]).abs().max() < limit * made[CPU].abs().max()
    saved = {
        name: value.clone().cpu() for name, value in get_moments(optimizer, model.weight).items()
    }
    twin = nn.Linear(128, 64, bias=False).to(CUDA)
    twin.weight.data.copy_(model.weight.data)
    other = build_optimizer(twin, OptimConfig(kind=kind, learning_rate=1e-3))
    restore_moments(other, twin.weight, {name: value.to(CUDA) for name, value in saved.items()})
    for each, its in ((model, optimizer), (twin, other)):
        torch.manual_seed(1)
        steps(each, its, 3)
    assert torch.equal(model.weight, twin.weight)


def run(folder, stream, *, kind="adamw", device=CUDA, saved=None, resumed=None, config=None, **how):
    """The records of 24 steps; `saved`: folder of the checkpoint at step 8."""
    loss = objective(folder, attention="blockwise", device=device, train_embeddings=True, **how)
    optim = OptimConfig(kind=kind, learning_rate=1e-2, warmup_ratio=0.1)
    optimizer, context, state = build_optimizer(loss, optim), Recorder(device=device), TrainState()
    if resumed is not None:
        state = state_from_json(checkpoint.restore_checkpoint(resumed, loss.model, optimizer))
    report = context.report

    def save(state, eval_loss, *, save):
        report(state, eval_loss, save=save)
        if saved is not None and state.step == 8:
            checkpoint.save_checkpoint(saved, loss.model, optimizer, state_to_json(state))

    context.report = save
    held_out = [batch for batch, _ in batches(12, seed=9)]
    setup = TrainSetup(
        objective=loss,
        optimizer=optimizer,
        validation=held_out,
        config=TrainConfig(max_steps=24, eval_steps=8, save_steps=8, **(config or {})),
        optim=optim,
        context=context,
        compute_progress=lambda position: position.index / position.num_block_sequences,
    )
    train_model(setup, iter(stream[state.step :]), state)
    return context


@pytest.mark.parametrize("kind", KINDS)
def test_training_on_the_gpu_learns_and_goes_on_from_a_checkpoint(folder, tmp_path, kind):
    stream = batches(200)
    how = {"kind": kind, "memory": MemoryConfig(tile_tokens=16, offload=True), "dropout": 0.1}
    whole = run(folder, stream, saved=tmp_path, **how)
    assert whole.reports[-1][1] < 0.8 * whole.reports[0][1]
    rest = run(folder, stream, resumed=tmp_path, **how)
    assert rest.losses() == pytest.approx(whole.losses()[8:], rel=1e-3)


def test_a_gpu_learns_what_a_cpu_learns(folder):
    """Loss by loss, in fp32."""
    made = {}
    for device in (CPU, CUDA):
        torch.manual_seed(0)
        made[device] = run(folder, batches(200), device=device, memory=MemoryConfig()).losses()
    assert made[CUDA] == pytest.approx(made[CPU], rel=5e-3)


def test_fp16_trains_with_a_scaled_loss(folder):
    context = run(
        folder,
        batches(200),
        dtype=torch.float16,
        memory=MemoryConfig(),
        config={"precision": "fp16", "on_nonfinite": "skip"},
    )
    assert context.reports[-1][1] < 0.8 * context.reports[0][1]


def test_the_cap_is_the_allocators(tmp_path):
    free = torch.cuda.memory_reserved() / 2**30
    configure_device(load_config(None, [f"memory.max_gib_per_gpu={free + 0.5}"]), CUDA)
    try:
        kept = torch.empty(2**28, dtype=torch.uint8, device=CUDA)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            torch.empty(2**29, dtype=torch.uint8, device=CUDA)
        del kept
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, CUDA)


def test_a_job_on_ray_with_one_gpu(ray_local, tmp_path):
    """Stream, NCCL's process group, pinned batches, checkpoints, evaluation, captions."""
    prepare_dataset(
        ["scenes:400:7:list"],
        PrepareConfig(out=str(tmp_path / "shards"), validation_share=0.1),
        progress=False,
    )
    config = make_paths_absolute(
        load_config(
            "demo",
            {
                "data.shards": str(tmp_path / "shards"),
                "data.sequence_tokens": 512,
                "data.max_validation_records": 16,
                "data.shuffle_block_examples": 64,
                "train.output_dir": str(tmp_path),
                "train.max_steps": 12,
                "train.eval_steps": 4,
                "train.save_steps": 4,
                "train.precision": "bf16",
                "memory.gradient_checkpointing": True,
                "memory.offload": True,
                "memory.max_gib_per_gpu": 8,
                "memory.empty_cache_steps": 3,
                "scaling.num_workers": 1,
                "scaling.use_gpu": True,
                "tracking.uri": f"sqlite:///{tmp_path}/mlflow.db",
                "evaluate.max_captions": 6,
                "evaluate.max_new_tokens": 12,
                "evaluate.max_gallery_items": 4,
            },
        )
    )
    check_tracking(config.tracking)
    trained = train_job(config, open_shards(config.data.shards))
    assert trained.metrics["step"] == 12
    report = evaluate_job(config, open_shards(config.data.shards), find_adapter(config))
    assert report["eval_loss_after"] == pytest.approx(trained.metrics["eval_loss"], rel=1e-2)
