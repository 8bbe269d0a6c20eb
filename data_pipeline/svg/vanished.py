"""Segments that rounding shortens to nothing: keep those that decide the caps or joins of a stroke.

Vectors are complex numbers in units of the last decimal.
"""

import re

from data_pipeline.svg.numbers import parse_numbers

MIN_CLOSING = 1e-3  # a shorter closing segment is an error of floats
_LETTER = re.compile("[a-z]")
_DIAGONAL = 0.4142  # tangent of 22.5°: a steeper direction is nearer to the diagonal


def choose_dot(moved: complex, last: complex, *, is_closed: bool) -> list[complex]:
    """Return the lines that replace a subpath without length in a stroked path.

    `moved` is the vector from its first to its last point, `last` is its last segment.

    The caps of an open subpath are a dot. They stand along its last segment. A closed subpath has
    joins, which cover a square if it surrounds an area.
    """
    step = _find_direction(last)
    if not is_closed:
        return [step if step.real and step.imag else 0j]
    if abs(_cross(moved, last)) < 1e-6 * abs(moved) * abs(last):
        return [step]
    return [1 + 0j, 1j, -1 + 0j] if step else [0j]


def read_line(form: str, text: str) -> complex:
    """Return the vector of a written line, whose last command is `h`, `v` or `l`."""
    numbers = parse_numbers(text)
    return complex(*numbers) if form == "l" else numbers[0] * (1j if form == "v" else 1)


def choose_join_steps(before: complex, vanished: complex, after: complex) -> list[complex]:
    """Return the line of one unit that replaces vanished segments between two lines, or no line.

    A short segment changes the join only where the second line turns back.
    """
    turns_back = (before.conjugate() * after).real < 0
    step = _find_direction(vanished)
    return [step] if turns_back and _cross(before, step) else []


def close_join(
    parts: list[str],
    first: int,
    vanished: complex,
    last_form: str,
    texts: dict[float, str],
    heads: dict[float, str],
) -> None:
    """Shorten the last line by one unit where the segment that closes a subpath decides a join.

    `parts[first]` is the first written segment of the subpath. `vanished` is the exact vector
    from the end of the last one to the first point, and rounding has made it 0.
    """
    if abs(vanished) < MIN_CLOSING or len(parts) - first < 2 or last_form not in "hlv":
        return
    first_form = parts[first][0] if parts[first][0].isalpha() else "l"
    if first_form not in "hlv":
        return

    before = read_line(last_form, parts[-1])
    for step in choose_join_steps(before, vanished, read_line(first_form, parts[first])):
        form_before = _LETTER.findall("".join(parts[first - 1 : -1]))[-1].replace("m", "l")
        line = before / float(texts[1.0]) - step  # in units of the last decimal
        line = complex(round(line.real), round(line.imag))
        parts[-1] = write_lines([line], form_before, texts, heads)[0]


def write_lines(
    steps: list[complex], last_form: str, texts: dict[float, str], heads: dict[float, str]
) -> tuple[str, str]:
    """Return the text of the lines, and its last command."""
    parts = []
    for step in steps:
        dx, dy = step.real, step.imag
        form = "l" if dx and dy else "v" if dy else "h"
        first_texts = texts if form == last_form else heads
        numbers = {
            "l": f"{first_texts[dx]}{texts[dy]}",
            "h": first_texts[dx],
            "v": first_texts[dy],
        }
        parts.append(numbers[form] if form == last_form else f"{form}{numbers[form]}")
        last_form = form
    return "".join(parts), last_form


def _find_direction(vector: complex) -> complex:
    """Return the nearest of the eight vectors along the axes and diagonals, or 0 for 0."""
    u, v = vector.real, vector.imag
    limit = max(abs(u), abs(v)) * _DIAGONAL
    return complex((u > limit) - (u < -limit), (v > limit) - (v < -limit))


def _cross(a: complex, b: complex) -> float:
    return a.real * b.imag - a.imag * b.real
