"""Workers that have a share of a GPU: its memory, its refusals, and four trials on one card."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.config import load_config
from app.errors import UserError
from app.jobs import plan
from app.jobs.fit import require_fit
from app.jobs.gpu_share import get_allocator_limit
from app.jobs.search_facts import check_search, find_trial_facts

GIB = 2**30
SHARE = ("scaling.use_gpu=true", "scaling.gpus_per_worker=0.25", "scaling.num_workers=1")


@pytest.mark.parametrize(
    ("share", "cap_gib", "card_gib", "limit_gib"),
    [
        (1, None, 24, None),
        (1, 20, 24, 20),
        (0.5, None, 24, 11),
        (0.25, None, 24, 5),
        (0.25, 16, 24, 4),  # four allocators of 4 GiB are the cap of the card
        (0.25, 80, 24, 5),
    ],
)
def test_a_worker_has_its_share_of_the_memory(share, cap_gib, card_gib, limit_gib):
    cap = "null" if cap_gib is None else cap_gib
    config = load_config(
        "demo", [f"scaling.gpus_per_worker={share}", f"memory.max_gib_per_gpu={cap}"]
    )
    limit = get_allocator_limit(card_gib * GIB, config)
    assert limit == (None if limit_gib is None else limit_gib * GIB)


def test_the_plan_compares_with_the_share_of_a_card():
    """The whole card would suffice."""
    cap = ["memory.max_gib_per_gpu=0.1", "train.precision=fp32", "data.sequence_tokens=512"]
    made = plan.make_plan(load_config("demo", [*cap, *SHARE]), [8.0], cards=[], speed=None)
    assert made["limit_bytes"] == pytest.approx(0.025 * GIB / 1.08)
    assert 0.025 * GIB < made["peak_bytes"] < 0.1 * GIB / 1.08
    assert made["fits"] is False


@pytest.mark.parametrize("share", ["0", "1.5", "2", "-0.25"])
def test_a_share_of_nothing_or_of_two_cards_is_refused(share):
    with pytest.raises(UserError, match=r"scaling\.gpus_per_worker="):
        load_config("demo", [f"scaling.gpus_per_worker={share}"])


def test_workers_of_one_job_on_one_card_are_refused_unless_nccl_allows_it(monkeypatch):
    monkeypatch.delenv("NCCL_MULTI_RANK_GPU_ENABLE", raising=False)
    job = load_config("demo", [*SHARE, "scaling.num_workers=2"])
    search = load_config("demo", [*SHARE, "search.workers_per_trial=2"])
    with pytest.raises(UserError, match="lets 2 workers of one job share a card"):
        require_fit(job, None)
    with pytest.raises(UserError, match="lets 2 workers of one job share a card"):
        check_search(search)
    check_search(load_config("demo", SHARE))

    monkeypatch.setenv("NCCL_MULTI_RANK_GPU_ENABLE", "1")
    assert require_fit(job, None) is None
    check_search(search)


def test_a_budget_of_gpu_hours_counts_shares():
    facts = find_trial_facts(load_config("demo", [*SHARE, "search.workers_per_trial=1"]), 40)
    assert facts.gpus_per_trial == 0.25


SEARCH = """
import sys
import ray
from app.config import load_config
from app.jobs.resources import count_concurrent_trials
from tune.config import SearchConfig
from tune.search import run_search
from tune.warm import Evaluation, WarmTrials

@ray.remote(num_cpus=0)
class Meeting:
    def __init__(self):
        import asyncio
        self.num, self.full = 0, asyncio.Event()

    async def join(self, gpus):
        self.num += 1
        if self.num == 4:
            self.full.set()
        await self.full.wait()  # a trial alone waits for ever
        return self.num

class MeetingWorker:
    def start(self, overrides, trial_id, folder):
        ids = ray.get_runtime_context().get_accelerator_ids()["GPU"]
        together = ray.get(ray.get_actor("meeting").join.remote(ids))
        assert ids == ["0"], ids
        yield Evaluation(1, together + overrides["x"], is_last=True)

    def save(self, folder):
        pass

scaling = load_config("demo", ["scaling.use_gpu=true", "scaling.gpus_per_worker=0.25"]).scaling
ray.init(num_cpus=4, num_gpus=1, address="local", log_to_driver=False)
meeting = Meeting.options(name="meeting").remote()
number, _ = count_concurrent_trials(1, scaling.cpus_per_worker, scaling.reserved_gpus, 0.0)
search = SearchConfig.model_validate(
    {"space": {"x": {"choice": [0, 1]}}, "num_trials": 4, "max_concurrent": number,
     "scheduler": "none"}
)
found = run_search(
    search, WarmTrials(MeetingWorker, scaling.worker_resources),
    name="share", storage_path=sys.argv[1], trial_steps=1,
)
print(number, sorted(trial.state for trial in found.trials))
"""


def test_four_trials_of_a_quarter_run_on_one_card_at_the_same_time(tmp_path: Path) -> None:
    """Each trial waits for the other three, on a Ray of its own with one logical GPU."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["CUDA_VISIBLE_DEVICES"] = "0"  # Ray refuses more GPUs than are visible
    done = subprocess.run(
        [sys.executable, "-c", SEARCH, str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=170,
    )  # fmt: skip
    expected = f"4 {['finished'] * 4}"
    assert done.stdout.splitlines()[-1:] == [expected], done.stderr[-2000:]
