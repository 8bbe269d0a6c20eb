"""The counted operations of a step, against torch's counter on the real model, part by part."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from app.gemma.config import LoraConfig
from app.gemma.flops import Workload, count_pairs, count_step_flops
from app.training.speed import SpeedMeter, measure_speed
from app.training.step import StepTotals
from data_pipeline.stream.encode import IGNORE_INDEX
from tests.reference import row
from tests.tiny import gemma2_config, objective, save_model

ATTENTION = torch.ops.aten.bmm
ADAPTERS = [
    {},
    {"train_embeddings": True},
    {"target_modules": ("q_proj", "v_proj")},
    {"target_modules": ("k_proj", "down_proj")},
    {"target_modules": ("v_proj",)},
    {"target_modules": ("o_proj",), "rank": 3},
    {"target_modules": ("up_proj",)},
    {"target_modules": ("down_proj",)},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), num_hidden_layers=3)


def count_addmm(into, left, right, **kwargs):
    return 2 * left[0] * left[1] * right[1]


def count_by_torch(folder, adapter, batch):
    """Return the operations of a real step: of attention, and of all parts.

    Torch counts the products of eager attention over all pairs of tokens.
    """
    loss = objective(folder, kind="none", **adapter)
    in_place = {torch.ops.aten.addmm_: count_addmm}  # torch knows only its other form
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        value, _ = loss(**batch)
        value.backward()
    return counter.get_flop_counts()["Global"][ATTENTION], counter.get_total_flops()


def count(adapter, batch):
    num_tokens = batch["input_ids"].shape[1]
    num_targets = int((batch["targets"] != IGNORE_INDEX).sum())
    every_pair = num_tokens**2  # as eager attention computes them
    lora = LoraConfig(**{"rank": 4, "alpha": 8, **adapter})
    work = Workload(num_tokens, num_targets, every_pair, every_pair)
    return count_step_flops(gemma2_config(num_hidden_layers=3), lora, work)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=str)
def test_the_counted_operations_are_those_of_a_real_step(folder, adapter):
    counted = count(adapter, row())
    assert (counted.attention, counted.total) == count_by_torch(folder, adapter, row())


def test_each_part_is_that_of_a_real_step(folder):
    """LoRA grows with the rank, the loss with the labels; the layers have the rest."""
    batch, counted = row(), count({}, row())
    unlabelled = {**batch, "targets": torch.full_like(batch["targets"], IGNORE_INDEX)}
    unlabelled["targets"][0, 0] = 5
    attention, total = count_by_torch(folder, {}, batch)
    lora = count_by_torch(folder, {"rank": 8}, batch)[1] - total
    num_targets = int((batch["targets"] != IGNORE_INDEX).sum())
    loss_of_others = total - count_by_torch(folder, {}, unlabelled)[1]

    assert counted.lora == lora
    assert counted.loss * (num_targets - 1) == loss_of_others * num_targets
    assert counted.base == total - lora - counted.loss - attention


@pytest.mark.parametrize("window", [None, 1, 3, 8])
def test_pairs_are_those_of_a_mask_of_each_document(window):
    random = np.random.default_rng(0)
    lengths = [[int(n) for n in random.integers(1, 12, 4)] for _ in range(3)]
    rows = [np.concatenate([np.arange(n) for n in each] + [np.arange(7)]) for each in lengths]
    width = max(map(len, rows))
    position_ids = np.stack([np.pad(one, (0, width - len(one))) for one in rows])

    seen = 0
    for document in (n for each in lengths for n in each):
        mask = np.tril(np.ones((document, document)))
        seen += int(mask.sum() if window is None else np.triu(mask, 1 - window).sum())
    assert count_pairs(position_ids, np.array([sum(each) for each in lengths]), window) == seen


def test_each_kind_of_layer_counts_its_own_pairs():
    model, lora = gemma2_config(num_hidden_layers=4), LoraConfig()
    full, windowed = (
        count_step_flops(model, lora, Workload(0, 0, *pairs)).total for pairs in ((10, 0), (0, 10))
    )
    # forward 2 products and backward 4; the first layer, which has a window, needs them too
    assert full == windowed == 6 * 2 * 10 * 4 * 32 * 2


def test_the_utilisation_is_the_share_of_the_peak_of_all_workers():
    model, lora = gemma2_config(), LoraConfig()
    totals = StepTotals(30, 90, 100, 5, 0, 0, 700, 400)
    flops = count_step_flops(model, lora, Workload(90, 30, 700, 400)).total
    found = measure_speed(
        SpeedMeter(model, lora, num_workers=2, peak_flops=flops / 8), totals,
        wait_seconds=1.0, step_seconds=9.0,
    )  # fmt: skip
    assert found["speed/mfu"] == pytest.approx(0.4)
    assert found["speed/tflops"] == pytest.approx(flops / 1e13)
    assert found["speed/tokens_per_second"] == 9.0
    unknown = measure_speed(
        SpeedMeter(model, lora, num_workers=2, peak_flops=None), totals,
        wait_seconds=1.0, step_seconds=9.0,
    )  # fmt: skip
    assert "speed/mfu" not in unknown
    assert unknown["speed/tflops"] == found["speed/tflops"]
