"""Page: the visible part of a drawing, and the map from its user space to the grid."""

import math
import re
from functools import lru_cache
from typing import NamedTuple

from data_pipeline.svg.errors import SVGRefused
from data_pipeline.svg.lengths import GRID, Space, parse_length
from data_pipeline.svg.numbers import NUMBER, format_number, parse_numbers

# With a shorter side of the viewBox, a scaled number leaves the range of exact floats.
MIN_SIDE = 1e-3
MAX_CACHED_PAGE = 96  # characters of the page attributes: a hostile corpus must not fill the memory
MAX_STRETCH = 0.002  # smaller differences between the aspects of picture and viewBox are accidents
FONT_SIZE = 16.0  # pixels in `1em` where the drawing gives no font size

_PAGE_ATTRIBUTES = ("viewBox", "width", "height", "preserveAspectRatio", "font-size")

_FONT_LENGTH = re.compile(rf"({NUMBER.pattern})\s*(em|rem|ex|ch)", re.IGNORECASE)
_EMS = {"em": 1.0, "rem": 1.0, "ex": 0.5, "ch": 0.5}


class Page(NamedTuple):
    """Visible part of a drawing."""

    space: Space
    """Map to the grid, if both axes have the same scale."""
    view_box: str
    """Canonical viewBox."""
    scales: tuple[float, float]
    """Scales of x and y, which differ under `preserveAspectRatio="none"`."""
    viewport: tuple[float, float]
    """Width and height that 100 % means, in the user space of the drawing."""
    is_resized: bool
    """Whether 100 % means something else on the canonical page."""
    units_per_pixel: float
    """User units that one pixel of the picture covers."""


def has_size(attributes: dict[str, str]) -> bool:
    """Return whether a root element gives its size, which may be invalid."""
    if "viewBox" in attributes:
        return True
    sides = [attributes.get(name, "") for name in ("width", "height")]
    return all(side and "%" not in side and side != "auto" for side in sides)


def parse_page(attributes: dict[str, str]) -> Page:
    """Return the page of a root element with these attributes. Raises SVGRefused: `no_viewbox`."""
    values = [attributes.get(name, "") for name in _PAGE_ATTRIBUTES]
    is_short = sum(map(len, values)) < MAX_CACHED_PAGE
    return (_parse_cached if is_short else _parse)(*values)


def _parse(view_box: str, width: str, height: str, preserve: str, font_size: str) -> Page:
    # attributes
    box = parse_numbers(view_box)
    is_box = len(box) == 4 and box[2] > 0 and box[3] > 0
    if is_box:
        picture_width, picture_height = _parse_size(width, box[2]), _parse_size(height, box[3])
    else:
        picture_width, picture_height = (
            _parse_size(_convert_font_length(text, font_size), math.nan) for text in (width, height)
        )
        box = [0.0, 0.0, picture_width, picture_height]

    # visible box
    aspect = picture_width / picture_height
    visible = _fit_aspect(box, aspect, preserve) if is_box and aspect > 0 else box
    x, y, visible_width, visible_height = visible
    longer_side = max(visible_width, visible_height)
    if not (visible_width > 0 and visible_height > 0 and longer_side >= MIN_SIDE):
        raise SVGRefused("no_viewbox", "neither viewBox nor width and height give a visible area")

    # grid
    scale = GRID / longer_side
    sides, scales = (visible_width * scale, visible_height * scale), (scale, scale)
    if "none" in preserve and abs(aspect * visible_height / visible_width - 1) >= MAX_STRETCH:
        sides = (GRID, GRID / aspect) if aspect > 1 else (GRID * aspect, GRID)
        scales = sides[0] / visible_width, sides[1] / visible_height
    texts = [format_number(max(1, side), 1) for side in sides]
    units_per_pixel = [visible_width / picture_width, visible_height / picture_height]
    return Page(
        space=Space(scale, (x, y)),
        view_box=f"0 0 {texts[0]} {texts[1]}",
        scales=scales,
        viewport=(box[2], box[3]),
        is_resized=visible[2:] != box[2:] or scales[0] != scales[1],
        units_per_pixel=next((units for units in units_per_pixel if units > 0), 1.0),
    )


_parse_cached = lru_cache(maxsize=4096)(_parse)


def _parse_size(text: str, whole: float) -> float:
    """Return the pixels of a side of the picture, or NaN if the text gives no size."""
    size = parse_length(text.lower(), whole)
    return size if size and size > 0 else math.nan


def _convert_font_length(text: str, font_size: str) -> str:
    """Return `32` for `2em` of the usual font size; return a text in other units unchanged."""
    match = _FONT_LENGTH.fullmatch(text.strip())
    if match is None:
        return text
    em = parse_length(font_size, FONT_SIZE) or FONT_SIZE
    return format_number(float(match[1]) * _EMS[match[2].lower()] * em, 5)


def _fit_aspect(box: list[float], aspect: float, preserve: str) -> list[float]:
    """Grow (`meet`) or cut (`slice`) the viewBox to the aspect of the picture.

    `none` would need two scales, and returns the box unchanged.
    """
    x, y, width, height = box
    if "none" in preserve or abs(aspect * height / width - 1) < MAX_STRETCH:
        return box

    # size
    is_wider = aspect > width / height
    if is_wider != ("slice" in preserve):
        new_width, new_height = height * aspect, height
    else:
        new_width, new_height = width, width / aspect

    # alignment
    share_x = 0.0 if "xMin" in preserve else 1.0 if "xMax" in preserve else 0.5
    share_y = 0.0 if "YMin" in preserve else 1.0 if "YMax" in preserve else 0.5
    new_x = x - (new_width - width) * share_x
    new_y = y - (new_height - height) * share_y
    return [new_x, new_y, new_width, new_height]
