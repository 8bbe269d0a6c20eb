"""Canonical form: turn one SVG string into one safe canonical SVG string, or refuse it by name."""

import math
from dataclasses import replace
from functools import lru_cache

from data_pipeline.svg.errors import PathError, SVGRefused
from data_pipeline.svg.lengths import GRID, Space, parse_length
from data_pipeline.svg.names import SHAPES
from data_pipeline.svg.numbers import format_number, parse_numbers
from data_pipeline.svg.parse import parse_tree
from data_pipeline.svg.prune import prune_tree
from data_pipeline.svg.scale import is_scalable, scale_tree
from data_pipeline.svg.tree import Drawing, Node, serialise_tree

# With a shorter side of the viewBox, a scaled number leaves the range of exact floats.
MIN_SIDE = 1e-3

# Rounding is visible when it moves the outlines of a stroked drawing by more than 0.45 % of the
# page (2.3 of the 255 grey levels in the mean). Such a drawing gets one more decimal if that costs
# few tokens. Above 4.5 % of the page, it gets one more decimal unless its text is enormous.
MAX_MOVED_AREA = GRID * GRID / 225
MAX_MOVED_AREA_OF_LONG_TEXT = GRID * GRID / 22
MAX_REFINED_LENGTH = 1_500  # characters
MAX_REFINED_LENGTH_OF_FAR_MOVED = 500_000  # characters

MAX_CACHED_PAGE = 96  # characters of the page attributes: a hostile corpus must not fill the memory
MAX_STRETCH = 0.002  # smaller differences between the aspects of picture and viewBox are accidents
_PAGE_ATTRIBUTES = ("viewBox", "width", "height", "preserveAspectRatio")
_ROOT_ATTRIBUTES_TO_REMOVE = (*_PAGE_ATTRIBUTES, "x", "y", "transform", "href")


def canonicalise(svg: str | bytes, *, max_bytes: int = 4_000_000) -> str:
    """Return the same drawing as a safe standalone SVG on a grid whose longer side is 256 units.

    Nothing in the result runs, refers outside the result, or describes the picture in words: it
    has no script, handler, animation, bitmap, metadata, title, comment or original id. Paths are
    relative integers. The result is a fixed point: canonicalise(canonicalise(x)) ==
    canonicalise(x).

    >>> path = '<title>box</title><path d="M1.5,3H12V6z"/>'
    >>> canonicalise(f'<svg viewBox="0 0 24 24" onload="x()">{path}</svg>')
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 256 256"><path d="m16 32h112v32z"/></svg>'

    Raises SVGRefused with one of the reasons too_large, bad_gzip, bad_encoding, entities, not_xml,
    not_svg, too_many_elements, too_many_attributes, too_deep, unsupported_style, empty,
    no_viewbox, bad_path, bad_transform, bad_number.
    """
    try:
        drawing, space, view_box = _read_drawing(svg, max_bytes)

        # usual precision
        originals = [node.attributes.copy() for node in drawing.nodes]
        text, needs_decimal = _write_drawing(drawing, space, view_box, max_bytes)
        if not needs_decimal:
            return text

        # one more decimal
        for node, attributes in zip(drawing.nodes, originals, strict=True):
            node.attributes = attributes
        fine_text, _ = _write_drawing(drawing, space, view_box, max_bytes, more_decimals=1)

        # Decide on the refined drawing: otherwise a second pass could decide differently.
        same_space = replace(space, scale=1.0, origin=(0.0, 0.0))
        text, needs_decimal = _write_drawing(drawing, same_space, view_box, max_bytes)
    except PathError as error:
        raise SVGRefused("bad_number", str(error)) from None
    return fine_text if needs_decimal else text


