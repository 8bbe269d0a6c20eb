"""Figures: what a viewer recognises in strokes and fills, merged over layers."""

from dataclasses import dataclass, replace

import numpy as np

from app.evaluation.facts.geometry import Box, grow, measure_box, overlap
from app.evaluation.facts.layers import Layer
from app.evaluation.facts.outline import Contour, Points
from app.evaluation.facts.palette import RGB
from app.evaluation.facts.polygons import Shapes
from app.evaluation.facts.shapes import classify_outline, is_arc

SAME_BOX = 0.8  # intersection over union of two boxes that show one figure
SAME_INNER_BOX = 0.6  # the same for a fill and the inside of its outline
STRAIGHT = 0.03  # largest bend of a line, as a share of its length


@dataclass(frozen=True, eq=False)
class Figure:
    """One shape that a viewer sees."""

    shapes: Shapes
    box: Box
    fills: tuple[RGB, ...]
    """Colours of its inside; empty if the page shows through."""
    pens: tuple[RGB, ...]
    """Colours of its outline; empty if it has none."""
    pen_width: float = 0.0
    is_hole: bool = False
    """Whether it is cut out of a solid figure."""
    is_frame: bool = False
    """Whether its inside is divided into other figures."""

    @property
    def is_outlined(self) -> bool:
        """Return whether it is drawn as an outline only."""
        return not self.fills

    @property
    def extent(self) -> float:
        """Return the longer side of its box."""
        left, top, right, bottom = self.box
        return max(right - left, bottom - top)

    @property
    def centre(self) -> complex:
        """Return the centre of its box."""
        left, top, right, bottom = self.box
        return complex(left + right, top + bottom) / 2


def describe_stroke(contour: Contour, layer: Layer) -> Figure:
    """Return the figure of one contour of a stroke."""
    points, half = contour.points, layer.stroke_width / 2
    left, top, right, bottom = measure_box(points)
    box = (left - half, top - half, right + half, bottom + half)
    pens = tuple(layer.colours)

    if np.abs(np.diff(points)).sum() < half:  # a dot
        return Figure({"circle": "right"}, box, pens, ())
    if not contour.is_closed:
        return _describe_open(points, layer.stroke_width, box, pens)
    shapes = classify_outline(points)
    return Figure(shapes, box, (), pens, layer.stroke_width)


def _describe_open(points: Points, pen_width: float, box: Box, pens: tuple[RGB, ...]) -> Figure:
    chord, length = abs(points[-1] - points[0]), float(np.abs(np.diff(points)).sum())
    if chord > (1 - STRAIGHT) * length:
        return Figure({"line": "right"}, box, (), pens)
    shapes: Shapes = {"line": "cannot_tell"}
    if chord < 0.25 * length:
        shapes |= dict.fromkeys(classify_outline(points), "cannot_tell")
    elif is_arc(points, pen_width):
        shapes["circle"] = "cannot_tell"
    return Figure(shapes, box, (), pens)


def merge_figures(figures: list[Figure]) -> list[Figure]:
    """Merge figures of one shape in one place: a fill and its outline, a disc and its border."""
    merged: list[Figure] = []
    for figure in figures:
        for n, other in enumerate(merged):
            is_same = figure.shapes.keys() & other.shapes.keys()
            # A fill ends between the inner and the outer edge of the outline around it.
            inner = grow(figure.box, -0.75 * figure.pen_width)
            is_filled = figure.pen_width > 0 and overlap(inner, other.box) >= SAME_INNER_BOX
            if is_same and (is_filled or overlap(figure.box, other.box) >= SAME_BOX):
                merged[n] = _merge(other, figure)
                break
        else:
            if figure.shapes:
                merged.append(figure)
    return merged


def _merge(below: Figure, above: Figure) -> Figure:
    shapes = dict(below.shapes)
    for name, verdict in above.shapes.items():
        if verdict == "right" or name not in shapes:
            shapes[name] = verdict
    fills = above.fills or below.fills
    return replace(
        below,
        shapes=shapes,
        fills=fills,
        pens=(*above.pens, *below.pens),
        pen_width=max(above.pen_width, below.pen_width),
        is_frame=above.is_frame or below.is_frame,
    )
