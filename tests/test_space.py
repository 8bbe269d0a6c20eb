"""A search space: draws, tied values, conditions, grids, corners and known points."""

import itertools
import math
import statistics
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from app.config import load_config
from app.errors import UserError
from tune.config import SearchConfig
from tune.domain import Choice, Integer, LogUniform, Uniform
from tune.space import MAX_CORNERS, list_corners, read_trial, sample_space

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


def read_space(space: dict[str, Any]) -> dict[str, Any]:
    """Read a space as from a YAML file."""
    return SearchConfig.model_validate({"space": space}).space


def refuse(**values: Any) -> str:
    with pytest.raises(ValidationError) as refused:
        SearchConfig.model_validate(values)
    return str(refused.value)


@pytest.mark.parametrize(
    ("log", "weights"),
    [
        (False, dict.fromkeys(range(1, 9), 1 / 8)),
        (True, {v: math.log((v + 0.5) / (v - 0.5)) / math.log(8.5 / 0.5) for v in range(1, 9)}),
    ],
)
def test_whole_numbers_have_the_requested_distribution(
    log: bool, weights: dict[int, float]
) -> None:
    draws = sample_space({"x": Integer(integer=(1, 8), log=log)}, 8000, seed=0)
    counts = Counter(draw["x"] for draw in draws)
    assert {type(draw["x"]) for draw in draws} == {int}
    assert counts.keys() == weights.keys()
    for value, weight in weights.items():
        assert abs(counts[value] / 8000 - weight) < 0.02


def test_a_tied_value_follows_the_paths_that_it_names() -> None:
    space = read_space(
        {
            "a.half": {"equals": "a.alpha / 2"},  # before the path that it needs
            "a.alpha": {"equals": "2 * a.rank"},
            "a.rank": {"choice": [8, 16]},
        }
    )
    draws = sample_space(space, 20, seed=0)
    assert all(list(draw) == ["a.half", "a.alpha", "a.rank"] for draw in draws)
    assert {tuple(draw.values()) for draw in draws} == {(8, 16, 8), (16, 32, 16)}


def test_a_path_with_a_condition_is_searched_only_then() -> None:
    space = read_space(
        {
            "kind": {"choice": ["sgd", "adam"]},
            "beta": {"uniform": [0.5, 0.9], "when": {"kind": "adam"}},
            "twice": {"equals": "2 * beta"},
        }
    )
    draws = sample_space(space, 50, seed=1)
    by_kind = {kind: [d for d in draws if d["kind"] == kind] for kind in ("sgd", "adam")}
    assert {tuple(draw) for draw in by_kind["sgd"]} == {("kind",)}
    assert {tuple(draw) for draw in by_kind["adam"]} == {("kind", "beta", "twice")}
    assert all(draw["twice"] == 2 * draw["beta"] for draw in by_kind["adam"])


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"a": {"equals": "2 * b"}}, "a: b in equals is not searched"),
        ({"a": {"equals": "b"}, "b": {"choice": ["x", 1]}}, "b=x in equals is not a number"),
        ({"a": {"equals": "b"}, "b": {"equals": "a"}}, "a → b → a depend on each other"),
        ({"a": {"choice": [1], "when": {"b": 1}}}, "a: when names b=1"),
        ({"a": {"choice": [1], "when": {"b": 1}}, "b": {"choice": [2]}}, "a: when names b=1"),
        ({"a": {"choice": [1], "when": {"a": 1}}}, "depend on each other"),
        ({"a": {"integer": [0, 4], "log": True}}, "low end 0 must be at least 1"),
        ({"a": {"integer": [4, 4]}}, "low end 4 must be below"),
        ({"a": {"equals": "3"}}, "names no searched path"),
    ],
)
def test_a_space_that_no_trial_could_follow_is_refused(space: dict[str, Any], message: str) -> None:
    assert message in refuse(space=space)