def _read_drawing(svg: str | bytes, max_bytes: int) -> tuple[Drawing, Space, str]:
    """Return the drawing, the space that it must be scaled to, and the canonical viewBox."""
    drawing = prune_tree(parse_tree(svg, max_bytes=max_bytes))
    if SHAPES.isdisjoint(drawing.tags):
        raise SVGRefused("empty", "nothing is drawn")

    # page
    attributes = drawing.nodes[0].attributes
    values = [attributes.get(name, "") for name in _PAGE_ATTRIBUTES]
    is_short = sum(map(len, values)) < MAX_CACHED_PAGE
    space, view_box = (_parse_page_cached if is_short else _parse_page)(*values)
    for name in _ROOT_ATTRIBUTES_TO_REMOVE:
        attributes.pop(name, None)

    is_on_grid = (space.scale, space.origin) == (1.0, (0.0, 0.0))
    if not is_on_grid and not is_scalable(drawing, space.origin):
        drawing, space = _wrap_in_scaled_group(drawing, space)
    return drawing, space, view_box


def _write_drawing(
    drawing: Drawing, space: Space, view_box: str, max_bytes: int, *, more_decimals: int = 0
) -> tuple[str, bool]:
    """Scale the drawing in place and return its text, and whether it needs one more decimal."""
    attributes = drawing.nodes[0].attributes
    attributes.pop("viewBox", None)
    moved_area = scale_tree(drawing, space, more_decimals=more_decimals)
    attributes["viewBox"] = view_box  # last, so that `scale_tree` never reads it

    text = serialise_tree(drawing.nodes[0])
    if len(text) > max_bytes:
        raise SVGRefused(
            "too_large", f"{len(text):,} characters when canonical, more than {max_bytes:,}"
        )

    if len(text) <= MAX_REFINED_LENGTH:
        return text, moved_area > MAX_MOVED_AREA
    is_enormous = len(text) > MAX_REFINED_LENGTH_OF_FAR_MOVED
    return text, moved_area > MAX_MOVED_AREA_OF_LONG_TEXT and not is_enormous


def _parse_page(view_box: str, width: str, height: str, preserve: str) -> tuple[Space, str]:
    """Return the space that scales the visible part of the drawing to the grid, and its viewBox."""
    # attributes
    box = parse_numbers(view_box)
    is_box = len(box) == 4 and box[2] > 0 and box[3] > 0
    wholes = box[2:] if is_box else (math.nan, math.nan)
    size = [parse_length(text, whole) for text, whole in zip((width, height), wholes, strict=True)]

    # visible box
    if not is_box:
        box = [0.0, 0.0, *(side or math.nan for side in size)]
    elif size[0] and size[1] and min(size[0], size[1]) > 0:
        box = _fit_aspect(box, size[0] / size[1], preserve)
    x, y, box_width, box_height = box
    if not (box_width > 0 and box_height > 0 and max(box_width, box_height) >= MIN_SIDE):
        raise SVGRefused("no_viewbox", "neither viewBox nor width and height give a visible area")

    # grid
    scale = GRID / max(box_width, box_height)
    sides = [format_number(max(1, side * scale), 1) for side in (box_width, box_height)]
    return Space(scale, (x, y), box_width, box_height), f"0 0 {sides[0]} {sides[1]}"


_parse_page_cached = lru_cache(maxsize=4096)(_parse_page)


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


def _wrap_in_scaled_group(drawing: Drawing, space: Space) -> tuple[Drawing, Space]:
    """Put a group around the drawing that scales it to the grid, and keep all its numbers.

    Text, filters, patterns and similar elements need it.
    """
    root, *descendants = drawing.nodes
    x, y = space.origin
    shift = f" translate({-x} {-y})" if x or y else ""
    group = Node("g", {"transform": f"scale({space.scale}){shift}"}, root.children)
    root.children = [group]

    nodes = [root, group, *descendants]
    wrapped = Drawing(nodes, drawing.tags | {"g"}, drawing.names | {"transform"})
    return wrapped, Space(1.0, (0.0, 0.0), space.width, space.height)
