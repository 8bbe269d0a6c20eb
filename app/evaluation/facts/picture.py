"""Picture: the figures and colours that a viewer of a drawing sees."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from app.evaluation.facts.figures import Figure, merge_figures
from app.evaluation.facts.geometry import measure_perimeter
from app.evaluation.facts.layers import Layer, Painting, read_layers
from app.evaluation.facts.palette import RGB, decode_colour, encode_colour, mix
from app.evaluation.facts.raster import NUM_PIXELS, UNITS, Mask
from app.evaluation.facts.regions import find_figures
from data_pipeline.svg import canonicalise

WHITE = 0xFFFFFF
BACKGROUND = 0.97  # share of the page that a background covers
TINT = 0.5  # a layer of less opacity is a tint over that which lies below

Codes = NDArray[np.int32]


@dataclass
class Picture:
    """Facts of a drawing that claims are compared with."""

    width: float
    height: float
    figures: list[Figure]
    colours: list[tuple[RGB, float]]
    """Visible colours with their shares of the painted area, the background left out."""
    background: RGB
    has_background: bool
    is_coloured: bool
    """Whether the drawing states its colours; an icon that takes the text's colour does not."""
    thickness: float
    """Mean width of the paint (units): of the pen in line art, about half the size of a disc."""
    hole_colours: set[RGB]
    """Colours that are seen through holes of solid figures, such as a digit in a black disc."""
    has_rims: bool
    """Whether a line encloses an area through which the page is seen."""
    covered: float
    """Share of the painted area that lies in the boxes of the figures."""
    regions: dict[RGB, tuple[float, float, float, float]] = field(default_factory=dict)
    """Box of each visible colour: left, top, right, bottom."""
    is_complete: bool = True
    """Whether every element was read."""


@lru_cache(maxsize=512)
def read_picture(svg: str) -> Picture:
    """Return the facts of any SVG. Raises SVGRefused."""
    painting = read_layers(canonicalise(svg))
    return Canvas(painting).describe()


