"""Search algorithms: they choose the values of the next trial."""

from typing import Any

import ray.tune
from ray.tune.search import Searcher

from tune.config import SearchConfig
from tune.errors import SearchError
from tune.keys import METRIC_KEY, OVERRIDES_KEY
from tune.space import build_optuna_distributions, sample_space


def build_search_algorithm(
    config: SearchConfig,
) -> tuple[Searcher | None, dict[str, Any] | None]:
    """Return Tune's search algorithm and its parameter space.

    A random search has no algorithm: its draws are a grid. OptunaSearch has its own space.
    """
    if config.algorithm == "random":
        draws = sample_space(config.space, config.num_trials, seed=config.seed)
        return None, {OVERRIDES_KEY: ray.tune.grid_search(draws)}
    try:
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        distributions = build_optuna_distributions(config.space)
    except ImportError as error:
        raise SearchError(
            "search.algorithm=optuna needs the package optuna: pip install 'optuna>=5,<6', "
            "or set search.algorithm=random"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {
        f"{OVERRIDES_KEY}/{path}": distribution for path, distribution in distributions.items()
    }
    return OptunaSearch(space, metric=METRIC_KEY, mode="min", seed=config.seed), None
