"""Elliptical arcs: where their middle is, the Bézier curves that draw them, and what is left of them when rounded."""

import math
from typing import Any

from data_pipeline.svg.numbers import format_number

# How far rounding may move the middle of an arc (output units). Near half and full turns the rounded radius or chord
# can move it by many units: the arc becomes cubics.
SLACK = 0.75
TINY = 1e-9  # of an arc: below it squares and quotients leave the range of floats


def arc_form(
    x0: float, y0: float, x: float, y: float, rx: float, ry: float, phi: float, large: float, sweep: float, k: float,
    px: float, py: float, written_dx: float, written_dy: float, written_rx: float, written_ry: float,
) -> tuple[str, Any]:  # fmt: skip
    """What the arc from (x0, y0) to (x, y) is written as when all is scaled by k and rounded, to a chord
    (written_dx, written_dy) from (px, py): `a`, with the text of its rotation and flags; `c`, if rounding would bend
    it, with the numbers of absolute cubics in input units; or `l`, if rounding flattens it."""
    dx, dy = x - x0, y - y0
    if (-TINY < dx < TINY and -TINY < dy < TINY) or rx < TINY or ry < TINY:
        return "l", None
    turned = " 0"
    # `off` is twice how far the middle is moved.
    is_arc = written_rx and written_ry and (written_dx or written_dy)
    if is_arc and rx == ry:
        bow = arc_bow(dx, dy, 2 * rx, large, sweep)
        written_bow = arc_bow(written_dx, written_dy, 2 * written_rx, large, sweep)
        off_x = (x0 + x + dy * bow) * k - px - px - written_dx - written_dy * written_bow
        off_y = (y0 + y - dx * bow) * k - py - py - written_dy + written_dx * written_bow
    else:
        phi = round(phi, 1) % 180.0 if rx != ry else 0.0
        middle_x, middle_y = arc_middle(dx, dy, rx, ry, phi, large, sweep)
        written_x, written_y = written_dx, written_dy
        if is_arc:
            written_x, written_y = arc_middle(
                written_dx, written_dy, written_rx, written_ry, phi, large, sweep
            )
        off_x, off_y = (
            (2 * x0 + middle_x) * k - 2 * px - written_x,
            (2 * y0 + middle_y) * k - 2 * py - written_y,
        )
        if phi and written_rx != written_ry:
            turned = f" {format_number(phi, 1)}"
    if off_x * off_x + off_y * off_y <= 4 * SLACK * SLACK:
        if not is_arc:
            return "l", None
        return "a", turned + (
            (" 1 1" if large else " 0 1") if sweep else (" 1 0" if large else " 0 0")
        )
    return "c", arc_cubics(
        x0, y0, dx, dy, rx, ry, phi if rx != ry else 0.0, large, sweep, big=512 / k
    )


def arc_middle(
    dx: float, dy: float, rx: float, ry: float, phi: float, large: float, sweep: float
) -> tuple[float, float]:
    """Twice the point half way along the arc whose chord is (dx, dy); `large` and `sweep` are 0 or 1.

    SVG 1.1, F.6.5, in the frame in which the ellipse is a unit circle.
    """
    if phi:
        cos, sin = math.cos(math.radians(phi)), math.sin(math.radians(phi))
        middle_x, middle_y = arc_middle(
            dx * cos + dy * sin, dy * cos - dx * sin, rx, ry, 0.0, large, sweep
        )
        return middle_x * cos - middle_y * sin, middle_x * sin + middle_y * cos
    u, v = dx / rx, dy / ry
    bow = arc_bow(u, v, 2.0, large, sweep)
    return dx + v * bow * rx, dy - u * bow * ry


def arc_bow(dx: float, dy: float, diameter: float, large: float, sweep: float) -> float:
    """How far the middle of a circle's arc is off the middle of its chord (dx, dy), as a share of half the chord:
    the radius ± the distance from chord to centre. Negative where the arc turns to the other side."""
    chord = dx * dx + dy * dy
    square = diameter * diameter - chord
    if square <= 0:  # a diameter too small for the chord grows to a half turn
        return 1.0 if sweep else -1.0
    rise = diameter + math.sqrt(square) if large else diameter - math.sqrt(square)
    return (rise if sweep else -rise) / math.sqrt(chord)


def arc_cubics(
    x0: float, y0: float, dx: float, dy: float, rx: float, ry: float, phi: float, large: float, sweep: float, *,
    big: float,
) -> list[float]:  # fmt: skip
    """The numbers of Bézier curves for the arc from (x0, y0) that turn by at most a quarter each (radial error
    0.03%), and by an eighth where a radius is `big`."""
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
    step = turn / num_curves
    pull = 4 / 3 * math.tan(step / 4)
    curves: list[float] = []
    b_cos, b_sin = math.cos(angle), math.sin(angle)
    for n in range(num_curves):
        a_cos, a_sin = b_cos, b_sin
        b_cos, b_sin = math.cos(angle + (n + 1) * step), math.sin(angle + (n + 1) * step)
        for u, v in (
            (cu + a_cos - pull * a_sin, cv + a_sin + pull * a_cos),
            (cu + b_cos + pull * b_sin, cv + b_sin - pull * b_cos),
            (cu + b_cos, cv + b_sin),
        ):
            curves += x0 + (u * rx * cos - v * ry * sin), y0 + (u * rx * sin + v * ry * cos)
    return curves
