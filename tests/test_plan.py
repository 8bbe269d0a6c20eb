"""`plan`, and the check that `train` makes on GPUs, whose settings make the job fit."""

import json
import math
import random
import re

import pytest

from app.__main__ import main
from app.config import load_config, override_config
from app.errors import UserError
from app.jobs import fit, plan
from app.jobs.fit import require_evaluation_fit, require_fit
from app.memory_plan.peak import simulate_peak
from data_pipeline.config import PrepareConfig
from data_pipeline.prepare.dataset import prepare_dataset
from tests.tiny import gemma2_config

GIB = 2**30


def job(folder, *overrides):
    config = gemma2_config(
        num_hidden_layers=2, vocab_size=4096, hidden_size=128, intermediate_size=1024
    )
    config.save_pretrained(folder)
    big = ["data.sequence_tokens=4096", "train.micro_batch_size=4", "memory.offload=true"]
    big += ["model.attention=eager", "train.precision=bf16"]
    return load_config(
        None,
        [f"model.name={folder}", "scaling.use_gpu=true", "scaling.num_workers=1", *big, *overrides],
    )


@pytest.mark.parametrize(("text", "gib"), [("24GiB", 24.0), ("24", 24.0), ("22.5 gib", 22.5)])
def test_a_card_is_its_memory(text, gib):
    assert plan.parse_gib(text) == gib


@pytest.mark.parametrize("text", ["", "0", "H100", "-3", "24 MiB"])
def test_what_is_no_card_is_named(text):
    with pytest.raises(UserError, match="such as 24GiB"):
        plan.parse_gib(text)


def test_a_job_that_cannot_fit_is_refused_with_settings_that_do(tmp_path):
    config = job(tmp_path)
    taken = simulate_peak(
        plan.get_step_settings(config, labelled_share=plan.CAPTION_LABEL_SHARE)
    ).num_bytes
    assert require_fit(config, taken).num_bytes == taken
    for limit, names in (
        (0.9 * taken, {"model.attention"}),
        (10.0 * 2**20, {"train.micro_batch_size", "optim.kind", "data.sequence_tokens"}),
    ):
        with pytest.raises(UserError, match="training needs") as refused:
            require_fit(config, limit)
        settings = re.findall(r"[a-z_0-9]+\.[a-z_0-9]+=\S+", str(refused.value))
        assert names <= {setting.partition("=")[0] for setting in settings}
        assert require_fit(override_config(config, settings), limit).num_bytes <= limit
    with pytest.raises(UserError, match="no sequence fits"):
        require_fit(config, 1000.0)


def try_all(config, possible, simulate_bytes, limit_bytes):
    """Name the first sufficient remedy or group, as a search without order does."""
    groups = [possible[:size] for size in range(2, len(possible) + 1)]
    for chosen in [*([remedy] for remedy in possible), *groups]:
        try:
            changed = override_config(config, dict(chosen))
        except UserError:
            continue
        if simulate_bytes(changed) <= limit_bytes:
            return f"set {fit._format_settings(chosen)}"
    raise AssertionError("nothing fits")


@pytest.mark.parametrize("seed", range(40))
def test_a_fix_is_the_first_that_suffices_and_is_found_with_few_simulations(seed, tmp_path):
    """Random bytes that each remedy saves; many remedies save nothing."""
    rng = random.Random(seed)
    off = rng.sample(["memory.offload=true", "memory.gradient_checkpointing=false"], 1)
    others = ["evaluate.micro_batch_size=4", "optim.kind=adamw", "quantization.kind=none"]
    config = job(tmp_path, "memory.offload=false", *off, *others)
    possible = fit._list_remedies(config, fit.REMEDIES)
    saved = {path: rng.choice([0, 0, rng.randrange(1, 100)]) for path, _ in possible}
    simulated = []

    def simulate_bytes(config):
        simulated.append(config)
        left = {path for path, _ in fit._list_remedies(config, fit.REMEDIES)}
        return 1000 - sum(number for path, number in saved.items() if path not in left)

    lowest = simulate_bytes(override_config(config, dict(possible)))
    limit_bytes = rng.uniform(lowest, 1001) * plan.FRAGMENTATION
    expected = try_all(config, possible, simulate_bytes, limit_bytes / plan.FRAGMENTATION)
    simulated.clear()
    assert fit._find_fix(config, fit.REMEDIES, simulate_bytes, limit_bytes) == expected
    assert len(simulated) <= 1 + math.ceil(math.log2(len(possible))) + len(possible)


