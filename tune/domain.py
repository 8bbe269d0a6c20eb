"""Domains: the values that a search may give to one config path."""

import re
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from tune.expression import list_paths

_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def _read_exponent(value: Any) -> Any:
    """Return the number of a text such as 1e-4, which YAML 1.1 reads as a text."""
    is_number = isinstance(value, str) and _EXPONENT.fullmatch(value)
    return float(value) if is_number else value


def _require_number(value: Any) -> Any:
    """Return the value. Raises ValueError for true and false, which pydantic takes for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is not a number: write the ends as numbers")
    return value


_Float = Annotated[float, BeforeValidator(_require_number)]
_Int = Annotated[int, BeforeValidator(_require_number)]
Scalar = Annotated[bool | int | float | str, BeforeValidator(_read_exponent)]


class _Domain(BaseModel):
    """A domain, and the condition under which its path is searched."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    when: dict[str, Scalar] = Field(default_factory=dict)


class LogUniform(_Domain):
    """A positive number on [low, high] whose logarithm is uniform."""

    loguniform: tuple[Annotated[_Float, Field(gt=0)], Annotated[_Float, Field(gt=0)]]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self.loguniform)
        return self


class Uniform(_Domain):
    """A uniform number on [low, high]."""

    uniform: tuple[_Float, _Float]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self.uniform)
        return self


class Integer(_Domain):
    """A whole number on [low, high], uniform; with `log`, its logarithm is uniform."""

    integer: tuple[_Int, _Int]
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self.integer)
        if self.log and self.integer[0] < 1:
            raise ValueError(f"the low end {self.integer[0]} must be at least 1 with log")
        return self


class Choice(_Domain):
    """One of the listed values."""

    choice: tuple[Scalar, ...] = Field(min_length=1)


class Equals(_Domain):
    """A value tied to those of other searched paths: `2 * lora.rank`."""

    equals: str

    @model_validator(mode="after")
    def _parsed(self) -> Self:
        if not list_paths(self.equals):
            raise ValueError(
                f"{self.equals!r} names no searched path: write the value into its own section"
            )
        return self


Drawn = LogUniform | Uniform | Integer | Choice
Domain = Drawn | Equals


def list_ends(domain: Drawn) -> tuple[Any, ...]:
    """Return all choices, or both ends of a range."""
    match domain:
        case Choice(choice=values):
            return values
        case LogUniform(loguniform=ends) | Uniform(uniform=ends) | Integer(integer=ends):
            return ends


def read_value(domain: Drawn, value: Any) -> Any:
    """Return the value of the domain that a value, or its text, names.

    Raises ValueError if the domain does not contain it.

    >>> read_value(Choice(choice=(8, 16)), "16")
    16
    """
    if isinstance(domain, Choice):
        for choice in domain.choice:
            if str(choice) == str(value) or (is_number(choice) and choice == value):
                return choice
        raise ValueError(f"{value!r} is not one of {list(domain.choice)}")

    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} is not a number") from None
    low, high = list_ends(domain)
    if not low <= number <= high:
        raise ValueError(f"{value} is not between {low} and {high}")
    if isinstance(domain, Integer):
        if not number.is_integer():
            raise ValueError(f"{value} is not a whole number")
        return int(number)
    return number


def is_number(value: Any) -> bool:
    """Return True for int and float, but not for bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_order(bounds: tuple[float, float]) -> None:
    if not bounds[0] < bounds[1]:
        raise ValueError(f"the low end {bounds[0]} must be below the high end {bounds[1]}")
