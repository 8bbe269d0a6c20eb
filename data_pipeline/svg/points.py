"""Point lists of polygons and polylines, which are absolute."""

import re
from itertools import accumulate, pairwise

from data_pipeline.svg.numbers import MAGIC, TEXTS_AFTER_NUMBER, parse_numbers
from data_pipeline.svg.vanished import MIN_CLOSING, choose_dot, choose_join_steps

_NUMBERS = re.compile(r"[-+.0-9](?:[-+.\seE0-9]++|,(?!\s*,))*+")


def scale_points(
    text: str,
    scale: float,
    origin: tuple[float, float] = (0.0, 0.0),
    decimals: int = 0,
    *,
    measure: bool = False,
    is_stroked: bool = False,
    is_closed: bool = False,
) -> tuple[str, float]:
    """Return `1 2 3 4` for `1,2 3,4 5`: (point - origin) * scale, rounded, without an odd number.

    If `is_stroked`, short segments that decide a join or a cap survive rounding. Also returns the
    area over which rounding moves the outline, as `scale_path` does. Raises PathError.
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
        _keep_short_segments(scaled, rounded, is_closed)

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


def _keep_short_segments(scaled: list[float], rounded: list[float], is_closed: bool) -> None:
    """Move rounded points by a unit where the segment to an equal point decides a join or cap."""
    points = [complex(x, y) for x, y in zip(rounded[::2], rounded[1::2], strict=True)]
    exact = [complex(x, y) for x, y in zip(scaled[::2], scaled[1::2], strict=True)]
    are_apart = all(a != b for a, b in pairwise(points))
    if len(points) < 2 or (are_apart and not (is_closed and points[0] == points[-1])):
        return
    if all(point == points[0] for point in points):
        moves = _keep_dot(exact, is_closed)
    else:
        moves = _keep_joins(points, exact)
        if is_closed and points[0] == points[-1]:
            moves |= _keep_closing_join(points, exact)

    for n, step in moves.items():
        rounded[2 * n] += step.real
        rounded[2 * n + 1] += step.imag


def _keep_dot(exact: list[complex], is_closed: bool) -> dict[int, complex]:
    """Return the moves of points that are all equal."""
    steps = choose_dot(exact[-1] - exact[0], exact[-1] - exact[-2], is_closed=is_closed)
    if not is_closed:
        return {len(exact) - 1: steps[0]}
    return dict(zip(range(1, len(exact)), accumulate(steps[:2]), strict=False))


def _keep_joins(points: list[complex], exact: list[complex]) -> dict[int, complex]:
    moves = {}
    first = 0  # of the points that are equal to the current one
    for n in range(1, len(points)):
        if points[n] != points[first]:
            if first and n - first > 1:
                before, after = points[first] - points[first - 1], points[n] - points[first]
                for step in choose_join_steps(before, exact[n - 1] - exact[first], after):
                    moves[n - 1] = step
            first = n
    return moves


def _keep_closing_join(points: list[complex], exact: list[complex]) -> dict[int, complex]:
    """Return the move of the first of the last points, which are equal to the first point."""
    others = [n for n, point in enumerate(points) if point != points[0]]
    first, last = others[0], others[-1]
    vanished = exact[first - 1] - exact[last + 1]
    if abs(vanished) < MIN_CLOSING:
        return {}
    before, after = points[0] - points[last], points[first] - points[0]
    steps = choose_join_steps(before, vanished, after)
    return {last + 1: -steps[0]} if steps else {}
