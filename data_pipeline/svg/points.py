"""Point lists of polygons and polylines, which are absolute."""

import re
from itertools import pairwise

from data_pipeline.svg.numbers import MAGIC, TEXTS_AFTER_NUMBER, parse_numbers
from data_pipeline.svg.vanished import choose_join_steps

_NUMBERS = re.compile(r"[-+.0-9][-+.,\seE0-9]*+")


def scale_points(
    text: str,
    scale: float,
    origin: tuple[float, float] = (0.0, 0.0),
    decimals: int = 0,
    *,
    measure: bool = False,
    is_stroked: bool = False,
) -> tuple[str, float]:
    """Return `1 2 3 4` for `1,2 3,4 5`: (point - origin) * scale, rounded, without an odd number.

    If `is_stroked`, short segments that decide a join survive rounding. Also returns the area over
    which rounding moves the outline, as `scale_path` does. Raises PathError.
    """
    # read up to the first error
    found = _NUMBERS.search(text)
    numbers = parse_numbers(found[0]) if found else []

    # round
    num_coordinates = len(numbers) // 2 * 2
    units = scale * 10**decimals
    scaled = [
        (number - origin[n % 2]) * units for n, number in enumerate(numbers[:num_coordinates])
    ]
    rounded = [number + MAGIC - MAGIC for number in scaled]
    if is_stroked:
        _keep_joins(scaled, rounded)

    # measure
    double_area = 0.0
    if measure:
        errors = [abs(a - b) for a, b in zip(scaled, rounded, strict=True)]
        for n in range(2, num_coordinates, 2):
            double_area += (errors[n] + errors[n - 2]) * abs(scaled[n + 1] - scaled[n - 1])
            double_area += (errors[n + 1] + errors[n - 1]) * abs(scaled[n] - scaled[n - 2])

    # write
    texts = TEXTS_AFTER_NUMBER[decimals]
    written = [texts.known.get(number) or texts[number] for number in rounded]
    return "".join(written).lstrip(), double_area / 2


def _keep_joins(scaled: list[float], rounded: list[float]) -> None:
    """Move the second of two equal rounded points by a unit where their segment decides a join."""
    points = [complex(x, y) for x, y in zip(rounded[::2], rounded[1::2], strict=True)]
    exact = [complex(x, y) for x, y in zip(scaled[::2], scaled[1::2], strict=True)]
    if all(a != b for a, b in pairwise(points)):
        return

    first = 0  # of the points that are equal to the current one
    for n in range(1, len(points)):
        if points[n] != points[first]:
            steps = []
            if first and n - first > 1:
                before, after = points[first] - points[first - 1], points[n] - points[first]
                steps = choose_join_steps(before, exact[n - 1] - exact[first], after)
            for step in steps:
                rounded[2 * n - 2] += step.real
                rounded[2 * n - 1] += step.imag
            first = n
