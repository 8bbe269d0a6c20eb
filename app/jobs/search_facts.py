"""Facts about a search that only the application knows, and its checks before Ray starts."""

import math

from app.config import Config, override_config
from app.errors import UserError
from app.jobs.gpu_share import require_own_cards
from app.jobs.resume import PINNED
from app.tracking import read_finished_trials
from tune.search import TrialFacts
from tune.search_algorithm import draw_trials
from tune.space import Overrides


def check_search(config: Config) -> None:
    """Raise UserError for a draw that makes no valid config, or a setting that cannot work.

    The config itself has checked the corners of the space. The draws of TPE depend on the losses.
    """
    search = config.search
    require_own_cards(config, search.workers_per_trial)
    if search.algorithm != "optuna":
        for overrides in draw_trials(search):
            override_config(config, overrides)

    pinned = _list_pinned_paths(config)
    if search.scheduler == "pbt" and search.on_new_adapter == "refuse" and pinned:
        raise UserError(
            f"search.space.{pinned[0]}: with search.scheduler=pbt, a trial cannot continue from "
            "the checkpoint of a trial with another value: remove the path, or set "
            "search.on_new_adapter=reinitialise"
        )


def find_trial_facts(config: Config, trial_steps: int) -> TrialFacts:
    """Return the facts about trials of `trial_steps` optimizer steps.

    Raises UserError if an earlier search of `search.warm_start` cannot be read.
    """

    def count_warmup_steps(overrides: Overrides) -> int:
        ratio = override_config(config, overrides).optim.warmup_ratio
        return math.ceil(ratio * trial_steps)

    search = config.search
    return TrialFacts(
        count_warmup_steps=count_warmup_steps,
        pinned_paths=_list_pinned_paths(config),
        gpus_per_trial=search.workers_per_trial * config.scaling.reserved_gpus,
        earlier=[
            trial
            for reference in search.warm_start
            for trial in read_finished_trials(config.tracking, reference)
        ],
    )


def _list_pinned_paths(config: Config) -> list[str]:
    """Return the searched paths with whose values a checkpoint is bound."""
    return [
        path
        for path in config.search.space
        if path in PINNED
        or path == "optim.kind"
        or path.partition(".")[0] in ("model", "quantization", "data")
    ]
