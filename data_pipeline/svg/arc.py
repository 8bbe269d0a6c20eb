"""Elliptical arcs: choose the written form of a rounded arc, and convert arcs to Bézier curves."""

import math
from typing import Any

from data_pipeline.svg.curves import MAX_SHIFT, MAX_SQUARED_SHIFT
from data_pipeline.svg.numbers import format_number

# A cubic of a quarter turn differs from its circle by up to 0.03 % of the radius. Above this radius
# (output units) these are more than 0.15 units: each cubic then draws at most an eighth of a turn.
LARGE_RADIUS = 512
# Above this radius (output units), an arc may be a line, and its exact midpoint is not computed.
HUGE_RADIUS = 100_000
# Squares and quotients of a shorter chord or radius leave the range of floats.
MIN_LENGTH = 1e-9


def choose_arc_form(  # noqa: PLR0913
    x0: float, y0: float, x: float, y: float,
    rx: float, ry: float, phi: float, large: float, sweep: float,
    scale: float, px: float, py: float,
    rounded_dx: float, rounded_dy: float, rounded_rx: float, rounded_ry: float,
) -> tuple[str, Any]:  # fmt: skip
    """Return the command that draws the arc after scaling and rounding, and its data.

    The arc from (x0, y0) to (x, y) is in input units. Its rounded form has the chord
    (rounded_dx, rounded_dy) from (px, py), in output units.

    Returns `a` and the text of its rotation and flags, `c` and the numbers of absolute cubics in
    input units if rounding would bend the arc, or `l` and None if rounding flattens it.
    """
    dx, dy = x - x0, y - y0
    is_point = -MIN_LENGTH < dx < MIN_LENGTH and -MIN_LENGTH < dy < MIN_LENGTH
    if is_point or rx < MIN_LENGTH or ry < MIN_LENGTH:
        return "l", None
    if rounded_rx > HUGE_RADIUS and not large and _is_line(dx, dy, rx, ry, scale):
        return "l", None
    rotation = " 0"

    # shift: twice the vector by which rounding moves the midpoint
    is_arc = rounded_rx and rounded_ry and (rounded_dx or rounded_dy)
    if is_arc and rx == ry:
        bulge = arc_bulge(dx, dy, 2 * rx, large, sweep)
        rounded_bulge = arc_bulge(rounded_dx, rounded_dy, 2 * rounded_rx, large, sweep)
        shift_x = (x0 + x + dy * bulge) * scale - px - px - rounded_dx - rounded_dy * rounded_bulge
        shift_y = (y0 + y - dx * bulge) * scale - py - py - rounded_dy + rounded_dx * rounded_bulge
    else:
        phi = round(phi, 1) % 180.0 if rx != ry else 0.0
        double_x, double_y = arc_double_midpoint(dx, dy, rx, ry, phi, large, sweep)
        rounded_double_x, rounded_double_y = rounded_dx, rounded_dy
        if is_arc:
            rounded_double_x, rounded_double_y = arc_double_midpoint(
                rounded_dx, rounded_dy, rounded_rx, rounded_ry, phi, large, sweep
            )
        shift_x = (2 * x0 + double_x) * scale - 2 * px - rounded_double_x
        shift_y = (2 * y0 + double_y) * scale - 2 * py - rounded_double_y
        if phi and rounded_rx != rounded_ry:
            rotation = f" {format_number(phi, 1)}"

    # form: near half and full turns, a rounded radius or chord can move the midpoint by many units
    if shift_x * shift_x + shift_y * shift_y <= 4 * MAX_SQUARED_SHIFT:
        if not is_arc:
            return "l", None
        if sweep:
            return "a", rotation + (" 1 1" if large else " 0 1")
        return "a", rotation + (" 1 0" if large else " 0 0")
    phi = phi if rx != ry else 0.0
    large_radius = LARGE_RADIUS / scale
    return "c", convert_arc_to_cubics(
        x0, y0, dx, dy, rx, ry, phi, large, sweep, large_radius=large_radius
    )


def _is_line(dx: float, dy: float, rx: float, ry: float, scale: float) -> bool:
    """Return whether the small arc is nowhere further than MAX_SHIFT / 2 from its chord.

    Its sagitta is at most chord² / 8 times its largest curvature.
    """
    chord = math.hypot(dx, dy)
    smaller, larger = (rx, ry) if rx < ry else (ry, rx)
    return chord / smaller * (larger / smaller) * chord * scale < 4 * MAX_SHIFT


