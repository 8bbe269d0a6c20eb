"""A search space as overrides of a config: random draws, all combinations, corners."""

import itertools
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any

from tune.domain import (
    Choice,
    Domain,
    Drawn,
    Equals,
    Integer,
    LogUniform,
    Uniform,
    is_number,
    list_ends,
    read_value,
)
from tune.expression import evaluate, list_paths

Overrides = dict[str, Any]
"""Plain values by config path."""

MAX_CORNERS = 256  # a config is validated in 0.1 ms


def check_space(space: Mapping[str, Domain]) -> None:
    """Raise ValueError for a condition or a tied value that no trial could follow."""
    for path, domain in space.items():
        for parent, value in domain.when.items():
            owner = space.get(parent)
            if not isinstance(owner, Choice) or value not in owner.choice:
                raise ValueError(
                    f"search.space.{path}: when names {parent}={value}: name a path of "
                    "search.space that has this value in {choice: [...]}"
                )
        for name in list_paths(domain.equals) if isinstance(domain, Equals) else ():
            if name not in space:
                raise ValueError(
                    f"search.space.{path}: {name} in equals is not searched: "
                    "add it to search.space, or write its value"
                )
            owner = space[name]
            choices = owner.choice if isinstance(owner, Choice) else ()
            texts = [value for value in choices if not is_number(value)]
            if texts:
                raise ValueError(
                    f"search.space.{path}: {name}={texts[0]} in equals is not a number: "
                    "remove it from the choices"
                )
    _order_paths(space)


def build_overrides(space: Mapping[str, Domain], draw: Callable[[str, Drawn], Any]) -> Overrides:
    """Return the overrides of one trial; `draw(path, domain)` gives the value of a searched path.

    A path whose condition does not hold has no override, so it keeps the config's own value. The
    same holds for a tied value if a path that it names has none. Raises ValueError if a tied value
    cannot be computed.
    """
    values: Overrides = {}
    for path in _order_paths(space):
        domain = space[path]
        if any(values.get(parent) != value for parent, value in domain.when.items()):
            continue
        if not isinstance(domain, Equals):
            values[path] = draw(path, domain)
        elif all(name in values for name in list_paths(domain.equals)):
            try:
                values[path] = evaluate(domain.equals, values)
            except ValueError as error:
                raise ValueError(f"search.space.{path}: {error}") from None
    return {path: values[path] for path in space if path in values}


def sample_space(space: Mapping[str, Domain], num_trials: int, *, seed: int) -> list[Overrides]:
    """Return `num_trials` independent draws; the same seed gives the same draws on every machine.

    >>> sample_space({"lora.rank": Choice(choice=(8, 16))}, 3, seed=0)
    [{'lora.rank': 16}, {'lora.rank': 16}, {'lora.rank': 8}]
    """
    generator = random.Random(seed)
    return [
        build_overrides(space, lambda _path, domain: draw_value(domain, generator))
        for _ in range(num_trials)
    ]


def draw_value(domain: Drawn, generator: random.Random) -> Any:
    """Return a random value of a domain."""
    match domain:
        case LogUniform(loguniform=(low, high)):
            drawn = math.exp(generator.uniform(math.log(low), math.log(high)))
            return min(max(drawn, low), high)  # exp(log(x)) may differ from x by rounding
        case Uniform(uniform=(low, high)):
            return generator.uniform(low, high)
        case Integer(integer=(low, high), log=True):
            # As in Optuna, each number has the range that is rounded to it.
            exponent = generator.uniform(math.log(low - 0.5), math.log(high + 0.5))
            return min(max(round(math.exp(exponent)), low), high)
        case Integer(integer=(low, high)):
            return generator.randint(low, high)
        case Choice(choice=values):
            return generator.choice(values)


