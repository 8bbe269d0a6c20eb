"""The plan has the bytes of a real step, for few layers as for all, and the longest sequence."""

import dataclasses
import itertools

import pytest
import torch

from app.config import load_config
from app.evaluation.caption_cache import CaptionCache
from app.evaluation.generate import read_prompts, read_tokens
from app.gemma.config import ModelConfig
from app.gemma.load import DTYPES, autocast, count_parameters, evaluation_mode, unwrap_gemma
from app.gemma.published import load_model_config_offline
from app.jobs.plan import get_step_settings
from app.memory_plan import inference, peak
from app.memory_plan.inference import simulate_caption_bytes
from app.memory_plan.simulate import (
    CATEGORIES,
    MemoryTimeline,
    build_meta_model,
    list_frozen_tensors,
)
from tests.tiny import batches, gemma2_config, objective, save_model

SETTINGS = {
    "as shipped": [],
    "eager": ["model.attention=eager"],
    "no checkpointing": ["memory.gradient_checkpointing=false"],
    "tiled": ["memory.tile_tokens=16"],
    "offloaded": ["memory.offload=true", "memory.tile_tokens=16"],
    "last layer kept": ["memory.keep_layers=1"],
    "two layers kept": ["memory.keep_layers=2"],
    "six layers kept": ["memory.keep_layers=6"],
    "eight layers kept": ["memory.keep_layers=8"],
    "embedding on the host": ["memory.embedding=host"],
    "8-bit optimizer": ["optim.kind=adamw_8bit"],
    "16-bit base model": ["quantization.kind=none"],
    "single quantisation": ["quantization.double_quant=false"],
    "accumulated": ["train.gradient_accumulation_steps=4"],
    "dropout": ["lora.dropout=0.1"],
    "fp16": ["train.precision=fp16"],
    "fp32": ["train.precision=fp32"],
    "two sequences": ["train.micro_batch_size=2"],
}


def job(model, *overrides):
    small = [
        f"model.name={model}",
        "train.precision=bf16",
        "data.sequence_tokens=48",
        "scaling.num_workers=1",
        "lora.rank=4",
        "lora.alpha=8",
    ]
    return load_config(None, [*small, *overrides])


