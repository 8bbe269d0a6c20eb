"""Canonical form: turn one SVG string into one safe canonical SVG string, or refuse it by name."""

from data_pipeline.svg.errors import PathError, SVGRefused
from data_pipeline.svg.extent import find_extent
from data_pipeline.svg.lengths import GRID, Space
from data_pipeline.svg.names import SHAPES
from data_pipeline.svg.page import has_size, parse_page
from data_pipeline.svg.parse import parse_tree
from data_pipeline.svg.prune import prune_tree
from data_pipeline.svg.scale import is_scalable, scale_tree
from data_pipeline.svg.tree import SVG, Drawing, Node, serialise_tree
from data_pipeline.svg.vector_effect import apply_vector_effects
from data_pipeline.svg.viewport import resolve_viewports

# Rounding is visible when it moves outlines over too large an area (square grid units; 200 are
# 0.3 % of the page). A drawing gets one more decimal if this area is worth the longer text, or if
# it is far larger and the text is not enormous. With these values about 0.2 % of icons change
# visibly, and the decimals add 1.4 % to the text of all icons.
MIN_MOVED_AREA = 200.0
MOVED_AREA_OF_CHARACTER = 0.5
FAR_MOVED_AREA = GRID * GRID / 28
MAX_REFINED_LENGTH = 500_000  # characters
MIN_DECIMALS = 0.7  # characters that one more decimal adds at least, for each number of a drawing
_CANONICAL_START = f'<svg xmlns="{SVG}" viewBox="0 0 '

_ROOT_ATTRIBUTES_TO_REMOVE = (
    *("viewBox", "width", "height", "preserveAspectRatio"),
    *("x", "y", "href"),
)
# attributes of the root whose lengths and origins are in the user space of its content
_ATTRIBUTES_TO_WRAP = ("transform-origin", "transform-box", "filter", "clip-path", "mask")


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
    no_viewbox, unsupported_geometry, bad_path, bad_transform, bad_number.
    """
    try:
        drawing, space, view_box = _read_drawing(svg, max_bytes)

        # usual precision
        originals = [node.attributes.copy() for node in drawing.nodes]
        text, moved_area = _write_drawing(drawing, space, view_box, max_bytes)
        given = svg if isinstance(svg, str) else svg.decode("utf-8", "replace")
        is_written_here = given.startswith(_CANONICAL_START)
        num_numbers = text.count(" ") + text.count("-")
        if not is_written_here and not _is_worth(moved_area, MIN_DECIMALS * num_numbers):
            return text

        # one more decimal
        for node, attributes in zip(drawing.nodes, originals, strict=True):
            node.attributes = attributes
        fine_text, _ = _write_drawing(drawing, space, view_box, max_bytes, more_decimals=1)
    except PathError as error:
        raise SVGRefused("bad_number", str(error)) from None

    # A canonical drawing stays as it is, although rounding would now move it by another area.
    if fine_text == given:
        return fine_text
    is_better = _is_worth(moved_area, len(fine_text) - len(text))
    return fine_text if is_better and len(text) <= MAX_REFINED_LENGTH else text


def _is_worth(moved_area: float, num_added: float) -> bool:
    """Return whether one more decimal, which adds this number of characters, is worth it."""
    return moved_area > min(MIN_MOVED_AREA + MOVED_AREA_OF_CHARACTER * num_added, FAR_MOVED_AREA)


def _read_drawing(svg: str | bytes, max_bytes: int) -> tuple[Drawing, Space, str]:
    """Return the drawing, the space that it must be scaled to, and the canonical viewBox."""
    drawing = prune_tree(parse_tree(svg, max_bytes=max_bytes))
    if SHAPES.isdisjoint(drawing.tags) and "filter" not in drawing.tags:
        raise SVGRefused("empty", "nothing is drawn")

    # page
    attributes = drawing.nodes[0].attributes
    if not has_size(attributes):
        right, bottom = find_extent(drawing)
        attributes["viewBox"] = f"0 0 {right:.6g} {bottom:.6g}"
        attributes["width"] = attributes["height"] = "100%"
    page = parse_page(attributes)
    for name in _ROOT_ATTRIBUTES_TO_REMOVE:
        attributes.pop(name, None)

    # transforms
    if "vector-effect" in drawing.names:
        apply_vector_effects(drawing, page.units_per_pixel)
    if "transform" in attributes:
        drawing = _wrap(drawing, attributes.pop("transform"))
    space = page.space
    is_on_grid = (space.scale, space.origin) == (1.0, (0.0, 0.0))
    is_stretched = page.scales[0] != page.scales[1]
    is_wrapped = is_stretched or not (is_on_grid or is_scalable(drawing, space.origin))

    resolve_viewports(
        drawing,
        page.viewport,
        has_percentages=_may_have_percentages(svg),
        with_defaults=is_wrapped or page.is_resized,
    )
    if is_wrapped:
        drawing = _wrap_in_scaled_group(drawing, page.scales, space.origin)
        space = Space(1.0, (0.0, 0.0))
    return drawing, space, page.view_box


def _may_have_percentages(svg: str | bytes) -> bool:
    """Return whether the document may have a percent sign: it may be compressed or a reference."""
    if isinstance(svg, str):
        return "%" in svg or "&" in svg
    return b"%" in svg or b"&" in svg or svg[:1] == b"\x1f"


def _write_drawing(
    drawing: Drawing, space: Space, view_box: str, max_bytes: int, *, more_decimals: int = 0
) -> tuple[str, float]:
    """Scale the drawing in place and return its text, and the area that rounding moves."""
    attributes = drawing.nodes[0].attributes
    attributes.pop("viewBox", None)
    moved_area = scale_tree(drawing, space, more_decimals=more_decimals)
    attributes["viewBox"] = view_box  # last, so that `scale_tree` never reads it

    text = serialise_tree(drawing.nodes[0])
    if len(text) > max_bytes:
        raise SVGRefused(
            "too_large", f"{len(text):,} characters when canonical, more than {max_bytes:,}"
        )
    return text, moved_area


def _wrap_in_scaled_group(
    drawing: Drawing, scales: tuple[float, float], origin: tuple[float, float]
) -> Drawing:
    """Put a group around the drawing that scales it to the grid, and keep all its numbers.

    Text, filters, patterns and similar elements need it.
    """
    (scale_x, scale_y), (x, y) = scales, origin
    scale = f"{scale_x}" if scale_x == scale_y else f"{scale_x} {scale_y}"
    shift = f" translate({-x} {-y})" if x or y else ""
    return _wrap(drawing, f"scale({scale}){shift}")


def _wrap(drawing: Drawing, transform: str) -> Drawing:
    """Put a group with this transform around the drawing."""
    root, *descendants = drawing.nodes
    attributes = {"transform": transform}
    for name in _ATTRIBUTES_TO_WRAP:
        if name in root.attributes:
            attributes[name] = root.attributes.pop(name)

    group = Node("g", attributes, root.children)
    root.children = [group]
    nodes = [root, group, *descendants]
    return Drawing(nodes, drawing.tags | {"g"}, drawing.names | {"transform"})
