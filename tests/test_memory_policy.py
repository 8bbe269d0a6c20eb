"""The memory settings that a config leaves open: the fastest ones with which a step fits."""

import pytest

from app.config import load_config, override_config
from app.errors import UserError
from app.gemma.config import MemoryConfig, MemorySettings
from app.jobs import memory_policy
from app.jobs.memory_policy import choose_memory, get_host_limit, take_least_memory
from app.jobs.plan import FRAGMENTATION, get_step_settings
from app.memory_plan.peak import simulate_peak
from tests.tiny import gemma2_config

NUM_LAYERS = 4
ORDER = [
    {"gradient_checkpointing": False},
    *({"keep_layers": kept, "tile_tokens": 8192} for kept in range(NUM_LAYERS - 2, -1, -2)),
    {"tile_tokens": 2048},
    {"offload": True},
    {"offload": True, "embedding": "host"},
]
"""All settings for GPUs that the policy may choose, from fast to slow."""


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    gemma2_config(num_hidden_layers=NUM_LAYERS, intermediate_size=4096).save_pretrained(folder)

    def make(*overrides):
        settings = ["data.sequence_tokens=16384", "train.precision=bf16", "lora.rank=4"]
        where = [f"model.name={folder}", f"train.output_dir={folder}"]
        on_gpu = ["scaling.use_gpu=true", "scaling.num_workers=1"]
        return load_config(None, [*where, *on_gpu, *settings, *overrides])

    return make


def needed_bytes(config):
    return simulate_peak(get_step_settings(config)).num_bytes * FRAGMENTATION


def with_memory(config, settings):
    return override_config(config, {f"memory.{name}": each for name, each in settings.items()})


def test_settings_that_are_null_recompute_every_layer_on_the_device():
    assert MemoryConfig().settings == MemorySettings(True, 0, 2048, False, "device")
    assert MemoryConfig(keep_layers=3, offload=True).settings == MemorySettings(
        keep_layers=3, offload=True
    )
    assert MemoryConfig(gradient_checkpointing=False).settings == MemorySettings(False)


@pytest.mark.parametrize("share", [1.01, 0.99, 0.6, 0.3])
def test_the_choice_fits_and_nothing_faster_does(job, share, capsys):
    config = job()
    most, least = (needed_bytes(with_memory(config, ORDER[i])) for i in (0, -1))
    limit = least + share * (most - least)
    chosen = choose_memory(config, limit)
    assert needed_bytes(chosen) <= limit
    place = [with_memory(config, one).memory.settings for one in ORDER].index(
        chosen.memory.settings
    )
    for faster in ORDER[: max(0, place - 1)]:  # of the line between two peaks, one step may be left
        assert needed_bytes(with_memory(config, faster)) > limit, faster
    assert "memory.policy=auto: " in capsys.readouterr().err


def test_less_and_less_memory_takes_slower_and_slower_settings(job):
    config = job()
    places = []
    settings = [with_memory(config, one).memory.settings for one in ORDER]
    for one in ORDER:
        limit = needed_bytes(with_memory(config, one))
        chosen = choose_memory(config, limit)
        assert needed_bytes(chosen) <= limit
        places.append(settings.index(chosen.memory.settings))
    assert places == sorted(places)
    assert {places[0], *places[-3:]} == {0, len(ORDER) - 3, len(ORDER) - 2, len(ORDER) - 1}


def test_nothing_that_fits_gives_the_settings_that_need_least(job):
    config = job()
    least = with_memory(config, ORDER[-1]).memory.settings
    assert choose_memory(config, 1000.0).memory.settings == least
    assert take_least_memory(config).memory.settings == least


