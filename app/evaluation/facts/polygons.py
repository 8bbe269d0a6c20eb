"""Polygons: outlines whose long straight sides meet in corners, which may be rounded."""

import math
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from app.evaluation.facts.geometry import follow, measure_area, measure_perimeter
from app.evaluation.facts.outline import Points
from app.evaluation.facts.verdict import Verdict

Shapes = dict[str, Verdict]
"""Names that fit an outline (`right`), and names that may fit (`cannot_tell`)."""
Side = tuple[complex, complex]

SIDE_TURN = math.radians(2.5)  # a larger turn between two steps ends a side
SAME_TURN = math.radians(4)  # largest turn between two parts of one side
SIDE_STRAIGHTNESS = 0.996  # chord over length of a side
MIN_SIDE = 0.04  # of the perimeter
EQUAL_AXES = 1.1, 1.2  # longer over shorter axis of a circle or a square: sure, perhaps
LONG = 4.5, 3.0  # length over width of a line: sure, perhaps


def find_sides(points: Points) -> list[Side]:
    """Return the ends of each long straight part of the outline, in order."""
    steps = follow(points) - points
    turns = np.abs(np.angle(follow(steps) * steps.conj()))
    breaks = (np.flatnonzero(turns > SIDE_TURN) + 1) % len(points)
    breaks.sort()
    if len(breaks) < 2:
        return []

    # lengths along the outline from its first break
    points, lengths = np.roll(points, -breaks[0]), np.roll(np.abs(steps), -breaks[0])
    along = np.append(0, np.cumsum(lengths))
    ends = [*(breaks - breaks[0]).tolist(), len(points)]
    cyclic = np.append(points, points[0])
    sides = []
    for first, last in pairwise(ends):
        begin, end, length = cyclic[first], cyclic[last], along[last] - along[first]
        is_long = length >= MIN_SIDE * along[-1]
        if is_long and abs(end - begin) >= SIDE_STRAIGHTNESS * length:
            sides.append((complex(begin), complex(end)))
    return _join_collinear(sides)


def _join_collinear(sides: list[Side]) -> list[Side]:
    """Join neighbours on one straight line: a small notch divides a side."""
    joined: list[Side] = []
    for side in sides:
        if joined and _is_continued(joined[-1], side):
            joined[-1] = (joined[-1][0], side[1])
        else:
            joined.append(side)
    if len(joined) > 2 and _is_continued(joined[-1], joined[0]):
        joined[0] = (joined.pop()[0], joined[0][1])
    return joined


def _is_continued(one: Side, other: Side) -> bool:
    direction = (one[1] - one[0]) / abs(one[1] - one[0])
    ahead = (other[0] - one[1]) / direction
    turn = (other[1] - other[0]) / abs(other[1] - other[0]) / direction
    # A long gap is a notch that the eye sees.
    is_near = abs(ahead) < 0.5 * abs(one[1] - one[0]) and abs(ahead.imag) < 0.05 * abs(
        one[1] - one[0]
    )
    return is_near and abs(math.atan2(turn.imag, turn.real)) < SAME_TURN


def intersect_sides(points: Points, sides: list[Side]) -> Points | None:
    """Return the corners in which the sides meet, or None if they do not describe the outline.

    Rounded or cut corners are allowed.
    """
    straight = sum(abs(end - begin) for begin, end in sides)
    if len(sides) < 3 or straight < 0.42 * measure_perimeter(points):
        return None

    corners = []
    for (a, b), (c, d) in zip(sides, sides[1:] + sides[:1], strict=True):
        one, two = b - a, d - c
        cross = one.real * two.imag - one.imag * two.real
        if abs(cross) < 0.2 * abs(one) * abs(two):  # nearly parallel
            return None
        share = ((c - a).real * two.imag - (c - a).imag * two.real) / cross
        corners.append(a + share * one)

    polygon = np.array(corners)
    area = measure_area(polygon)
    if np.abs(follow(polygon) - polygon).min() < 0.1:  # three sides meet in one corner
        return None
    least = 0.72 if len(polygon) == 3 else 0.85  # rounding takes more of sharp corners
    if area <= 0 or not least <= measure_area(points) / area <= 1.05:
        return None
    return polygon


