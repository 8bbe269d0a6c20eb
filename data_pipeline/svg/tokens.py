"""Tokens of path data: command letters and numbers, by the grammar of SVG 1.1."""

import re
from collections.abc import Sequence
from typing import Any

from data_pipeline.svg.errors import PathError
from data_pipeline.svg.numbers import NUMBER, NumberCache

# letter → (command in lower case, whether its coordinates are relative)
COMMANDS = {letter: (letter.lower(), letter.islower()) for letter in "MmZzLlHhVvCcSsQqTtAa"}
FLAGS = ("0", "1")

# The last alternative matches a letter, or a character that the grammar does not allow.
_TOKEN = re.compile(rf"(?>{NUMBER.pattern})|[^\s,]")
# The same without exponents and plus signs, which is faster.
_COMMON_TOKEN = re.compile(r"[-0-9][0-9]*+\.?+[0-9]*+|\.[0-9]++|[^\s,]")

# Arguments of each command in lower case, with the separators before them.
_SEPARATOR = r"\s*+,?+\s*+"
_N, _FLAG = rf"{_SEPARATOR}(?>{NUMBER.pattern})", rf"{_SEPARATOR}[01]"
_ARGUMENTS = {
    letter: re.compile(f"{_N * 3}{_FLAG * 2}{_N * 2}" if letter == "a" else _N * count)
    for letter, count in zip("mlhvcsqta", (2, 2, 1, 1, 6, 4, 4, 2, 0), strict=True)
}
_LETTER = re.compile(rf"{_SEPARATOR}([MmZzLlHhVvCcSsQqTtAa])")

_NUMBERS = NumberCache(dict.fromkeys(COMMANDS))


def tokenise_path(d: str) -> tuple[list[str], Sequence[Any]]:
    """Return the tokens of the path data, and their values: a number, or None for a letter.

    Raises PathError for a token outside the grammar, for two commas without a number between them,
    and for data that does not begin with `m`.
    """
    has_rare_token = "e" in d or "E" in d or "+" in d
    tokens = (_TOKEN if has_rare_token else _COMMON_TOKEN).findall(d)
    is_separated = ",," not in d and ", ," not in d
    if not (d.isascii() and is_separated) or (tokens and tokens[0] not in "Mm"):
        raise PathError(f"path data {d.strip()[:40]!r}")
    return tokens, tuple(map(_NUMBERS.__getitem__, tokens))


def read_touching_flags(
    tokens: list[str], values: Sequence[Any], index: int
) -> tuple[float, float, float, float, int]:
    """Return two flags, x and y, and the index behind them.

    Flags are single digits, and the next number may follow without a separator: `015 5` is
    0 1 5 5. Raises PathError.
    """
    numbers: list[Any] = []
    rest = ""
    for _ in range(2):
        if not rest:
            rest = tokens[index]
            index += 1
        if rest[0] not in FLAGS:
            raise PathError(f"arc flag {rest[:40]!r}")
        numbers.append(float(rest[0]))
        rest = rest[1:]

    if rest:
        numbers.append(_NUMBERS[rest])
    end = index + 4 - len(numbers)
    numbers += values[index:end]
    return numbers[0], numbers[1], numbers[2], numbers[3], end


def cut_at_error(d: str) -> str:
    """Return `M4 4h9` for `M4 4h9 l3`: the segments before the first error."""
    end = len(d) if d.isascii() else len(d.encode("ascii", "replace").decode().partition("?")[0])
    position, is_empty = 0, True
    while letter := _LETTER.match(d, position, end):
        command = letter[1].lower()
        if is_empty and command != "m":
            break

        # arguments
        position_behind = letter.end()
        if command in _ARGUMENTS:
            while arguments := _ARGUMENTS[command].match(d, position_behind, end):
                position_behind = arguments.end()
            if position_behind == letter.end():
                break
        position, is_empty = position_behind, False
    return d[:position]
