"""The view of a search: paragraph, leaderboard, ranges, importances and figures."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from campaigns import LR, RANGES, RANK, SPACE, WARMUP, draw_campaign
from chromium import CHROMIUM, open_chromium

from tune.campaign import (
    Range,
    Trial,
    describe_campaign,
    list_ranges,
    make_leaderboard,
    rank_trials,
)
from tune.domain import Choice
from tune.figures import draw_figures, draw_heat_map
from tune.importance import compute_importances
from tune.outcome import State


def trial(number: int, loss: float | None, *, state: State = "finished", **params: float) -> Trial:
    named = {LR: params.get("lr", 1e-4), RANK: params.get("rank", 16)}
    return Trial(f"trial-{number}", state, named, loss, 20, run_id=f"{number:032x}")


def test_a_paragraph_says_what_was_best_what_mattered_and_what_to_try_next() -> None:
    trials = [trial(n, 2.0 + n / 10) for n in range(1, 10)]
    trials.insert(
        0, replace(trial(0, 1.5, lr=9.9e-4, rank=16), curve=((0, 3.0), (10, 1.8), (20, 1.5)))
    )
    trials += [trial(10, None, state="failed"), trial(11, 2.05, state="pruned")]
    assert describe_campaign(trials, RANGES, {RANK: 0.04, LR: 0.96}) == (
        "12 trials: 10 finished, 1 pruned and 1 failed. The best is trial-0, with evaluation "
        "loss 1.5000 and optim.learning_rate=0.00099, lora.rank=16; the second best has 2.0500. "
        "By importance, optim.learning_rate (96%) mattered most; lora.rank (4%) mattered little. "
        "The best optim.learning_rate, 0.00099, is at the upper end of its range (1e-05 to 0.001): "
        "try higher values too. Its loss was still falling at its last evaluation (by 16.7% to "
        "step 20): train it longer. The last 10 of 11 measured trials did not improve on it: "
        "change the space before you run more trials. The spread between seeds is not known: "
        "before you rely on the gap of 0.5500 between the two best, run both with another "
        "train.seed."
    )


@pytest.mark.parametrize(
    ("params", "importances", "part"),
    [
        ({"lr": 1.2e-5}, {}, "is at the lower end of its range (1e-05 to 0.001): try lower values"),
        ({"rank": 32}, {}, "The best lora.rank, 32, is at the upper end of its choices (8 to 32)"),
        ({"rank": 8}, {RANK: 0.5, LR: 0.5}, "is at the lower end of its choices (8 to 32)"),
    ],
)
def test_a_best_value_at_an_end_of_its_range_is_named(
    params: dict[str, float], importances: dict[str, float], part: str
) -> None:
    assert part in describe_campaign([trial(1, 1.0, **params)], RANGES, importances)


def test_a_paragraph_says_nothing_that_its_trials_do_not_show() -> None:
    inside = trial(1, 1.0, lr=1e-4, rank=16)
    alone = describe_campaign([inside], RANGES, {})
    assert alone == (
        "1 trial: 1 finished. The best is trial-1, with evaluation loss 1.0000 and "
        "optim.learning_rate=0.0001, lora.rank=16."
    )
    at_the_end_of_an_unimportant_range = trial(1, 1.0, rank=32)
    few = [at_the_end_of_an_unimportant_range, trial(2, 1.1)]
    text = describe_campaign(few, RANGES, {RANK: 0.01, LR: 0.99})
    assert "2 measured trials are too few to say which setting mattered: run at least 10" in text
    assert "end of its" not in text
    flat = replace(inside, curve=((10, 1.001), (20, 1.0)))
    assert "falling" not in describe_campaign([flat], RANGES, {})


def test_a_leaderboard_ranks_losses_and_puts_failed_trials_last() -> None:
    trials = [
        trial(1, 0.5, state="failed"), trial(2, 1.5), trial(3, None, state="interrupted"),
        trial(4, 1.25, state="pruned"), Trial("trial-5", "finished", {"model.name": "x"}, 3.0, 9),
    ]  # fmt: skip
    assert [each.name for each in rank_trials(trials)] == [f"trial-{n}" for n in (4, 2, 5, 1, 3)]
    table = make_leaderboard(trials)
    assert table["columns"] == [
        "rank", "trial", "state", "eval_loss", "step", LR, RANK, "model.name", "run_id",
    ]  # fmt: skip
    assert table["data"][0] == [1, "trial-4", "pruned", 1.25, 20, 1e-4, 16, None, f"{4:032x}"]
    assert table["data"][2] == [3, "trial-5", "finished", 3.0, 9, None, None, "x", None]
    json.dumps(table, allow_nan=False)


def test_the_ranges_of_a_space_are_those_of_its_numbers() -> None:
    space = {
        **SPACE,
        "model.name": Choice(choice=("a", "b")),
        "memory.offload": Choice(choice=(True,)),
    }
    assert list_ranges(space) == {**RANGES, WARMUP: Range(0.0, 0.1)}


def test_ped_anova_finds_the_setting_that_decides() -> None:
    trials = draw_campaign()
    failed = Trial("trial-x", "failed", {LR: 1e-3, RANK: 8, WARMUP: 0.0}, 0.1, 9)
    shares = compute_importances([*trials, failed], SPACE)
    assert shares == compute_importances(trials, SPACE)
    assert math.isclose(sum(shares.values()), 1.0)
    assert shares[LR] > 0.8
    assert compute_importances(trials[:1], SPACE) == {}
    assert compute_importances(trials, {LR: SPACE[LR]}) == {}
    assert compute_importances([replace(each, loss=1.0) for each in trials], SPACE) == {}


@pytest.mark.parametrize("num_trials", [1, 2, 24])
def test_figures_are_drawn_of_few_and_of_many_trials(num_trials: int) -> None:
    trials = draw_campaign(num_trials)
    trials.append(Trial("trial-x", "failed", {LR: 1e-3, RANK: 8}, None, 0))
    pages = draw_figures(trials, list_ranges(SPACE), compute_importances(trials, SPACE))
    expected = {"learning_curves.html"}
    if num_trials > 1:
        expected |= {"parallel_coordinates.html", "heat_map.html", "importance.html"}
    assert set(pages) == expected
    assert draw_figures([], {}, {}) == {}


def test_a_heat_map_holds_the_lowest_finished_loss_of_each_pair() -> None:
    trials = [
        trial(1, 1.5, lr=1e-5, rank=8), trial(2, 1.2, lr=1.1e-5, rank=8),
        trial(3, 0.9, lr=1.2e-5, rank=8, state="pruned"), trial(4, 1.0, lr=1e-3, rank=32),
        trial(5, 3.0, lr=1e-3, rank=16, state="pruned"),
    ]  # fmt: skip
    (heat_map,) = draw_heat_map(trials, RANK, LR, RANGES).data
    assert list(heat_map.x) == ["8", "16", "32"]
    assert len(heat_map.y) == 6
    assert heat_map.y[0] == "1e-05 to 2.2e-05"
    nothing = [None, None, None]
    assert [list(row) for row in heat_map.z] == [
        [1.2, None, None], nothing, nothing, nothing, nothing, [None, 3.0, 1.0]
    ]  # fmt: skip
    assert heat_map.text[0][0] == "1.2000<br>(2 of 3)"


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")
def test_a_figure_draws_itself_without_a_network_for_phones_and_desktops(tmp_path: Path) -> None:
    trials = draw_campaign()
    pages = draw_figures(trials, list_ranges(SPACE), compute_importances(trials, SPACE))
    with open_chromium() as page:
        for name, text in pages.items():
            file = tmp_path / name
            file.write_text(text)
            page.requests.clear()
            page.open(f"file://{file}", 390, 700)
            drawing = "document.querySelector('.js-plotly-plot .main-svg')"
            page.wait(f"{drawing} !== null")
            assert page.requests == [f"file://{file}"]
            assert page.find_bad_texts() == [], name

            page.resize(1280, 640)
            page.wait(f"{drawing}.clientWidth > 1200")
            assert page.find_bad_texts() == [], name