def classify_polygon(corners: Points) -> Shapes:
    """Return the shapes of a polygon with positive area."""
    edges = np.roll(corners, -1) - corners
    lengths = np.abs(edges)
    turns = np.angle(edges / np.roll(edges, 1))
    num_corners = len(corners)
    is_convex = bool((turns > 0).all())
    evenness = float(lengths.min() / lengths.max())

    if not is_convex:
        return _classify_concave(corners, turns)
    if num_corners == 3:
        return {"triangle": "right"}
    if num_corners == 4:
        return _classify_quadrilateral(edges, turns)
    name = {5: "pentagon", 6: "hexagon", 8: "octagon"}.get(num_corners)
    if name is None:
        return {}
    return {name: "right" if evenness > 0.45 else "cannot_tell"}


def _classify_quadrilateral(edges: Points, turns: NDArray[np.float64]) -> Shapes:
    lengths = np.abs(edges)
    one, two = (lengths[0] + lengths[2]) / 2, (lengths[1] + lengths[3]) / 2
    aspect = float(max(one, two) / min(one, two))
    skew = float(np.abs(turns - math.pi / 2).max())

    if skew < math.radians(8):
        tilt = abs(math.degrees(np.angle(edges[0])) % 90 - 45)  # 45 at the axes, 0 at diagonals
        return _classify_rectangle(aspect, tilt)
    tilts = np.abs(np.degrees(np.angle(edges)) % 90 - 45)  # 45 at the axes
    if lengths.max() / lengths.min() < 1.15 and tilts.max() < 35:
        return {"diamond": "right", "parallelogram": "cannot_tell"}

    # pairs of parallel sides
    limit = math.radians(7)
    num_pairs = sum(abs(abs(turns[n] + turns[n + 1]) - math.pi) < limit for n in (0, 1))
    if num_pairs == 2:
        return {"parallelogram": "right", "diamond": "cannot_tell", "rectangle": "cannot_tell"}
    if num_pairs == 1:
        is_slight = skew < math.radians(15)
        maybe: Shapes = {"rectangle": "cannot_tell"} if is_slight else {}
        return {"trapezoid": "right", **maybe}
    return {"diamond": "cannot_tell"}


def _classify_rectangle(aspect: float, tilt: float) -> Shapes:
    if aspect <= EQUAL_AXES[0]:
        if tilt > 30:
            return {"square": "right", "rectangle": "cannot_tell"}
        if tilt > 15:
            return {"square": "cannot_tell", "diamond": "cannot_tell"}
        return {"diamond": "right"}
    if aspect <= EQUAL_AXES[1]:
        return {"square": "cannot_tell", "rectangle": "right"}
    if aspect < LONG[1]:
        return {"rectangle": "right"}
    is_line: Verdict = "right" if aspect >= LONG[0] else "cannot_tell"
    return {"rectangle": "right" if aspect < 8 else "cannot_tell", "line": is_line}


def _classify_concave(corners: Points, turns: NDArray[np.float64]) -> Shapes:
    num_corners = len(corners)
    is_convex = turns > 0
    alternates = bool((is_convex != np.roll(is_convex, 1)).all())
    if alternates and num_corners >= 8:
        radii = np.abs(corners - corners.mean())
        outer, inner = radii[is_convex], radii[~is_convex]
        if outer.min() > 1.15 * inner.max():
            return {"star": "right"}
    right_angles = np.abs(np.abs(turns) - math.pi / 2) < math.radians(10)
    if num_corners == 12 and right_angles.all() and is_convex.sum() == 8:
        return {"cross": "right"}
    return {}