@pytest.mark.parametrize(
    "explicit",
    [
        ["memory.gradient_checkpointing=true"],
        ["memory.keep_layers=4"],
        ["memory.tile_tokens=512"],
        ["memory.offload=false"],
        ["memory.embedding=device"],
        ["memory.gradient_checkpointing=false"],
        ["lora.train_embeddings=true"],
    ],
    ids=str,
)
@pytest.mark.parametrize("limit", [1000.0, 1e15])
def test_explicit_settings_stay(job, explicit, limit):
    config = job(*explicit)
    before = config.memory.model_dump(exclude_none=True)
    chosen = choose_memory(config, limit).memory
    assert None not in chosen.model_dump(exclude={"max_gib_per_gpu"}).values()
    assert before.items() <= chosen.model_dump().items()
    if explicit == ["lora.train_embeddings=true"]:
        assert chosen.embedding == "device"
    if "true" not in explicit[0]:
        return
    if limit > 1e9 and explicit == ["memory.gradient_checkpointing=true"]:
        assert chosen.settings == MemorySettings(tile_tokens=8192)


def test_the_other_policy_an_unknown_limit_and_a_searched_setting_recompute(job, capsys):
    recompute = job("memory.policy=recompute")
    assert choose_memory(recompute, 1e15) == recompute
    assert choose_memory(job(), None).memory.settings == MemorySettings()
    assert "set memory.max_gib_per_gpu" in capsys.readouterr().err
    space = "search.space={memory.offload: {choice: [true, false]}}"
    searched = job(space, "search.trial_steps=5")
    assert choose_memory(searched, 1e15) == searched


def test_a_job_that_continues_keeps_its_settings_if_they_fit(job):
    config = job()
    recorded = {"keep_layers": 2, "tile_tokens": 512}
    kept = choose_memory(config, 1e15, recorded)
    assert kept.memory.settings == MemorySettings(keep_layers=2, tile_tokens=512)
    limit = needed_bytes(with_memory(config, ORDER[-1]))
    assert choose_memory(config, limit, recorded).memory.settings.offload
    with pytest.raises(UserError, match="keep_layers"):
        choose_memory(config, 1e15, {"keep_layers": "many"})


def test_what_has_one_outcome_is_not_simulated(job, monkeypatch):
    monkeypatch.setattr(memory_policy, "simulate_peak", None)
    config = job("memory.gradient_checkpointing=false", "scaling.use_gpu=false")
    assert choose_memory(config, 1000.0).memory.settings == MemorySettings(False)


def test_recorded_settings_that_a_new_setting_forbids_are_chosen_again(job):
    config = job("memory.gradient_checkpointing=false")
    recorded = {"gradient_checkpointing": True, "keep_layers": 2, "tile_tokens": 8192}
    assert choose_memory(config, 1e15, recorded).memory.settings == MemorySettings(False)


def test_every_trial_of_a_search_must_allow_the_settings(job):
    """A trained embedding cannot lie on the host."""
    space = "search.space={lora.train_embeddings: {choice: [false, true]}}"
    chosen = choose_memory(job(space, "search.trial_steps=5"), 1000.0)
    assert chosen.memory.settings == MemorySettings(offload=True)


def test_the_largest_trial_of_a_search_must_fit(job):
    space = "search.space={lora.rank: {choice: [4, 64]}, train.micro_batch_size: {choice: [1, 2]}}"
    config = job(space, "search.trial_steps=5")
    largest = {"lora.rank": 64, "train.micro_batch_size": 2}
    limit = needed_bytes(with_memory(job(), ORDER[0]))  # all activations of the smallest trial
    chosen = choose_memory(config, limit)
    assert chosen.memory.settings.gradient_checkpointing
    assert needed_bytes(override_config(chosen, largest)) <= limit


def test_on_a_cpu_the_memory_of_the_machine_is_shared(job, monkeypatch):
    one, two = (job("scaling.use_gpu=false", f"scaling.num_workers={n}") for n in (1, 2))
    assert get_host_limit(one) == 2 * get_host_limit(two)
    assert choose_memory(one, 1e15).memory.settings == MemorySettings(False)
    chosen = choose_memory(one, 1000.0).memory.settings
    assert chosen == MemorySettings(), "the host's memory is the device's"
    assert memory_policy.HOST_SHARE < 1
