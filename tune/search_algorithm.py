"""Search algorithms: they choose the values of the next trial."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import ray.tune
from ray.tune.search import Searcher

from tune.config import SearchConfig
from tune.domain import Drawn
from tune.errors import SearchError
from tune.keys import OVERRIDES_KEY
from tune.space import (
    Overrides,
    build_overrides,
    draw_value,
    list_combinations,
    read_point,
    read_trial,
    sample_space,
)


def build_search_algorithm(
    config: SearchConfig, earlier: Sequence[tuple[Overrides, float]] = ()
) -> tuple[Searcher | None, dict[str, Any] | None]:
    """Return Tune's search algorithm and its parameter space.

    A random search and a grid have no algorithm: their draws are a grid of Tune. TPE has its own
    space. `earlier` are the overrides and losses of trials of earlier searches, for TPE; those that
    the space does not contain are ignored.
    """
    if config.algorithm != "optuna":
        return None, {OVERRIDES_KEY: ray.tune.grid_search(draw_trials(config))}
    try:
        from tune.tpe import TpeSearcher
    except ImportError as error:
        raise SearchError(
            "search.algorithm=optuna needs the package optuna: pip install 'optuna>=5,<6', "
            "or set search.algorithm=random"
        ) from error

    known = []
    for overrides, loss in earlier:
        try:
            known.append((read_trial(config.space, overrides), loss))
        except ValueError:
            continue
    if earlier:
        print(
            f"warm start: {len(known)} of {len(earlier)} earlier trials are in the space",
            flush=True,
        )
    searcher = TpeSearcher(config.space, points=config.points, earlier=known, seed=config.seed)
    return searcher, None


def count_trials(config: SearchConfig) -> int:
    """Return the number of trials of a search without budgets."""
    return config.num_trials if config.algorithm == "optuna" else len(draw_trials(config))


def draw_trials(config: SearchConfig) -> list[Overrides]:
    """Return the overrides of all trials of a random search or a grid; the points come first."""
    generator = random.Random(config.seed)
    points = [_complete_point(config, point, generator) for point in config.points]
    if config.algorithm == "grid":
        combinations = list_combinations(config.space, config.num_trials)
        return points + [values for values in combinations if values not in points]
    num_draws = config.num_trials - len(points)
    return points + sample_space(config.space, num_draws, seed=config.seed)


def _complete_point(
    config: SearchConfig, point: Mapping[str, Any], generator: random.Random
) -> Overrides:
    """Return the overrides of a point; paths that it does not name are drawn."""
    known = read_point(config.space, point)

    def draw(path: str, domain: Drawn) -> Any:
        return known[path] if path in known else draw_value(domain, generator)

    return build_overrides(config.space, draw)
