"""Charts of a report as inline SVG: curves over steps, and intervals of a score."""

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Points = Sequence[tuple[float, float]]

MAX_POINTS = 300
"""Points of one curve; a longer one is thinned."""
_WIDTH, _HEIGHT = 360, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 8, 24


@dataclass(frozen=True)
class Curve:
    """One metric of one run over the steps."""

    run: int
    """Number of the run, which gives the colour (class `r0`, `r1`, …)."""
    points: Points
    with_dots: bool = False


@dataclass(frozen=True)
class Range:
    """Interval of a score of one run."""

    run: int
    low: float
    value: float
    high: float


def draw_curves(curves: Sequence[Curve]) -> str:
    """Return the curves in one chart with axes; an empty string without finite points."""
    curves = [Curve(each.run, _thin(_keep_finite(each.points)), each.with_dots) for each in curves]
    points = [point for curve in curves for point in curve.points]
    if not points:
        return ""

    steps, values = [x for x, _ in points], [y for _, y in points]
    left, right = min(steps), max(max(steps), min(steps) + 1)
    ticks = choose_ticks(min(values), max(values))
    bottom, top = min(*ticks, *values), max(*ticks, *values)

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x = _LEFT + (point[0] - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT)
        y = _TOP + (top - point[1]) / (top - bottom) * (_HEIGHT - _TOP - _BOTTOM)
        return round(x, 1), round(y, 1)

    parts = [_draw_axes(place, left, right, ticks)]
    for curve in curves:
        places = [place(point) for point in curve.points]
        line = " ".join(f"{x:g},{y:g}" for x, y in places)
        parts.append(f'<polyline class="r{curve.run}" points="{line}"/>')
        if curve.with_dots:
            parts += [
                f'<circle class="r{curve.run}" cx="{x:g}" cy="{y:g}" r="3"/>' for x, y in places
            ]
    return f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}">{"".join(parts)}</svg>'


def draw_ranges(
    ranges: Sequence[Range], target: float | None, marks: dict[str, float]
) -> list[str]:
    """Return one bar for each range, all on one scale with the target and the named marks.

    The scale is from 0 to 1 (or the lowest and the largest value beyond), so that the bars of
    different scores compare. A letter below each mark is the first one of its name.
    """
    known = [value for each in ranges for value in (each.low, each.high)]
    known += [*marks.values(), *([] if target is None else [target])]
    left, right = min(0.0, *known), max(1.0, *known)
    width = right - left

    def place(value: float) -> str:
        return f"{6 + (value - left) / width * 288:.1f}"

    shared = "".join(
        f'<line class="mark" x1="{place(value)}" x2="{place(value)}" y1="4" y2="16">'
        f"<title>{html.escape(name)}: {format_number(value)}</title></line>"
        f'<text class="middle" x="{place(value)}" y="29">{html.escape(name[:1])}</text>'
        for name, value in marks.items()
    )
    if target is not None:
        x = place(target)
        shared += (
            f'<line class="target" x1="{x}" x2="{x}" y1="0" y2="20">'
            f"<title>target: {format_number(target)}</title></line>"
        )
    return [
        f'<svg class="range" viewBox="0 0 300 32"><line class="axis" x1="6" x2="294" y1="10" '
        f'y2="10"/>{shared}<line class="r{each.run}" x1="{place(each.low)}" '
        f'x2="{place(each.high)}" y1="10" y2="10"/><circle class="r{each.run}" '
        f'cx="{place(each.value)}" cy="10" r="5"/></svg>'
        for each in ranges
    ]


def choose_ticks(low: float, high: float) -> list[float]:
    """Return 2 to 6 round numbers that start at or below `low` and reach `high`.

    >>> choose_ticks(0.3, 8.4)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    unit = next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= 4.5)
    first, last = math.floor(low / unit), math.ceil(high / unit)
    return [float(f"{number * unit:.12g}") for number in range(first, max(last, first + 1) + 1)]


def format_number(value: float) -> str:
    """Return a number with about three digits: `0.473`, `12.4`, `5,207`, `3e-05`."""
    size = abs(value)
    if size != 0 and size < 0.001:
        return f"{value:.2g}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.3g}"


def _draw_axes(place: object, left: float, right: float, ticks: Iterable[float]) -> str:
    assert callable(place)
    parts = []
    for tick in ticks:
        _, y = place((left, tick))
        parts.append(f'<line class="tick" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" class="end">{format_number(tick)}</text>')
    for step, anchor in ((left, "start"), (right, "end")):
        x, _ = place((step, 0.0))
        parts.append(f'<text x="{x}" y="{_HEIGHT - 6}" class="{anchor}">{step:,.0f}</text>')
    parts.append(f'<text x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 6}" class="middle">step</text>')
    return "".join(parts)


def _keep_finite(points: Points) -> Points:
    return [(x, y) for x, y in points if math.isfinite(y)]


def _thin(points: Points) -> Points:
    """Return at most MAX_POINTS points: the mean of each group of neighbours."""
    size = math.ceil(len(points) / MAX_POINTS)
    if size <= 1:
        return points
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]