def list_combinations(space: Mapping[str, Domain], max_combinations: int) -> list[Overrides]:
    """Return all combinations of a space of choices and whole numbers, each once.

    Raises ValueError if a range has no finite number of values, or if there are more combinations
    than `max_combinations`.
    """
    values: dict[str, Sequence[Any]] = {}
    for path, domain in space.items():
        match domain:
            case LogUniform() | Uniform() | Integer(log=True):
                raise ValueError(
                    f"search.space.{path}: search.algorithm=grid needs a list of values: "
                    "write {choice: [...]}"
                )
            case Integer(integer=(low, high)):
                values[path] = range(low, high + 1)
            case Choice(choice=choices):
                values[path] = choices

    # A condition can remove combinations, but not more than the other paths have values.
    upper_bound = math.prod(map(len, values.values()))
    combinations = _combine(space, values) if upper_bound <= 1_000_000 else []
    num_combinations = len(combinations) or upper_bound
    if num_combinations > max_combinations:
        raise ValueError(
            f"the grid has {num_combinations} combinations, more than search.num_trials="
            f"{max_combinations}: raise it, or remove values"
        )
    return combinations


def list_corners(space: Mapping[str, Domain]) -> list[Overrides]:
    """Return the overrides of every combination of choices and of ends of ranges, each once.

    Of more than `MAX_CORNERS` combinations, return those in which one path has each of its choices
    or ends, and all others have their first. An empty space has none.
    """
    if not space:
        return []
    ends = {
        path: list_ends(domain) for path, domain in space.items() if not isinstance(domain, Equals)
    }
    if math.prod(map(len, ends.values())) <= MAX_CORNERS:
        return _combine(space, ends)

    firsts = {path: values[0] for path, values in ends.items()}
    corners = []
    for path in space:
        searched = {**firsts, **_find_condition(space, path)}
        for value in ends.get(path, (None,)):
            corners.append(_assign(space, {**searched, path: value}))
    return _unique(corners)


def read_point(space: Mapping[str, Domain], point: Mapping[str, Any]) -> Overrides:
    """Return the values of a known point, read by the domains of the space.

    Raises ValueError if a path is not searched, or a value is not in its domain.
    """
    known = {}
    for path, value in point.items():
        domain = space.get(path)
        if domain is None or isinstance(domain, Equals):
            raise ValueError(f"{path} is not drawn from search.space: remove it from the point")
        try:
            known[path] = read_value(domain, value)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    return known


def read_trial(space: Mapping[str, Domain], values: Mapping[str, Any]) -> Overrides:
    """Return the overrides of an earlier trial, whose values may be texts.

    Raises ValueError if the space does not contain the trial.
    """

    def read(path: str, domain: Drawn) -> Any:
        if path not in values:
            raise ValueError(f"the trial has no value of {path}")
        return read_value(domain, values[path])

    overrides = build_overrides(space, read)
    if overrides.keys() != values.keys():
        raise ValueError(f"the trial has other paths than {', '.join(overrides)}")
    for path, value in overrides.items():
        is_tied = isinstance(space[path], Equals)
        if is_tied and not math.isclose(float(values[path]), value):
            raise ValueError(f"{path}={values[path]} is not {value}")
    return overrides


def _combine(space: Mapping[str, Domain], values: Mapping[str, Sequence[Any]]) -> list[Overrides]:
    assignments = (
        dict(zip(values, drawn, strict=True)) for drawn in itertools.product(*values.values())
    )
    return _unique(_assign(space, assignment) for assignment in assignments)


def _assign(space: Mapping[str, Domain], assignment: Mapping[str, Any]) -> Overrides:
    return build_overrides(space, lambda path, _domain: assignment[path])


def _unique(draws: Iterable[Overrides]) -> list[Overrides]:
    return list({tuple(draw.items()): draw for draw in draws}.values())


def _find_condition(space: Mapping[str, Domain], path: str) -> Overrides:
    """Return the values with which a path is searched."""
    condition: Overrides = {}
    for parent, value in space[path].when.items():
        condition.update(_find_condition(space, parent) | {parent: value})
    return condition


def _order_paths(space: Mapping[str, Domain]) -> list[str]:
    """Return the paths so that each follows those that it depends on. Raises ValueError."""
    dependencies = {
        path: [*domain.when, *(list_paths(domain.equals) if isinstance(domain, Equals) else ())]
        for path, domain in space.items()
    }
    try:
        return list(TopologicalSorter(dependencies).static_order())
    except CycleError as error:
        circle = " → ".join(error.args[1])
        raise ValueError(f"search.space: {circle} depend on each other: remove one") from None