def arc_double_midpoint(
    dx: float, dy: float, rx: float, ry: float, phi: float, large: float, sweep: float
) -> tuple[float, float]:
    """Return twice the point half way along the arc from (0, 0) with the chord (dx, dy).

    `large` and `sweep` are 0 or 1. The source is SVG 1.1, F.6.5, in the frame in which the ellipse
    is a unit circle.
    """
    if phi:
        cos, sin = math.cos(math.radians(phi)), math.sin(math.radians(phi))
        double_x, double_y = arc_double_midpoint(
            dx * cos + dy * sin, dy * cos - dx * sin, rx, ry, 0.0, large, sweep
        )
        return double_x * cos - double_y * sin, double_x * sin + double_y * cos

    u, v = dx / rx, dy / ry
    bulge = arc_bulge(u, v, 2.0, large, sweep)
    return dx + v * bulge * rx, dy - u * bulge * ry


def arc_bulge(dx: float, dy: float, diameter: float, large: float, sweep: float) -> float:
    """Return the sagitta of a circular arc over half its chord (dx, dy).

    The sagitta is the distance from the middle of the chord to the midpoint of the arc: the
    radius ± the distance from chord to centre. It is negative if the arc turns to the other side.
    """
    squared_chord = dx * dx + dy * dy
    square = diameter * diameter - squared_chord
    if square <= 0:  # a diameter too small for the chord grows to a half turn
        return 1.0 if sweep else -1.0
    double_sagitta = diameter + math.sqrt(square) if large else diameter - math.sqrt(square)
    return (double_sagitta if sweep else -double_sagitta) / math.sqrt(squared_chord)


def convert_arc_to_cubics(  # noqa: PLR0913
    x0: float, y0: float, dx: float, dy: float,
    rx: float, ry: float, phi: float, large: float, sweep: float,
    *, large_radius: float,
) -> list[float]:  # fmt: skip
    """Return the numbers of absolute Bézier curves for the arc from (x0, y0) to (x0+dx, y0+dy).

    Each curve turns by at most a quarter (radial error 0.03 %), or by an eighth if a radius is at
    least `large_radius`.
    """
    # chord in the frame of the unit circle
    cos, sin = math.cos(math.radians(phi)), math.sin(math.radians(phi))
    u, v = (dx * cos + dy * sin) / rx, (dy * cos - dx * sin) / ry
    half_chord = math.hypot(u, v) / 2
    if half_chord > 1:  # radii too small for the chord grow
        rx, ry = rx * half_chord, ry * half_chord
        u, v, half_chord = u / half_chord, v / half_chord, 1.0

    # centre
    side = 1.0 if sweep else -1.0
    distance = math.sqrt(1 - half_chord * half_chord)
    share = (distance if large else -distance) * side / (2 * half_chord)
    centre_u, centre_v = u / 2 + v * share, v / 2 - u * share

    # angles
    angle = math.atan2(-centre_v, -centre_u)
    turn = (math.atan2(v - centre_v, u - centre_u) - angle) * side % math.tau * side
    max_turn = math.pi / 2 if max(rx, ry) < large_radius else math.pi / 4
    num_curves = math.ceil(abs(turn) / max_turn - 0.02) or 1  # slightly over two quarters is two
    step = turn / num_curves
    kappa = 4 / 3 * math.tan(step / 4)  # length of the control handles

    # curves
    numbers: list[float] = []
    b_cos, b_sin = math.cos(angle), math.sin(angle)
    for n in range(num_curves):
        a_cos, a_sin = b_cos, b_sin
        b_cos, b_sin = math.cos(angle + (n + 1) * step), math.sin(angle + (n + 1) * step)
        for u, v in (
            (centre_u + a_cos - kappa * a_sin, centre_v + a_sin + kappa * a_cos),
            (centre_u + b_cos + kappa * b_sin, centre_v + b_sin - kappa * b_cos),
            (centre_u + b_cos, centre_v + b_sin),
        ):
            numbers += x0 + (u * rx * cos - v * ry * sin), y0 + (u * rx * sin + v * ry * cos)
    return numbers
