"""Draws of a search space, and the same space as Optuna distributions."""

import math
import statistics

from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution

from tune.config import Choice, LogUniform, SearchConfig, Uniform
from tune.space import build_optuna_distributions, sample_space

SPACE = {
    "optim.learning_rate": LogUniform(loguniform=(1e-5, 1e-1)),
    "lora.dropout": Uniform(uniform=(0.0, 0.5)),
    "lora.rank": Choice(choice=(8, 16.0, "all", True)),
}


def test_draws_are_plain_values_that_a_seed_repeats() -> None:
    draws = sample_space(SPACE, 50, seed=7)
    assert draws == sample_space(SPACE, 50, seed=7) != sample_space(SPACE, 50, seed=8)
    assert draws[:20] == sample_space(SPACE, 20, seed=7)  # more trials continue the same sequence
    assert {tuple(draw) for draw in draws} == {tuple(SPACE)}
    assert {type(draw["optim.learning_rate"]) for draw in draws} == {float}
    assert {type(draw["lora.rank"]) for draw in draws} == {int, float, str, bool}


def test_draws_have_the_requested_distribution() -> None:
    draws = sample_space(SPACE, 4000, seed=0)
    exponents = [math.log10(draw["optim.learning_rate"]) for draw in draws]
    dropouts = [draw["lora.dropout"] for draw in draws]
    for values, low, high in ((exponents, -5, -1), (dropouts, 0, 0.5)):
        assert low <= min(values)
        assert max(values) <= high
        quartiles = [low + (high - low) * share for share in (0.25, 0.5, 0.75)]
        for seen, expected in zip(statistics.quantiles(values, n=4), quartiles, strict=True):
            assert abs(seen - expected) < 0.05 * (high - low)
    for value in ("all", 8, 16.0, True):
        assert abs(sum(draw["lora.rank"] is value for draw in draws) - 1000) < 120


@given(
    low=st.floats(1e-300, 1e300),
    ratio=st.floats(1.0, 1e6, exclude_min=True),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_log_uniform_draw_never_leaves_its_range(low: float, ratio: float, seed: int) -> None:
    high = max(low * ratio, math.nextafter(low, math.inf))
    (draw,) = sample_space({"x": LogUniform(loguniform=(low, high))}, 1, seed=seed)
    assert low <= draw["x"] <= high


def test_optuna_gets_the_same_space() -> None:
    assert build_optuna_distributions(SPACE) == {
        "optim.learning_rate": FloatDistribution(1e-5, 1e-1, log=True),
        "lora.dropout": FloatDistribution(0.0, 0.5),
        "lora.rank": CategoricalDistribution((8, 16.0, "all", True)),
    }


def test_a_space_is_read_from_yaml_values() -> None:
    config = SearchConfig.model_validate(
        {
            "space": {
                "optim.learning_rate": {"loguniform": [1e-5, 1e-1]},
                "lora.rank": {"choice": [8, 16]},
            }
        }
    )
    assert config.space == {
        "optim.learning_rate": LogUniform(loguniform=(1e-5, 1e-1)),
        "lora.rank": Choice(choice=(8, 16)),
    }
    assert [type(value) for value in sample_space(config.space, 1, seed=0)[0].values()] == [
        float,
        int,
    ]
