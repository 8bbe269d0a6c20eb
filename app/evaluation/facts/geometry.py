"""Measures of closed polylines: area, perimeter, box, hull."""

import numpy as np

from app.evaluation.facts.outline import Points

Box = tuple[float, float, float, float]  # left, top, right, bottom


def follow(points: Points) -> Points:
    """Return the points from the second on, and the first at the end."""
    return np.concatenate((points[1:], points[:1]))


def measure_area(points: Points) -> float:
    """Return the signed area of a polygon."""
    following = follow(points)
    return float((points.real * following.imag - points.imag * following.real).sum() / 2)


def measure_perimeter(points: Points) -> float:
    """Return the length of a closed polyline."""
    return float(np.abs(follow(points) - points).sum())


def measure_box(points: Points) -> Box:
    """Return left, top, right and bottom."""
    x, y = points.real, points.imag
    return float(x.min()), float(y.min()), float(x.max()), float(y.max())


def find_hull(points: Points) -> Points:
    """Return the convex hull, with positive area."""
    ordered = sorted({(point.real, point.imag) for point in points.tolist()})

    def walk(corners: list[tuple[float, float]]) -> list[tuple[float, float]]:
        chain: list[tuple[float, float]] = []
        for x, y in corners:
            while len(chain) > 1:
                (ax, ay), (bx, by) = chain[-2:]
                if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                    break
                chain.pop()
            chain.append((x, y))
        return chain[:-1]

    return np.array([complex(*corner) for corner in walk(ordered) + walk(ordered[::-1])])


def overlap(one: Box, other: Box) -> float:
    """Return the intersection over the union of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def grow(box: Box, distance: float) -> Box:
    """Return the box with each side moved outwards."""
    left, top, right, bottom = box
    return left - distance, top - distance, right + distance, bottom + distance
