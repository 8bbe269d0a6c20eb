"""Values for the trials of a search: random draws, or distributions for Optuna."""

import math
import random
from collections.abc import Mapping
from typing import Any

from tune.config import Choice, Domain, LogUniform, Uniform


def sample_space(
    space: Mapping[str, Domain], num_trials: int, *, seed: int
) -> list[dict[str, Any]]:
    """Return `num_trials` independent draws; the same seed gives the same draws on every machine.

    >>> sample_space({"lora.rank": Choice(choice=(8, 16))}, 3, seed=0)
    [{'lora.rank': 16}, {'lora.rank': 16}, {'lora.rank': 8}]
    """
    generator = random.Random(seed)
    return [
        {path: _draw(domain, generator) for path, domain in space.items()}
        for _ in range(num_trials)
    ]


def _draw(domain: Domain, generator: random.Random) -> bool | int | float | str:
    match domain:
        case LogUniform(loguniform=(low, high)):
            drawn = math.exp(generator.uniform(math.log(low), math.log(high)))
            return min(max(drawn, low), high)  # exp(log(x)) may differ from x by rounding
        case Uniform(uniform=(low, high)):
            return generator.uniform(low, high)
        case Choice(choice=values):
            return generator.choice(values)


def build_optuna_distributions(space: Mapping[str, Domain]) -> dict[str, Any]:
    """Return the space as `optuna.distributions`, by config path.

    Raises ImportError if Optuna is not installed.
    """
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

    def convert(domain: Domain) -> BaseDistribution:
        match domain:
            case LogUniform(loguniform=(low, high)):
                return FloatDistribution(low, high, log=True)
            case Uniform(uniform=(low, high)):
                return FloatDistribution(low, high)
            case Choice(choice=values):
                return CategoricalDistribution(values)

    return {path: convert(domain) for path, domain in space.items()}