def test_an_evaluation_between_steps_that_cannot_fit_is_refused_with_a_setting_that_does(tmp_path):
    config = job(tmp_path, "train.micro_batch_size=1", "evaluate.micro_batch_size=64")
    taken = simulate_peak(plan.get_step_settings(config)).num_bytes
    with pytest.raises(
        UserError,
        match=r"^training needs .* \(evaluation\), limit .*: set evaluate.micro_batch_size=1$",
    ):
        require_fit(config, taken * 1.1)


@pytest.mark.parametrize(
    ("overrides", "share", "fix"),
    [
        (["evaluate.micro_batch_size=8"], 0.9, "set evaluate.micro_batch_size=1"),
        (["evaluate.max_cache_tokens=400000"], 0.9, "set evaluate.generation_batch_size=1"),
        (["evaluate.generation_batch_size=1", "memory.embedding=host"], 0.5, "set data.sequence_"),
    ],
)
def test_an_evaluation_that_cannot_fit_is_refused_with_settings_that_do(
    tmp_path, overrides, share, fix
):
    config = job(tmp_path, "model.attention=blockwise", "evaluate.micro_batch_size=1", *overrides)
    taken = plan.simulate_evaluate_bytes(config)
    require_evaluation_fit(config, taken)
    with pytest.raises(UserError, match=r"^evaluation needs .* per GPU, limit ") as refused:
        require_evaluation_fit(config, share * taken)
    assert fix in str(refused.value)
    settings = re.findall(r"[a-z_0-9]+\.[a-z_0-9]+=\S+", str(refused.value))
    require_evaluation_fit(override_config(config, settings), share * taken)
    require_evaluation_fit(override_config(config, {"scaling.use_gpu": False}), 1000.0)


def test_a_job_on_cpus_is_not_refused(tmp_path):
    assert require_fit(job(tmp_path, "scaling.use_gpu=false"), 1000.0) is None


def test_the_smaller_of_cap_and_cards_decides(tmp_path):
    config = job(
        tmp_path,
        "memory.max_gib_per_gpu=0.5",
        "model.attention=blockwise",
        "data.sequence_tokens=512",
    )
    fits = [
        plan.make_plan(config, gpus, cards=[], speed=None) for gpus in ([], [24.0, 1.25], [1.05])
    ]
    assert [found["limit_bytes"] for found in fits] == pytest.approx(
        [0.5 * GIB / 1.08, 0.25 * GIB / 1.08, 0.05 * GIB / 1.08]
    )
    assert [found["fits"] for found in fits] == [True, True, False]


def test_the_plan_of_a_prepared_job_says_steps_tokens_and_hours(tmp_path, capsys):
    prepare_dataset(["scenes:200"], PrepareConfig(out=str(tmp_path / "shards")), progress=False)
    common = [
        "plan",
        "demo",
        f"data.shards={tmp_path / 'shards'}",
        "train.max_steps=null",
        "train.num_epochs=3",
    ]
    assert (
        main([*common, "--json", "--gpu", "1.25GiB", "--max-context", "--tokens-per-second", "100"])
        == 0
    )
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["peak_bytes"] == sum(found["by_category"].values())
    assert found["evaluation_between_steps_bytes"] > found["by_category"]["weights"]
    assert found["evaluate_bytes"] > found["by_category"]["weights"]
    assert found["hours"] == pytest.approx(found["tokens"] / 360_000)
    assert 200 * 3 * 0.9 * 60 < found["tokens"] < 200 * 3 * 400
    (card,) = found["cards"]
    assert card["gib"] == 1.25
    assert 0 < card["max_tokens"] <= card["max_tokens_labels_only"]
    assert main([*common, "--gpu", "1.25GiB", "train.max_steps=2"]) == 0
    assert "about 2 optimizer steps" in capsys.readouterr().out
