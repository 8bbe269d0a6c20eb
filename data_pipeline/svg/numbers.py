"""Numbers of a drawing, read and written: dictionaries remember the texts, so that most cost a look-up."""

import re
from functools import lru_cache

NUMBER = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
MAX_NUMBER = 1e7  # far outside any drawing, and far inside what a float holds exactly
MAGIC = (
    1.5 * 2**52
)  # value + MAGIC is MAGIC plus the value rounded, halves to even: there floats are 1 apart
MAX_CACHED = 50_000  # texts of numbers: a hostile corpus must not fill the memory


class PathError(ValueError):
    """The path data is outside the grammar, or has a number beyond ±MAX_NUMBER."""


class Readings(dict[str, float | None]):
    """The text of a number → the number; a command letter → None. Raises PathError."""

    def __missing__(self, text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            raise PathError(f"{text!r} in path data") from None
        if not -MAX_NUMBER <= number <= MAX_NUMBER:
            raise PathError(f"a number beyond ±{MAX_NUMBER:.0e}")
        if len(self) < MAX_CACHED:
            self[text] = number
        return number


class Texts(dict[float, str]):
    """Whole units of 10**-decimals → how the number is written after `gap`: ` 5`, `-5`, ` .25`.

    What was written before is also in `known`, a plain dictionary, which is faster to look up.
    """

    def __init__(self, decimals: int, gap: str) -> None:
        self.decimals = decimals
        self.gap = gap
        self.known: dict[float, str] = {}

    def __missing__(self, units: float) -> str:
        text = format_number(units / 10**self.decimals, self.decimals)
        text = text if text[0] == "-" else f"{self.gap}{text}"
        if len(self.known) < MAX_CACHED:
            self.known[units] = self[units] = text
        return text


@lru_cache(maxsize=4096)
def format_number(value: float, decimals: int) -> str:
    """`0.50` → `.5`, `-0.0` → `0`: the shortest text of the value rounded to that many decimals."""
    text = f"{value:.{decimals}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
        text = text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text
    return "0" if text in ("-0", "") else text


def parse_numbers(text: str) -> list[float]:
    """Every number in the text, whatever separates them. Raises PathError beyond ±MAX_NUMBER."""
    numbers = list(map(float, NUMBER.findall(text)))
    if numbers and not -MAX_NUMBER <= min(numbers) <= max(numbers) <= MAX_NUMBER:
        raise PathError(f"a number beyond ±{MAX_NUMBER:.0e}")
    return numbers
