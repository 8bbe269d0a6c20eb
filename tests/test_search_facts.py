"""Checks of a search before Ray starts, and the warm-up of its trials."""

import pytest

from app.config import load_config
from app.errors import UserError
from app.jobs.search_facts import check_search, find_trial_facts


def test_a_draw_between_valid_ends_that_is_no_valid_config_is_named_before_the_start() -> None:
    config = load_config(
        "demo",
        [
            "search.space={train.eval_steps: {integer: [100, 200]}}",
            "train.save_steps=200",
        ],
    )
    with pytest.raises(UserError, match=r"save_steps=200 must be a multiple of eval_steps=1\d\d"):
        check_search(config)
    check_search(load_config("demo"))
    check_search(load_config("search"))


def test_pbt_over_a_setting_of_the_adapter_is_refused_or_starts_anew() -> None:
    overrides = ["search.scheduler=pbt"]
    with pytest.raises(UserError, match=r"search\.space\.lora\.rank: with search\.scheduler=pbt"):
        check_search(load_config("demo", overrides))

    anew = load_config("demo", [*overrides, "search.on_new_adapter=reinitialise"])
    check_search(anew)
    assert find_trial_facts(anew, 40).pinned_paths == ["lora.rank"]
    fixed = "search.space={optim.learning_rate: {loguniform: [1e-3, 1e-2]}}"
    check_search(load_config("demo", [*overrides, fixed]))


def test_the_warm_up_of_a_trial_follows_its_own_overrides() -> None:
    facts = find_trial_facts(load_config("demo", ["optim.warmup_ratio=0.5"]), 41)
    assert facts.count_warmup_steps({"optim.warmup_ratio": 0.1}) == 5
    assert facts.count_warmup_steps({"lora.rank": 8}) == 21
    assert facts.count_warmup_steps({"optim.warmup_ratio": 0.0}) == 0
    assert facts.gpus_per_trial == 0
    on_gpus = load_config("demo", ["scaling.use_gpu=true", "search.workers_per_trial=2"])
    assert find_trial_facts(on_gpus, 40).gpus_per_trial == 2
