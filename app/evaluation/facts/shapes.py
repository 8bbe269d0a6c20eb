"""Shapes of closed outlines: polygon, circle, ellipse, line, star, part of a circle."""

import math

import numpy as np

from app.evaluation.facts.geometry import (
    find_hull,
    follow,
    measure_area,
    measure_box,
)
from app.evaluation.facts.outline import Points
from app.evaluation.facts.polygons import (
    EQUAL_AXES,
    Shapes,
    Side,
    classify_polygon,
    find_sides,
    intersect_sides,
)
from app.evaluation.facts.verdict import Verdict

MIN_EXTENT = 3.0  # units; no shape is seen in a smaller outline
ROUNDNESS = 0.07, 0.11  # largest distance from the fitted ellipse: sure, perhaps
# share of the hull's area, of an outline that may be called by the name of its hull
MIN_SOLIDITY = 0.75
MIN_POLYGON_SOLIDITY = 0.85
LONG_ROUND = 2.2, 1.9  # the same with round ends, as a pen makes them


def classify_outline(points: Points) -> Shapes:
    """Return the shapes of a closed outline.

    >>> classify_outline(np.array([0, 10, 10 + 10j, 10j]))
    {'square': 'right', 'rectangle': 'cannot_tell'}
    """
    left, top, right, bottom = measure_box(points)
    if len(points) < 3 or max(right - left, bottom - top) < MIN_EXTENT:
        return {}
    points = _simplify(points, max(right - left, bottom - top) / 100)
    area = measure_area(points)
    if len(points) < 3 or abs(area) < 1:
        return {}
    points = points if area > 0 else points[::-1]

    shapes = _classify_exactly(points)
    if shapes:
        return shapes
    # An outline with small notches or bumps may be called by the name of its hull.
    hull = find_hull(points)
    solidity = abs(area) / measure_area(hull)
    shapes = _classify_exactly(hull) if solidity > MIN_SOLIDITY else {}
    least = MIN_SOLIDITY if "ellipse" in shapes else MIN_POLYGON_SOLIDITY
    return dict.fromkeys(shapes, "cannot_tell") if solidity > least else {}


def _classify_exactly(points: Points) -> Shapes:
    sides = find_sides(points)
    corners = intersect_sides(points, sides)
    if corners is not None:
        shapes = classify_polygon(corners)
        if shapes:
            return shapes
    if len(sides) == 2:
        shapes = _classify_capsule(points, sides)
        if shapes:
            return shapes
    return _classify_ellipse(points) or _classify_lobes(points)


def _simplify(points: Points, distance: float) -> Points:
    """Drop points that are closer than the distance to the last kept one."""
    if np.abs(np.diff(points)).min() >= distance:
        return points
    kept = [points[0]]
    for point in points[1:]:
        if abs(point - kept[-1]) >= distance:
            kept.append(point)
    return np.array(kept)


def _classify_capsule(points: Points, sides: list[Side]) -> Shapes:
    """Return the shapes of two parallel sides with round ends."""
    (a, b), (c, d) = sides
    direction = (b - a) / abs(b - a)
    turn = (d - c) / abs(d - c) / direction
    if turn.real > -0.985:
        return {}
    turned = points / direction
    length, width = np.ptp(turned.real), np.ptp(turned.imag)
    ratio = measure_area(points) / (length * width - (1 - math.pi / 4) * width**2)
    if length < 1.1 * width or not 0.9 < ratio < 1.12:
        return {}

    aspect = float(length / width)
    shapes: Shapes = {"pill": "right", "rectangle": "cannot_tell", "ellipse": "cannot_tell"}
    if aspect >= LONG_ROUND[1]:
        shapes["line"] = "right" if aspect >= LONG_ROUND[0] else "cannot_tell"
    return shapes


def _classify_ellipse(points: Points) -> Shapes:
    """Compare the outline with the ellipse of equal moments."""
    following = follow(points)
    cross = points.real * following.imag - points.imag * following.real
    area = cross.sum() / 2
    centre = ((points + following) * cross).sum() / (6 * area)
    shifted, following = points - centre, following - centre
    x, y, u, v = shifted.real, shifted.imag, following.real, following.imag
    cross = x * v - y * u
    xx = (cross * (x * x + x * u + u * u)).sum() / (12 * area)
    yy = (cross * (y * y + y * v + v * v)).sum() / (12 * area)
    xy = (cross * (x * v + 2 * x * y + 2 * u * v + u * y)).sum() / (24 * area)

    values, vectors = np.linalg.eigh(np.array([[xx, xy], [xy, yy]]))
    if values[0] <= 0:
        return {}
    axes = 2 * np.sqrt(values)
    unit = vectors.T @ np.stack([x, y]) / axes[:, None]
    deviation = float(np.abs(np.hypot(unit[0], unit[1]) - 1).max())
    if deviation > ROUNDNESS[1]:
        return {}

    sure: Verdict = "right" if deviation <= ROUNDNESS[0] else "cannot_tell"
    aspect = axes[1] / axes[0]
    if aspect <= EQUAL_AXES[0]:
        return {"circle": sure, "ellipse": "cannot_tell"}
    if aspect <= EQUAL_AXES[1]:
        return {"circle": "cannot_tell", "ellipse": sure}
    return {"ellipse": sure}


def is_arc(points: Points, pen_width: float) -> bool:
    """Return whether points on the edges of a line with this width show half a circle or more."""
    # circle through the points by least squares (Kåsa 1976)
    matrix = np.stack([points.real, points.imag, np.ones(len(points))], axis=1)
    x, y, rest = np.linalg.lstsq(matrix, np.abs(points) ** 2, rcond=None)[0]
    centre = complex(x, y) / 2
    radius = math.sqrt(max(rest + abs(centre) ** 2, 0.0))
    distances = np.abs(points - centre)
    is_near = np.abs(distances - radius).max() < pen_width * 0.6 + 0.06 * radius
    gaps = np.diff(np.sort(np.angle(points - centre)), append=math.nan)
    gaps[-1] = math.tau - np.nansum(gaps)
    return bool(is_near and gaps.max() < math.pi)


def _classify_lobes(points: Points) -> Shapes:
    """Return whether the distance from the centre rises and falls regularly, as in a round star."""
    centre = points.mean()
    angles = np.linspace(-math.pi, math.pi, 128, endpoint=False)
    spokes = points - centre
    order = np.argsort(np.angle(spokes))
    radii = np.interp(angles, np.angle(spokes)[order], np.abs(spokes)[order], period=2 * math.pi)
    spectrum = np.abs(np.fft.rfft(radii - radii.mean()))[:25] / len(radii)
    num_lobes = int(spectrum.argmax())
    amplitude = 2 * spectrum[num_lobes] / radii.mean()
    regularity = spectrum[num_lobes] ** 2 / max((spectrum**2).sum(), 1e-12)
    if not (4 <= num_lobes <= 12 and amplitude > 0.1 and regularity > 0.6):
        return {}
    if num_lobes == 4 and abs(measure_area(points)) < 0.5 * measure_area(find_hull(points)):
        return {"cross": "right", "star": "cannot_tell"}
    return {"star": "right" if num_lobes == 5 else "cannot_tell"}
