"""Elliptical arcs: where their middle is, the Bézier curves that draw them, and what is left of them when rounded."""

import math
from typing import Any

from data_pipeline.svg_numbers import MAGIC, format_number

# How far rounding may move the middle of an arc (output units). Near half and full turns the rounded radius or chord
# can move it by many units: the arc becomes cubics.
SLACK = 0.75
_FLAGS = {0.0: " 0 0", 1.0: " 1 0", 2.0: " 0 1", 3.0: " 1 1"}  # large + 2 * sweep
TINY = 1e-9  # of an arc: below it squares and quotients leave the range of floats


def arc_form(
    x0: float, y0: float, x: float, y: float, rx: float, ry: float, phi: float, large: float, sweep: float, k: float,
    px: float, py: float, written_dx: float, written_dy: float,
) -> tuple[str, Any]:  # fmt: skip
    """What the arc from (x0, y0) to (x, y) is written as when all is scaled by k and rounded, to a chord
    (written_dx, written_dy) from (px, py): `a`, with the text of its rotation and flags; `c`, if rounding would bend
    it, with the numbers of absolute cubics in input units; or `l`, if rounding flattens it."""
    dx, dy = x - x0, y - y0
    if (-TINY < dx < TINY and -TINY < dy < TINY) or rx < TINY or ry < TINY:
        return "l", None
    written_rx, turned = rx * k + MAGIC - MAGIC, "0"
    is_arc = written_rx and (written_dx or written_dy)
    if is_arc and rx == ry:
        bow = arc_bow(dx * dx + dy * dy, rx, large)
        written_bow = arc_bow(written_dx * written_dx + written_dy * written_dy, written_rx, large)
        if not sweep:
            bow, written_bow = -bow, -written_bow
        off_x = (x0 + dx / 2 + dy * bow) * k - px - written_dx / 2 - written_dy * written_bow
        off_y = (y0 + dy / 2 - dx * bow) * k - py - written_dy / 2 + written_dx * written_bow
    else:
        phi = round(phi, 1) % 180.0 if rx != ry else 0.0
        written_ry = ry * k + MAGIC - MAGIC
        is_arc = is_arc and written_ry
        middle_x, middle_y = arc_middle(dx, dy, rx, ry, phi, large, sweep)
        written_x, written_y = written_dx / 2, written_dy / 2
        if is_arc:
            written_x, written_y = arc_middle(written_dx, written_dy, written_rx, written_ry, phi, large, sweep)
        off_x, off_y = (x0 + middle_x) * k - px - written_x, (y0 + middle_y) * k - py - written_y
        turned = format_number(phi, 1) if phi and written_rx != written_ry else "0"
    if off_x * off_x + off_y * off_y <= SLACK * SLACK:
        return ("a", f" {turned}{_FLAGS[large + 2 * sweep]}") if is_arc else ("l", None)
    curves = arc_cubics(dx, dy, rx, ry, phi if rx != ry else 0.0, large, sweep, big=512 / k)
    return "c", [(y0 if i % 2 else x0) + number for curve in curves for i, number in enumerate(curve)]


def arc_middle(
    dx: float, dy: float, rx: float, ry: float, phi: float, large: float, sweep: float
) -> tuple[float, float]:
    """The point half way along the arc whose chord is (dx, dy); `large` and `sweep` are 0 or 1.

    SVG 1.1, F.6.5, in the frame in which the ellipse is a unit circle: the middle is off the chord's middle by
    1 ± the distance from chord to centre.
    """
    if phi:
        cos, sin = math.cos(math.radians(phi)), math.sin(math.radians(phi))
        middle_x, middle_y = arc_middle(dx * cos + dy * sin, dy * cos - dx * sin, rx, ry, 0.0, large, sweep)
        return middle_x * cos - middle_y * sin, middle_x * sin + middle_y * cos
    u, v = dx / rx, dy / ry
    bow = arc_bow(u * u + v * v, 1.0, large) if sweep else -arc_bow(u * u + v * v, 1.0, large)
    return dx / 2 + v * bow * rx, dy / 2 - u * bow * ry


def arc_bow(chord: float, radius: float, large: float) -> float:
    """How far the middle of a circle's arc is off its chord, as a share of the chord's length; `chord` is the square
    of that length."""
    square = chord / (4 * radius * radius)  # of the sine of half the angle
    if square >= 1:  # radii too small for the chord grow to a half turn
        return 0.5
    rise = math.sqrt(1 - square)
    return (1 + rise if large else 1 - rise) / (2 * math.sqrt(square))


def arc_cubics(
    dx: float, dy: float, rx: float, ry: float, phi: float, large: float, sweep: float, *, big: float
) -> list[tuple[float, float, float, float, float, float]]:
    """The arc as Bézier curves from (0, 0) that turn by at most a quarter each (radial error 0.03%), and by an
    eighth where a radius is `big`."""
    cos, sin = math.cos(math.radians(phi)), math.sin(math.radians(phi))
    u, v = (dx * cos + dy * sin) / rx, (dy * cos - dx * sin) / ry
    half = math.hypot(u, v) / 2
    if half > 1:
        rx, ry, u, v, half = rx * half, ry * half, u / half, v / half, 1.0
    rise = math.sqrt(1 - half * half) if large else -math.sqrt(1 - half * half)
    most = math.pi / 2 if max(rx, ry) < big else math.pi / 4
    side = 1.0 if sweep else -1.0
    share = rise * side / (2 * half)
    cu, cv = u / 2 + v * share, v / 2 - u * share
    angle = math.atan2(-cv, -cu)
    turn = (math.atan2(v - cv, u - cu) - angle) * side % math.tau * side
    num_curves = math.ceil(abs(turn) / most - 0.02) or 1  # a little more than two quarters is two

    def back(u: float, v: float) -> tuple[float, float]:
        return u * rx * cos - v * ry * sin, u * rx * sin + v * ry * cos

    step = turn / num_curves
    pull = 4 / 3 * math.tan(step / 4)
    curves = []
    for n in range(num_curves):
        a, b = angle + n * step, angle + (n + 1) * step
        first = back(cu + math.cos(a) - pull * math.sin(a), cv + math.sin(a) + pull * math.cos(a))
        second = back(cu + math.cos(b) + pull * math.sin(b), cv + math.sin(b) - pull * math.cos(b))
        curves.append((*first, *second, *back(cu + math.cos(b), cv + math.sin(b))))
    return curves
