"""Numbers in a drawing: parse and format them, with caches that replace most work by a lookup."""

import math
import re
from functools import lru_cache

from data_pipeline.svg.errors import PathError

NUMBER = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
# Far outside any drawing, and far inside the range of exact floats. No written number is larger, so
# that a second pass can read every number that the first has written.
MAX_NUMBER = 5e8

# value + MAGIC - MAGIC rounds to an integer, halves to even: near MAGIC, floats are 1 apart.
MAGIC = 1.5 * 2**52

MAX_CACHED = 50_000  # entries of a cache: a hostile corpus must not fill the memory
MAX_DECIMALS = 8


class NumberCache(dict[str, float | None]):
    """Map from the text of a number to the number, and from a command letter to None.

    A lookup raises PathError for any other text, and for an infinite number.
    """

    def __missing__(self, text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            raise PathError(f"{text!r} in path data") from None
        if math.isinf(number):
            raise PathError(f"the number {text[:40]!r}")

        if len(self) < MAX_CACHED:
            self[text] = number
        return number


class TextCache(dict[float, str]):
    """Map from a whole number of units of 10**-decimals to its text, such as ` 5`, `-5` or ` .25`.

    The text begins with `separator`, unless it begins with a minus sign. The attribute `known`
    holds the same entries in a plain dictionary, in which a lookup is faster.
    """

    def __init__(self, decimals: int, separator: str) -> None:
        self.decimals = decimals
        self.separator = separator
        self.known: dict[float, str] = {}

    def __missing__(self, units: float) -> str:
        text = format_number(units / 10**self.decimals, self.decimals)
        if text[0] != "-":
            text = f"{self.separator}{text}"

        if len(self.known) < MAX_CACHED:
            self.known[units] = self[units] = text
        return text


# One cache for each number of decimals.
TEXTS_AFTER_NUMBER = [TextCache(decimals, " ") for decimals in range(MAX_DECIMALS + 1)]
TEXTS_AFTER_LETTER = [TextCache(decimals, "") for decimals in range(MAX_DECIMALS + 1)]


@lru_cache(maxsize=4096)
def format_number(value: float, decimals: int) -> str:
    """Return the shortest text of the value rounded to this many decimals.

    `0.50` becomes `.5`, and `-0.0` becomes `0`. Raises PathError for a number beyond ±MAX_NUMBER.
    """
    if not -MAX_NUMBER <= value <= MAX_NUMBER:
        raise PathError(f"the number {value:.3g} is beyond ±{MAX_NUMBER:.0e}")
    text = f"{value:.{decimals}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
        text = text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text
    return "0" if text in ("-0", "") else text


def parse_numbers(text: str) -> list[float]:
    """Return every number in the text, with any separators.

    Raises PathError for a number beyond ±MAX_NUMBER.
    """
    numbers = list(map(float, NUMBER.findall(text)))
    if numbers and not -MAX_NUMBER <= min(numbers) <= max(numbers) <= MAX_NUMBER:
        raise PathError(f"a number beyond ±{MAX_NUMBER:.0e} in {text[:40]!r}")
    return numbers
