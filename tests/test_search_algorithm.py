"""Search algorithms: grid, known points, and TPE with conditions and earlier trials."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from tune.config import SearchConfig
from tune.keys import OVERRIDES_KEY
from tune.search_algorithm import build_search_algorithm, count_trials, draw_trials


def read_config(**values: Any) -> SearchConfig:
    return SearchConfig.model_validate(values)


def test_a_grid_has_every_combination_once_after_the_points() -> None:
    config = read_config(
        space={
            "kind": {"choice": ["a", "b"]},
            "n": {"integer": [1, 3], "when": {"kind": "b"}},
            "m": {"equals": "2 * n"},
        },
        algorithm="grid",
        points=[{"kind": "b", "n": "3"}],
    )
    assert count_trials(config) == 4
    assert draw_trials(config) == [
        {"kind": "b", "n": 3, "m": 6},
        {"kind": "a"},
        {"kind": "b", "n": 1, "m": 2},
        {"kind": "b", "n": 2, "m": 4},
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"space": {"a": {"uniform": [0, 1]}}}, "a: search.algorithm=grid needs a list"),
        ({"space": {"a": {"integer": [1, 10**9]}}}, "has 1000000000 combinations"),
        ({"space": {"a": {"choice": [1, 2, 3]}}, "num_trials": 2}, "more than search.num_trials=2"),
    ],
)
def test_a_grid_without_end_or_above_the_number_of_trials_is_refused(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        read_config(algorithm="grid", **values)


def test_points_come_first_and_the_rest_of_a_search_stays_the_same() -> None:
    space = {"lr": {"loguniform": [1e-4, 1e-2]}, "rank": {"choice": [8, 16]}}
    points = [{"lr": "3e-3", "rank": 8}, {"rank": 16}]
    plain = read_config(space=space, num_trials=4)
    config = read_config(space=space, num_trials=6, points=points)
    draws = draw_trials(config)
    assert draws[0] == {"lr": 3e-3, "rank": 8}
    assert draws[1]["rank"] == 16
    assert 1e-4 <= draws[1]["lr"] <= 1e-2
    assert draws[2:] == draw_trials(plain)


def suggest_all(config: SearchConfig, earlier: Any = (), losses: Any = ()) -> list[dict[str, Any]]:
    """Return the suggestions for all trials; each ends with its loss before the next starts."""
    searcher, param_space = build_search_algorithm(config, earlier)
    assert param_space is None
    suggested = []
    for number in range(config.num_trials):
        suggested.append(searcher.suggest(f"trial-{number}")[OVERRIDES_KEY])
        loss = losses(suggested[-1]) if losses else 1.0
        searcher.on_trial_complete(f"trial-{number}", {"step": 9, "eval_loss": loss})
    return suggested


SPACE = {
    "kind": {"choice": ["sgd", "adam"]},
    "lr": {"loguniform": [1e-5, 1e-1]},
    "beta": {"uniform": [0.5, 0.9], "when": {"kind": "adam"}},
    "n": {"integer": [1, 4]},
    "twice": {"equals": "2 * n"},
}


def test_tpe_follows_conditions_and_ties_and_repeats_for_a_seed() -> None:
    config = read_config(space=SPACE, algorithm="optuna", num_trials=25, seed=3)
    trials = suggest_all(config, losses=lambda trial: abs(math.log10(trial["lr"]) + 3))
    assert trials == suggest_all(config, losses=lambda trial: abs(math.log10(trial["lr"]) + 3))
    assert {trial["kind"] for trial in trials} == {"sgd", "adam"}
    for trial in trials:
        assert ("beta" in trial) == (trial["kind"] == "adam")
        assert trial["twice"] == 2 * trial["n"]
        assert type(trial["n"]) is int


def test_tpe_tries_the_points_first_and_fills_their_gaps() -> None:
    points = [{"kind": "sgd", "lr": 1e-3, "n": 2}, {"lr": "1e-4"}]
    config = read_config(space=SPACE, algorithm="optuna", num_trials=4, points=points)
    first, second, *_ = suggest_all(config)
    assert first == {"kind": "sgd", "lr": 1e-3, "n": 2, "twice": 4}
    assert second["lr"] == 1e-4
    assert {"kind", "n", "twice"} <= second.keys()


def measure_distance(trials: list[dict[str, Any]]) -> float:
    """Return the mean distance from the best learning rate, 1e-3, in decades."""
    return sum(abs(math.log10(trial["lr"]) + 3) for trial in trials) / len(trials)


def test_earlier_trials_move_the_first_suggestions_to_their_best() -> None:
    space = {"lr": {"loguniform": [1e-5, 1e-1]}}
    config = read_config(space=space, algorithm="optuna", num_trials=8, seed=0)
    rates = [10 ** (-5 + 4 * i / 19) for i in range(20)]
    earlier = [({"lr": str(rate)}, abs(math.log10(rate) + 3)) for rate in rates]
    cold = suggest_all(config)
    warm = suggest_all(config, earlier=[*earlier, ({"lr": "0.5"}, 0.0), ({"rank": "8"}, 0.0)])
    assert measure_distance(warm) < 0.5 * measure_distance(cold)


def test_a_trial_that_failed_or_diverged_counts_as_bad() -> None:
    space = {"lr": {"loguniform": [1e-5, 1e-1]}}
    config = read_config(space=space, algorithm="optuna", num_trials=40, seed=0)
    high = suggest_all(config, losses=lambda trial: math.nan if trial["lr"] < 1e-3 else 1.0)[20:]
    assert sum(trial["lr"] >= 1e-3 for trial in high) >= 14


def test_a_running_trial_is_known_to_tpe_by_its_last_report() -> None:
    """A paused trial ends with the whole search, and must count before."""
    space = {"lr": {"loguniform": [1e-5, 1e-1]}}
    config = read_config(space=space, algorithm="optuna", num_trials=40, seed=0)
    searcher, _ = build_search_algorithm(config)
    assert searcher is not None
    trials = []
    for number in range(config.num_trials):
        trials.append(searcher.suggest(f"trial-{number}")[OVERRIDES_KEY])
        loss = abs(math.log10(trials[-1]["lr"]) + 3)
        searcher.on_trial_result(f"trial-{number}", {"step": 9, "eval_loss": loss})
    assert measure_distance(trials[20:]) < 0.5 * measure_distance(trials[:10])


def test_a_restored_search_continues_with_the_same_suggestions(tmp_path: Any) -> None:
    config = read_config(space=SPACE, algorithm="optuna", num_trials=6, seed=1)
    whole = suggest_all(config)
    first, _ = build_search_algorithm(config)
    for number in range(3):
        first.suggest(f"trial-{number}")
        first.on_trial_complete(f"trial-{number}", {"step": 9, "eval_loss": 1.0})
    first.save(str(tmp_path / "state"))

    second, _ = build_search_algorithm(config)
    second.restore(str(tmp_path / "state"))
    for number in range(3, 6):
        assert second.suggest(f"trial-{number}")[OVERRIDES_KEY] == whole[number]
        second.on_trial_complete(f"trial-{number}", {"step": 9, "eval_loss": 1.0})