@pytest.mark.parametrize(
    ("size", "parameters"), [("2b", 2_614_341_888), ("9b", 9_241_705_984), ("27b", 27_227_128_320)]
)
def test_the_published_sizes_have_as_many_parameters_as_published(size, parameters, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = load_model_config_offline(ModelConfig(name=f"google/gemma-2-{size}-it"))
    base_model = build_meta_model(
        model, load_config(None).quantization, attention="eager", dtype=torch.bfloat16
    )
    assert sum(p.numel() for p in base_model.parameters()) == parameters
    assert count_parameters(base_model)[0] == 0
    assert (model.sliding_window, model.attn_logit_softcapping, model.final_logit_softcapping) == (
        4096,
        50.0,
        30.0,
    )


@pytest.mark.parametrize("overrides", SETTINGS.values(), ids=SETTINGS)
def test_a_simulated_step_holds_the_bytes_of_a_real_one(overrides, tmp_path):
    """Every storage of a real step on real weights is counted by the same rules."""
    config = job(save_model(tmp_path), *overrides)
    num_sequences, tokens = config.train.micro_batch_size, config.data.sequence_tokens
    loss = objective(
        config.model.name,
        kind=config.quantization.kind,
        double_quant=config.quantization.double_quant,
        dtype=DTYPES[config.train.precision],
        attention=config.model.attention,
        memory=config.memory,
        **config.lora.model_dump(include={"rank", "alpha", "dropout"}),
    )
    batch = {
        name: column.copy()
        for name, column in next(iter(batches(30, micro_batch_size=num_sequences)))[0].items()
    }
    batch["targets"][:] = batch["input_ids"]
    batch["position_ids"][:] = range(tokens)
    with MemoryTimeline(num_sequences * tokens) as timeline:
        stages = peak.trace_step(get_step_settings(config), loss, timeline, batch)
    real = max(
        (peak._find_highest(name, live) for name, live in stages.items()),
        key=lambda found: found.num_bytes,
    )
    simulated = peak.simulate_peak(dataclasses.replace(get_step_settings(config), on_gpu=False))
    assert simulated.stage == real.stage
    assert simulated.by_category == pytest.approx(real.by_category, rel=0.002, abs=64)


@pytest.mark.parametrize(
    "names",
    [
        ("as shipped",),
        ("no checkpointing", "eager", "two sequences"),
        ("last layer kept",),
        ("two layers kept",),
        ("six layers kept", "tiled"),
        ("eight layers kept", "accumulated"),
    ],
    ids="+".join,
)
def test_few_layers_give_the_memory_of_all_layers(names, tmp_path, monkeypatch):
    gemma2_config(num_hidden_layers=14).save_pretrained(tmp_path)
    config = job(tmp_path, *itertools.chain.from_iterable(SETTINGS[name] for name in names))
    model = load_model_config_offline(config.model)
    settings = get_step_settings(config)
    whole = peak._simulate_step(settings, model)
    simulated = record_layers(monkeypatch)
    for name, live in peak._simulate_layers(settings, model).items():
        if name == "update":
            assert live.sum() == whole[name].sum(axis=1).max()
        else:
            assert (live == whole[name]).all(), name
    assert max(simulated) <= 8


def record_layers(monkeypatch):
    """Return a list that will hold the number of layers of each simulation."""
    simulated, simulate_step = [], peak._simulate_step

    def simulate(settings, model):
        simulated.append(model.num_hidden_layers)
        return simulate_step(settings, model)

    monkeypatch.setattr(peak, "_simulate_step", simulate)
    return simulated


@pytest.mark.parametrize("kept", [0, 3, 4, 6, 8, 11, 20])
def test_the_peak_is_that_of_all_layers_whatever_number_is_kept(kept, tmp_path):
    gemma2_config(num_hidden_layers=12).save_pretrained(tmp_path)
    settings = get_step_settings(job(tmp_path, f"memory.keep_layers={kept}"))
    stages = peak._simulate_step(settings, load_model_config_offline(settings.model))
    highest = max(live.sum(axis=1).max() for live in stages.values())
    assert peak.simulate_peak(settings).num_bytes == highest


EVALUATIONS = {
    "as shipped": [],
    "embedding on the host": ["memory.embedding=host"],
    "fp32": ["train.precision=fp32"],
    "one drawing": ["evaluate.generation_batch_size=1"],
    "eager": ["model.attention=eager"],
}


@pytest.mark.parametrize("overrides", EVALUATIONS.values(), ids=EVALUATIONS)
def test_a_simulated_caption_holds_the_bytes_of_a_real_one(overrides, tmp_path):
    """A real cache of 160 tokens on real weights: full of prompts, then of eight short ones."""
    limits = ["evaluate.max_cache_tokens=160", "evaluate.max_new_tokens=8"]
    config = job(save_model(tmp_path), *limits, "evaluate.generation_batch_size=8", *overrides)
    dtype = DTYPES[config.train.precision]
    loss = objective(config.model.name, dtype=dtype, attention="blockwise", memory=config.memory)
    gemma = unwrap_gemma(loss.model)
    num_prompts = config.evaluate.generation_batch_size
    num_slots = 160 if num_prompts > 1 else 56
    with MemoryTimeline(1) as timeline, evaluation_mode(loss), autocast(torch.device("cpu"), dtype):
        trained = [p for p in loss.parameters() if p.requires_grad]
        timeline.start({"weights": list_frozen_tensors(loss), "lora": trained})
        read_prompts(gemma, CaptionCache(1, num_slots), [[3] * num_slots])
        cache = CaptionCache(num_prompts, num_slots // num_prompts)
        tokens = torch.zeros(num_prompts, 1, dtype=torch.int64)
        read_tokens(gemma, cache, tokens, tokens)
    real = max(live.sum(axis=1).max() for live in timeline.by_stage().values())
    settings = dataclasses.replace(get_step_settings(config), on_gpu=False)
    assert simulate_caption_bytes(settings, config.evaluate) == pytest.approx(real, rel=0.005)


def test_few_layers_give_the_memory_of_an_evaluation_of_all_layers(tmp_path, monkeypatch):
    gemma2_config(num_hidden_layers=10).save_pretrained(tmp_path)
    config = job(tmp_path, "evaluate.micro_batch_size=3", "evaluate.max_cache_tokens=2000")
    settings = get_step_settings(config)
    simulations = (inference.simulate_loss_bytes, inference.simulate_caption_bytes)
    few = [simulate(settings, config.evaluate) for simulate in simulations]
    monkeypatch.setattr(inference, "MORE_LAYERS", 10)
    inference._simulate_loss.cache_clear()
    assert [simulate(settings, config.evaluate) for simulate in simulations] == few


def test_settings_of_training_change_no_byte_of_an_evaluation_loss(tmp_path):
    gemma2_config(num_hidden_layers=2).save_pretrained(tmp_path)
    changed = ["memory.keep_layers=1", "memory.offload=true", "optim.kind=adamw_8bit"]
    plain, other = (get_step_settings(job(tmp_path, *some)) for some in ([], changed))
    plain = dataclasses.replace(plain, num_workers=1)
    other = dataclasses.replace(other, num_workers=2)
    assert inference._simulate_loss(plain) == inference._simulate_loss(other)


def test_captions_take_the_memory_of_their_cache_and_not_of_all_pairs_of_tokens(tmp_path):
    gemma2_config(num_hidden_layers=2).save_pretrained(tmp_path)

    def simulate(tokens, cache_tokens):
        config = job(tmp_path, f"evaluate.max_cache_tokens={cache_tokens}", "model.attention=eager")
        settings = get_step_settings(config, sequence_tokens=tokens)
        return inference.simulate_caption_bytes(settings, config.evaluate)

    by_length = [simulate(tokens, 1) for tokens in (2048, 4096)]
    assert by_length[1] < 2.1 * by_length[0]
    # keys and values of two layers, two heads and 32 numbers in bf16
    assert simulate(2048, 9000) - simulate(2048, 8000) == 1000 * 2 * 2 * 2 * 32 * 2


def test_a_gpu_kernel_keeps_no_scores(tmp_path):
    gemma2_config(num_hidden_layers=2).save_pretrained(tmp_path)
    eager, fused = (
        [
            peak.simulate_peak(
                get_step_settings(job(tmp_path, f"model.attention={kind}"), sequence_tokens=tokens)
            ).num_bytes
            for tokens in (512, 1024)
        ]
        for kind in ("eager", "flash_attention_2")
    )
    assert eager[1] > 3 * eager[0]
    assert fused[1] < 2 * fused[0]


def test_a_gpu_multiplies_scores_and_gradients_apart_in_the_softmax(tmp_path):
    """As measured: the backward pass on a GPU holds one more [heads, S, S] than on a CPU."""
    gemma2_config(num_hidden_layers=2).save_pretrained(tmp_path)
    config = job(tmp_path, "model.attention=eager")
    settings = get_step_settings(config, sequence_tokens=512)
    gpu, cpu = (
        peak.simulate_peak(dataclasses.replace(settings, on_gpu=on_gpu)).num_bytes
        for on_gpu in (True, False)
    )
    assert gpu - cpu == 4 * 512 * 512 * 4


@pytest.mark.parametrize("peak_bytes", [
    lambda tokens: 600 + 2 * tokens,
    lambda tokens: max(600_000 + tokens // 64, 200_000 + 8 * tokens),
    lambda tokens: max(10**6, 5 * tokens + tokens**2 // 1000),
])  # fmt: skip
def test_the_longest_sequence_is_the_longest_that_fits(peak_bytes):
    known = {}
    simulated = []
    for limit in (10**9, 3_000_000, 650_000, 90_000, 700, 0):
        found = peak.find_longest_sequence(
            lambda tokens: simulated.append(tokens) or peak_bytes(tokens),
            limit,
            known,
            max_tokens=2**18,
        )
        fitting = [tokens for tokens in range(64, 2**18 + 1, 64) if peak_bytes(tokens) <= limit]
        assert found in fitting or found == 0
        assert max(fitting, default=0) - found <= 64
    assert len(simulated) == len(set(simulated)) < 40


def test_categories_are_the_bytes_that_they_name(tmp_path):
    """Compare with a count by hand: rank 4 on seven modules of two layers of the tiny model."""
    save_model(tmp_path)
    config = job(tmp_path, "quantization.kind=none", "train.gradient_accumulation_steps=2")
    found = peak.simulate_peak(get_step_settings(config)).by_category
    widths = [(64, 128), (64, 64), (64, 64), (128, 64), (64, 128), (64, 128), (128, 64)]
    trained = 2 * sum(4 * (a + b) for a, b in widths)
    frozen = 96 * 64 + 64 + 2 * (sum(a * b for a, b in widths) + 4 * 64)
    rotary = 2 * 16 * 4
    assert list(found) == list(CATEGORIES)
    assert found["lora"] == found["gradients"] == 4 * trained
    assert found["optimizer"] == 2 * 4 * trained + 4 * len(
        list(itertools.product(range(2), widths, range(2)))
    )
    assert found["weights"] == 2 * frozen + rotary + 2  # and the scale of embeddings
