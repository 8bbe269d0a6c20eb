"""Regions: the figures of fills, with the holes in them and the colours that a viewer sees."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.evaluation.facts.figures import Figure, describe_stroke
from app.evaluation.facts.geometry import Box, grow, measure_area, measure_box, measure_perimeter
from app.evaluation.facts.layers import Layer
from app.evaluation.facts.outline import Points
from app.evaluation.facts.palette import RGB, decode_colour
from app.evaluation.facts.polygons import Shapes
from app.evaluation.facts.raster import UNITS, Mask, fill_mask
from app.evaluation.facts.shapes import classify_outline, is_arc

MAX_CONTOURS = 400  # of one layer; the rest of an enormous path is not compared
MIN_VISIBLE = 0.3  # share of a figure's paint that no later layer covers
MIN_SHARE = 0.15  # of a figure's visible area that has one colour
MIN_HOLE = 0.25  # share of an outline's area that makes its rim a line
MAIN_HOLE = 0.7  # share of all holes' area of the hole that gives a rim its shape
MIN_PARALLEL_HOLE = 0.1  # the same, if the hole is concentric and of one shape with the outline


def find_figures(
    layer: Layer, seen: Mask, codes: NDArray[np.int32], background: int
) -> list[Figure]:
    """Return the figures of a layer.

    `seen` are the pixels at which a viewer sees the layer, `codes` the colours of the page.
    """
    if layer.stroke_width:
        figures = [describe_stroke(contour, layer) for contour in layer.contours[:MAX_CONTOURS]]
        visible = float(seen.sum()) >= MIN_VISIBLE * float(layer.mask.sum())
        return figures if visible else []
    return _FillReader(layer, seen, codes, background).find_figures()


@dataclass
class _Region:
    """One contour of a fill."""

    points: Points
    area: float
    box: Box
    sign: int
    shapes: Shapes
    is_hole: bool = False
    holes: tuple["_Region", ...] = ()


class _FillReader:
    def __init__(self, layer: Layer, seen: Mask, codes: NDArray[np.int32], background: int) -> None:
        self.layer = layer
        self.seen = seen
        self.codes = codes
        self.background = background

    def find_figures(self) -> list[Figure]:
        """Return the figures of the solid contours and of their holes."""
        figures = []
        for region in self._find_solids():
            figures += self._describe(region)
        return figures

    def _find_solids(self) -> list[_Region]:
        """Return the contours that hold paint, with the holes in them."""
        regions = []
        for contour in self.layer.contours[:MAX_CONTOURS]:
            area = measure_area(contour.points)
            if abs(area) >= 2:
                box, sign = measure_box(contour.points), 1 if area > 0 else -1
                regions.append(_Region(contour.points, abs(area), box, sign, {}))
        regions.sort(key=lambda region: -region.area)

        solids: list[_Region] = []
        for n, region in enumerate(regions):
            outer = [other for other in regions[:n] if _contains(other, region)]
            if self.layer.is_even_odd:
                winding = (len(outer) + 1) % 2
            else:
                winding = region.sign + sum(other.sign for other in outer)
            region.is_hole = winding == 0
            is_hidden = bool(outer) and not outer[-1].is_hole and not region.is_hole
            if is_hidden:
                continue
            region.shapes = classify_outline(region.points)
            if region.is_hole and outer:
                outer[-1].holes += (region,)
            elif not region.is_hole:
                solids.append(region)
        return solids

    def _describe(self, solid: _Region) -> list[Figure]:
        inside = fill_mask([solid.points])
        mask = inside & self.layer.mask
        num_visible = int((mask & self.seen).sum())
        if num_visible < MIN_VISIBLE * int(mask.sum()) or not num_visible:
            return []
        paint = self._find_colours(mask & self.seen)

        # a rim: the page or another layer is seen through the hole
        hole_area = sum(hole.area for hole in solid.holes)
        largest = max(solid.holes, key=lambda hole: hole.area, default=None)
        is_rim = hole_area >= MIN_HOLE * solid.area or _is_parallel(solid, largest)
        box = _find_visible_box(solid.box, mask & self.seen)
        if not is_rim or largest is None:
            shapes = solid.shapes or _classify_arc(solid)
            holes = [
                Figure(hole.shapes, hole.box, self._find_colours_in(hole), (), is_hole=True)
                for hole in solid.holes
            ]
            return [Figure(shapes, box, paint, ()), *holes]

        edges = sum(measure_perimeter(edge.points) for edge in (solid, *solid.holes))
        pen_width = 2 * (solid.area - hole_area) / edges
        cells = [hole for hole in solid.holes if hole is not largest]
        if largest.area >= MAIN_HOLE * hole_area:
            shapes = _combine_rim(solid.shapes, largest.shapes)
            if solid.shapes.keys().isdisjoint(largest.shapes):
                box = grow(largest.box, pen_width)  # the rim continues in other parts
            rim = Figure(shapes, box, self._see_through(largest), paint, pen_width)
        else:
            cells.append(largest)
            is_frame = sum(bool(hole.shapes) for hole in cells) > 1
            rim = Figure(solid.shapes, box, (), paint, pen_width, is_frame=is_frame)
        return [rim, *(Figure(c.shapes, c.box, self._see_through(c), paint) for c in cells)]

    def _see_through(self, hole: _Region) -> tuple[RGB, ...]:
        """Return the colours in a hole, or none if only the page is there."""
        codes = self.codes[fill_mask([hole.points]) & ~self.seen]
        if not len(codes) or (codes == self.background).mean() > 0.5:
            return ()
        return self._find_colours_in(hole)

    def _find_colours_in(self, hole: _Region) -> tuple[RGB, ...]:
        return self._find_colours(fill_mask([hole.points]))

    def _find_colours(self, mask: Mask) -> tuple[RGB, ...]:
        """Return the colours that fill at least MIN_SHARE of the pixels."""
        if len(self.layer.colours) > 1 and (mask & self.seen).sum() * 2 > mask.sum():
            return tuple(self.layer.colours)
        codes, counts = np.unique(self.codes[mask], return_counts=True)
        return tuple(
            decode_colour(code)
            for code, count in zip(codes.tolist(), counts.tolist(), strict=True)
            if count >= MIN_SHARE * counts.sum()
        )


def _is_parallel(solid: _Region, hole: _Region | None) -> bool:
    """Return whether a hole in the middle has the shape of the outline around it."""
    if hole is None or hole.area < MIN_PARALLEL_HOLE * solid.area:
        return False
    is_concentric = all(
        abs(hole.box[n] + hole.box[n + 2] - solid.box[n] - solid.box[n + 2]) < 4 for n in (0, 1)
    )
    return is_concentric and "right" in (
        verdict for name, verdict in hole.shapes.items() if solid.shapes.get(name) == "right"
    )


def _contains(outer: _Region, inner: _Region) -> bool:
    (a, b, c, d), (left, top, right, bottom) = outer.box, inner.box
    if left < a - 0.01 or top < b - 0.01 or right > c + 0.01 or bottom > d + 0.01:
        return False

    # crossings of a ray from one point of the inner contour
    point = (inner.points[0] + inner.points[1]) / 2
    begins, ends = outer.points, np.roll(outer.points, -1)
    crosses = (begins.imag > point.imag) != (ends.imag > point.imag)
    begins, ends = begins[crosses], ends[crosses]
    share = (point.imag - begins.imag) / (ends.imag - begins.imag)
    x = begins.real + share * (ends.real - begins.real)
    return bool((x > point.real).sum() % 2)


def _classify_arc(solid: _Region) -> Shapes:
    """Return that a thin band may be called a circle, of which it shows a part."""
    thickness = 2 * solid.area / measure_perimeter(solid.points)
    left, top, right, bottom = solid.box
    is_thin = thickness < 0.25 * max(right - left, bottom - top)
    return {"circle": "cannot_tell"} if is_thin and is_arc(solid.points, thickness) else {}


def _find_visible_box(box: Box, visible: Mask) -> Box:
    """Return the box without the sides that later layers cover."""
    rows, columns = np.nonzero(visible)
    edges = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) * UNITS
    sides = [
        float(edge) if abs(edge - side) > 2 * UNITS else side
        for edge, side in zip(edges, box, strict=True)
    ]
    return sides[0], sides[1], sides[2], sides[3]


def _combine_rim(outer: Shapes, inner: Shapes) -> Shapes:
    """Return the shapes of a rim by its two edges: either may be disturbed by other parts."""
    combined = dict(inner)
    for name, verdict in outer.items():
        if combined.get(name) != "right":
            combined[name] = verdict
    return combined