class Canvas:
    """Painted page: the colour of each pixel, and the layer that the viewer sees there."""

    def __init__(self, painting: Painting) -> None:
        self.painting = painting
        columns = np.arange(NUM_PIXELS) * UNITS < painting.width
        rows = np.arange(NUM_PIXELS) * UNITS < painting.height
        self.corner_rows = (0, int(rows.sum()) - 1)
        self.corner_columns = (0, int(columns.sum()) - 1)
        self.page: Mask = rows[:, None] & columns[None, :]
        self.codes: Codes = np.full((NUM_PIXELS, NUM_PIXELS), WHITE, dtype=np.int32)
        self.owners: Codes = np.full((NUM_PIXELS, NUM_PIXELS), -1, dtype=np.int32)
        self.background = -1
        for number, layer in enumerate(painting.layers):
            self._paint(number, layer)

    def _paint(self, number: int, layer: Layer) -> None:
        mask = layer.mask & self.page
        below = self.codes[mask]
        if layer.opacity > 0.98:
            above = np.full_like(below, encode_colour(mix(layer.colours)))
        else:
            above = _blend(below, mix(layer.colours), layer.opacity)

        # paint of the colour that is there already is not seen
        corners = mask[np.ix_(self.corner_rows, self.corner_columns)]
        covers = mask.sum() >= BACKGROUND * self.page.sum() and corners.all()
        is_page = number == 0 and covers
        if is_page and layer.opacity > TINT:
            self.background = number
        is_seen = (above != below) | is_page
        self.codes[mask] = above
        takes = is_seen if layer.opacity >= TINT else is_seen & (self.owners[mask] < 0)
        self.owners[mask] = np.where(takes, number, self.owners[mask])

    def describe(self) -> Picture:
        """Return the facts of the painted page."""
        painted = (self.owners >= 0) & (self.owners != self.background)
        has_background = self.background >= 0
        background = WHITE
        if has_background:
            background = encode_colour(mix(self.painting.layers[self.background].colours))

        figures: list[Figure] = []
        for number, layer in enumerate(self.painting.layers):
            if number == self.background:
                continue
            seen = self.owners == number
            if self._is_bordered(number):  # white on the white page, with an outline around it
                seen |= layer.mask & (self.codes == encode_colour(mix(layer.colours)))
            if seen.any():
                figures += find_figures(layer, seen, self.codes, background)
        return Picture(
            width=self.painting.width,
            height=self.painting.height,
            figures=merge_figures(figures),
            colours=list(self._measure_colours(painted)),
            background=decode_colour(background),
            has_background=has_background,
            is_coloured=any(layer.is_coloured for layer in self.painting.layers),
            thickness=self._measure_thickness(),
            hole_colours={c for figure in figures if figure.is_hole for c in figure.fills},
            has_rims=any(figure.is_outlined for figure in figures),
            covered=_measure_cover(painted, figures),
            regions=self._find_regions(painted),
            is_complete=self.painting.is_complete,
        )

    def _is_bordered(self, number: int) -> bool:
        """Return whether the layer is the fill of an element whose stroke is the next layer."""
        layers = self.painting.layers
        is_last = number + 1 == len(layers)
        return not is_last and layers[number + 1].contours is layers[number].contours

    def _measure_colours(self, painted: Mask) -> Iterator[tuple[RGB, float]]:
        num_painted = max(int(painted.sum()), 1)
        gradients = [
            number for number, layer in enumerate(self.painting.layers) if len(layer.colours) > 1
        ]
        plain = painted.copy()
        for number in gradients:
            mask = (self.owners == number) & plain
            share = float(mask.sum()) / num_painted
            plain &= ~mask
            colours = self.painting.layers[number].colours
            for colour in colours if share else ():
                yield colour, share / len(colours)
        codes, counts = np.unique(self.codes[plain], return_counts=True)
        for code, count in zip(codes.tolist(), counts.tolist(), strict=True):
            yield decode_colour(code), count / num_painted

    def _find_regions(self, painted: Mask) -> dict[RGB, tuple[float, float, float, float]]:
        regions = {}
        for code in np.unique(self.codes[painted]).tolist():
            rows, columns = np.nonzero((self.codes == code) & painted)
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            left, top, right, bottom = (float(side) * UNITS for side in box)
            regions[decode_colour(code)] = (left, top, right, bottom)
        return regions

    def _measure_thickness(self) -> float:
        """Return 2 · area / perimeter of the opaque layers, which is the width of a line."""
        areas, thicknesses = [], []
        for number, layer in enumerate(self.painting.layers):
            area = float((self.owners == number).sum()) * UNITS**2
            if number == self.background or not area or layer.opacity < TINT:
                continue
            thickness = layer.stroke_width
            if not thickness:
                perimeter = sum(measure_perimeter(contour.points) for contour in layer.contours)
                thickness = 2 * float(layer.mask.sum()) * UNITS**2 / max(perimeter, 1.0)
            areas.append(area)
            thicknesses.append(thickness)
        return float(np.average(thicknesses, weights=areas)) if areas else 0.0


def _measure_cover(painted: Mask, figures: list[Figure]) -> float:
    covered = np.zeros_like(painted)
    for figure in figures:
        left, top, right, bottom = (round(max(0.0, side) / UNITS) for side in figure.box)
        covered[top : bottom + 1, left : right + 1] |= bool(figure.shapes)
    return float((painted & covered).sum() / max(painted.sum(), 1))


def _blend(below: Codes, colour: RGB, opacity: float) -> Codes:
    blended = np.zeros_like(below)
    for shift, share in zip((16, 8, 0), colour, strict=True):
        channel = (below >> shift) & 255
        mixed = np.rint(channel * (1 - opacity) + 255 * share * opacity).astype(np.int32)
        blended |= mixed << shift
    return blended