def test_corners_are_all_combinations_of_ends() -> None:
    space = read_space(
        {
            "lr": {"loguniform": [1e-4, 1e-2]},
            "n": {"integer": [1, 9]},
            "kind": {"choice": ["a", "b", "c"]},
            "beta": {"uniform": [0, 1], "when": {"kind": "b"}},
            "m": {"equals": "n + 1"},
        }
    )
    seen = {tuple(corner.items()) for corner in list_corners(space)}
    expected = set()
    for lr, n, kind, beta in itertools.product((1e-4, 1e-2), (1, 9), "abc", (0.0, 1.0)):
        values = {"lr": lr, "n": n, "kind": kind, "beta": beta, "m": n + 1}
        if kind != "b":
            del values["beta"]
        expected.add(tuple(values.items()))
    assert seen == expected
    assert len(list_corners(space)) == len(expected)
    assert list_corners({}) == []


def test_many_corners_are_bounded_but_each_end_is_among_them() -> None:
    space = read_space(
        {f"x{i}": {"choice": list(range(4))} for i in range(10)}
        | {"deep": {"uniform": [5, 6], "when": {"x1": 3}}}
        | {"deeper": {"choice": [7, 8], "when": {"x2": 2}}}
    )
    corners = list_corners(space)
    assert len(corners) <= MAX_CORNERS
    for path, domain in space.items():
        ends = {5.0, 6.0} if path == "deep" else set(domain.choice)
        assert {corner[path] for corner in corners if path in corner} == ends


def test_settings_that_fit_alone_but_not_together_are_refused_before_the_start() -> None:
    overrides = [
        "search.space={optim.kind: {choice: [adamw, adamw_8bit]}}",
        "search.space.parallel.strategy={choice: [ddp, zero2]}",
    ]
    with pytest.raises(UserError, match=r"optim\.kind=adamw_8bit .* parallel\.strategy=zero2\)$"):
        load_config("demo", overrides)
    conditional = "search.space.parallel.strategy={choice: [ddp, zero2], when: {optim.kind: adamw}}"
    load_config("demo", [overrides[0], conditional])


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"lr": 1.0}, "point 1: lr: 1.0 is not between"),
        ({"rank": 9}, "point 1: rank: 9 is not one of"),
        ({"lrr": 1.0}, "point 1: lrr is not drawn"),
        ({"alpha": 16}, "point 1: alpha is not drawn"),
    ],
)
def test_a_point_outside_the_space_is_named(point: dict[str, Any], message: str) -> None:
    space = {
        "lr": {"loguniform": [1e-4, 1e-2]},
        "rank": {"choice": [8, 16]},
        "alpha": {"equals": "2 * rank"},
    }
    assert message in refuse(space=space, points=[point])


def test_earlier_trials_are_read_from_texts_if_the_space_contains_them() -> None:
    space = read_space(
        {
            "lr": {"loguniform": [1e-4, 1e-2]},
            "rank": {"choice": [8, 16]},
            "alpha": {"equals": "2 * rank"},
            "kind": {"choice": [True, "x"]},
            "n": {"integer": [1, 4], "when": {"kind": True}},
        }
    )
    inside = {"lr": "0.001", "rank": "8", "alpha": "16", "kind": "True", "n": "3"}
    assert read_trial(space, inside) == {"lr": 0.001, "rank": 8, "alpha": 16, "kind": True, "n": 3}
    for changes in (
        {"lr": "0.1"},
        {"rank": "9"},
        {"alpha": "17"},
        {"kind": "x"},  # then n has no place
        {"n": "2.5"},
        {"more": "1"},
    ):
        with pytest.raises(ValueError, match=r"is not|other paths"):
            read_trial(space, {**inside, **changes})
    with pytest.raises(ValueError, match="no value of n"):
        read_trial(space, {path: value for path, value in inside.items() if path != "n"})


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 3)), max_size=6, unique=True),
    st.integers(0, 2**16),
)
def test_every_draw_of_any_chain_of_ties_is_consistent(
    chain: list[tuple[str, int]], seed: int
) -> None:
    space: dict[str, Any] = {"root": {"choice": [1, 2, 4]}}
    for name, factor in chain:
        space[f"{name}{factor}"] = {"equals": f"{factor} * {list(space)[-1]}"}
    space = dict(reversed(space.items()))
    (draw,) = sample_space(read_space(space), 1, seed=seed)
    expected = draw["root"]
    for name, factor in chain:
        expected *= factor
        assert draw[f"{name}{factor}"] == expected
