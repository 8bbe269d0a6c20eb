"""Types of command-line arguments: each function reads one text.

It raises ArgumentTypeError for a text that it refuses, and argparse then names the argument.
"""

import argparse
import math

from data_pipeline.errors import DataError
from data_pipeline.home import expand_home

_MAX_PORT = 65_535


def parse_path(text: str) -> str:
    """Return a path with `~` expanded."""
    try:
        return expand_home(text)
    except DataError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parse_not_negative(text: str) -> float:
    """Return a finite number of at least 0."""
    number = _parse_float(text)
    if not (math.isfinite(number) and number >= 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number ≥ 0: give such a number")
    return number


def parse_positive(text: str) -> float:
    """Return a finite number above 0."""
    number = _parse_float(text)
    if not (math.isfinite(number) and number > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number > 0: give such a number")
    return number


def parse_port(text: str) -> int:
    """Return the number of a port."""
    if not (text.isdecimal() and 0 < int(text) <= _MAX_PORT):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: give 1 to {_MAX_PORT}")
    return int(text)


def _parse_float(text: str) -> float:
    """Return the number, or NaN if the text is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
