"""Probes of attention and softcaps, against transformers' eager attention with all its scores."""

import math
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch

from app.evaluation.probes.attention import count_blocks, measure_attention
from app.evaluation.probes.heat_map import PANELS, render_heat_map
from app.evaluation.probes.model import list_metrics, probe_model
from app.gemma.flex_attention import build_block_mask
from app.gemma.load import CaptionLoss, unwrap_gemma
from benchmarks.probes import (
    HEAD_STATISTICS,
    LOGIT_STATISTICS,
    find_largest_difference,
    measure_eager,
    measure_tensor_bytes,
)
from tests.reference import inputs, jogged
from tests.tiny import examples, objective, save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), num_hidden_layers=4, initializer_range=0.25)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_probes_equal_the_statistics_of_eager_attention(folder, dtype):
    loss = jogged(objective(folder, kind="none", dtype=torch.float32, rank=8, dropout=0.3))
    loss = CaptionLoss(loss.model.to(dtype), torch.float32)  # no autocast
    made = examples(5)
    probe, eager = probe_model(loss, made), measure_eager(loss, made)
    differences = find_largest_difference(probe, eager)
    assert differences.keys() == {*HEAD_STATISTICS, *LOGIT_STATISTICS}
    assert max(differences.values()) < 1e-6, differences
    # heads differ, so that an exchange of two would be seen, and both caps bend some values
    assert min(float(eager[name].std()) for name in HEAD_STATISTICS) > 1e-3
    assert 0.001 < probe.logit_bent_share < 0.5
    assert loss.training
    assert loss.model.training
    assert unwrap_gemma(loss.model).config._attn_implementation == "eager"


@pytest.mark.parametrize("window", [None, 1, 100, 512])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_blocks_of_a_long_document_add_up(window, softcap):
    """1,100 tokens: nine blocks of queries, and three tiles of keys in the last one."""
    length, model_window = 1100, 300
    (query, key, _), _ = inputs(1, length, heads=4, kv_heads=2)
    query, key = query[0].detach(), key[0].detach()
    sums = measure_attention(
        query, key, scale=0.7, softcap=softcap, layer_window=window, model_window=model_window
    )
    scores = query @ key.repeat_interleave(2, dim=0).transpose(1, 2) * 0.7
    distance = torch.arange(length)[:, None] - torch.arange(length)
    seen = (distance >= 0) & (distance < (window or length))
    capped = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    weights = capped.masked_fill(~seen, -torch.inf).softmax(dim=-1)

    expected = {
        "entropy": -torch.special.xlogy(weights, weights).sum((1, 2)),
        "inside": (weights * (distance < model_window)).sum((1, 2)),
    }
    for name, value in expected.items():
        torch.testing.assert_close(getattr(sums, name).flatten(), value, atol=1e-9, rtol=1e-12)
    assert sums.scores.num_values == int(seen.sum())
    largest = scores.abs().masked_fill(~seen, 0).amax((1, 2))
    torch.testing.assert_close(sums.scores.largest.flatten(), largest)
    if softcap is None:
        assert float(sums.scores.lost.sum()) == float(sums.scores.num_bent.sum()) == 0
    else:
        lost = (torch.tanh(scores / softcap) ** 2 * seen).sum((1, 2))
        torch.testing.assert_close(sums.scores.lost.flatten(), lost)


@pytest.mark.parametrize("window", [None, 1, 100, 128, 129, 512])
@pytest.mark.parametrize("length", [1, 128, 1100])
def test_the_counted_blocks_are_those_of_flexattention(window, length):
    mask = build_block_mask(torch.zeros(1, length, dtype=torch.int64), window)
    expected = int(mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum())
    assert count_blocks(length, window) == expected


def test_memory_at_4096_tokens_is_less_than_a_twentieth_of_eager_attention():
    """Eager attention holds the capped scores and their softmax at once, [H, S, S] in fp32."""
    query, key = torch.randn(4, 4096, 32), torch.randn(2, 4096, 32)
    peak = measure_tensor_bytes(
        lambda: measure_attention(
            query, key, scale=0.2, softcap=50.0, layer_window=None, model_window=4096
        )
    )
    assert 4 * 128 * 512 * 4 < peak < 0.05 * (2 * 4 * 4096**2 * 4)


def test_an_attention_to_one_key_has_no_entropy_and_an_even_one_has_the_logarithm_of_its_keys():
    query, key = torch.zeros(2, 64, 8), torch.randn(1, 64, 8)
    even = measure_attention(query, key, scale=1.0, softcap=5.0, layer_window=None, model_window=16)
    expected = sum(math.log(n) for n in range(1, 65))
    torch.testing.assert_close(even.entropy.flatten().tolist(), [expected] * 2)
    inside = sum(min(n, 16) / n for n in range(1, 65))
    torch.testing.assert_close(even.inside.flatten().tolist(), [inside] * 2)
    sharp = measure_attention(query, key, scale=1.0, softcap=5.0, layer_window=1, model_window=16)
    assert sharp.entropy.abs().max() == 0
    assert sharp.inside.flatten().tolist() == [64, 64]


def test_metrics_have_means_of_the_model_and_of_every_layer(folder):
    probe = probe_model(objective(folder), examples(2))
    metrics = list_metrics(probe)
    assert metrics["probe/attention_entropy"] == pytest.approx(
        sum(metrics[f"probe/layer_{i:02d}/attention_entropy"] for i in range(4)) / 4
    )
    with_window = {name for name in metrics if name.endswith("skipped_share")}
    assert with_window == {
        "probe/skipped_share", "probe/layer_00/skipped_share", "probe/layer_02/skipped_share",
    }  # fmt: skip
    assert {name for name in metrics if name.endswith("window_mass")} == {
        "probe/window_mass", "probe/layer_01/window_mass", "probe/layer_03/window_mass",
    }  # fmt: skip
    assert all(math.isfinite(value) for value in metrics.values())


def test_a_heat_map_has_every_value_of_every_head(folder):
    probe = probe_model(objective(folder), examples(2))
    root = ElementTree.fromstring(render_heat_map(probe, title="a < b"))
    titles = [title.text for title in root.iter("{http://www.w3.org/2000/svg}title")]
    expected = [
        f"layer {i}, head {head}: {value:.4g}"
        for name, _ in PANELS
        for i, layer in enumerate(probe.layers)
        for head, value in enumerate(getattr(layer, name))
    ]
    assert titles == expected
    assert len(titles) == len(PANELS) * 4 * 4


def test_a_heat_map_of_values_that_are_not_finite_is_drawn(folder):
    probe = probe_model(objective(folder), examples(1))
    broken = replace(probe, layers=[replace(probe.layers[0], entropy=[math.nan] * 4)])
    assert "layer 0, head 3: nan" in render_heat_map(broken, title="")
