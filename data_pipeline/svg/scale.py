"""Scaling: rewrite the numbers of a tree to another scale, rounded to the visible precision.

All user spaces are scaled alike. Coordinates, lengths and the translations inside transforms are
multiplied by `scale`; the linear parts of transforms stay. Therefore nested transforms stay
correct without being multiplied out.
"""

import re
from dataclasses import replace
from functools import partial
from typing import Any

from data_pipeline.svg.errors import PathError, SVGRefused
from data_pipeline.svg.lengths import (
    GRID,
    HEIGHTS,
    WIDTHS,
    XS,
    YS,
    Space,
    is_number_list,
    parse_length,
    scale_length,
    scale_number_list,
)
from data_pipeline.svg.names import DEFINITIONS
from data_pipeline.svg.numbers import format_number, parse_numbers
from data_pipeline.svg.path import scale_path
from data_pipeline.svg.points import scale_points
from data_pipeline.svg.transform import (
    TRANSFORMS,
    choose_decimals,
    scale_transforms,
    uses_box_units,
)
from data_pipeline.svg.tree import Drawing, Node

# Share of the moved area that counts for an outline that is only filled, under other fills.
FILLED_SHARE = 0.3
DENSE = 10_000  # characters of an outline that is only filled and counts in full
# Grid units that one unit of a marker may cover. The unit is the width of any stroke that uses the
# marker, unless the marker has a viewBox.
MIN_MARKER_ZOOM = 16.0

_GRADIENTS = frozenset(("linearGradient", "radialGradient"))
_SCALABLE = """
    g defs path circle ellipse rect line polyline polygon use stop clipPath mask filter feBlend
    feColorMatrix feComponentTransfer feComposite feDropShadow feFlood feFuncA feFuncB feFuncG
    feFuncR feGaussianBlur feMerge feMergeNode feOffset
"""
_SCALABLE_TAGS = _GRADIENTS.union(_SCALABLE.split())
# An element can be moved, not only scaled, if it has these attributes: a default 0 cannot move.
_POSITIONS_BY_TAG = {
    **dict.fromkeys(("g", "path", "polyline", "polygon"), frozenset[str]()),
    **dict.fromkeys(("circle", "ellipse"), frozenset(("cx", "cy"))),
    "rect": frozenset(("x", "y")),
    "line": frozenset(("x1", "y1", "x2", "y2")),
}
_BOXED_TAGS = frozenset(("mask", "filter", *_GRADIENTS))
_DEFINITION_TAGS = DEFINITIONS | {"defs"}
_OFFSET_TAGS = frozenset(("feOffset", "feDropShadow"))
_SIMPLE_SHAPES = frozenset(("rect", "circle", "ellipse", "line"))
_POSITIONED_TAGS = _SCALABLE_TAGS | {"text", "tspan"}

_STROKE = frozenset(("stroke-width", "stroke-dashoffset", "pathLength"))
_OFFSETS = frozenset(("dx", "dy"))  # lists in text, numbers in filters
_GEOMETRY = frozenset((*XS, *YS, *WIDTHS, *HEIGHTS, "r", "fr"))
_NUMBER_LISTS = frozenset(("stroke-dasharray", "stdDeviation"))
_LENGTHS = _GEOMETRY | _STROKE | _OFFSETS
_COLOUR_LISTS = frozenset(("values", "tableValues"))
_SHARES = frozenset(
    ("opacity", "fill-opacity", "stroke-opacity", "stop-opacity", "flood-opacity", "offset")
)
_ROLES = {
    "d": "path",
    "points": "points",
    **dict.fromkeys(_GEOMETRY, "geometry"),
    **dict.fromkeys(_STROKE, "stroke"),
    **dict.fromkeys(_OFFSETS, "offset"),
    **dict.fromkeys(_NUMBER_LISTS, "number list"),
    **dict.fromkeys(_COLOUR_LISTS, "colours"),
    **dict.fromkeys(_SHARES, "share"),
}
_UNITS_ATTRIBUTES = frozenset(
    ("clipPathUnits", "maskContentUnits", "patternContentUnits", "primitiveUnits")
)
_scale_polygon = partial(scale_points, is_closed=True)
_SCALERS: dict[str, Any] = {"path": scale_path, "points": scale_points, "polygon": _scale_polygon}
_NOTHING = {"d": "m0 0", "points": "0 0"}  # for an outline that begins with an error
_BOX_UNITS = "objectBoundingBox"
_MAYBE_SCALABLE = _UNITS_ATTRIBUTES | {"filter", "clip-path"}
_UNSCALABLE = re.compile(rf"{_BOX_UNITS}|(?!url\b)\b[a-z-]+\(", re.IGNORECASE)
_SPACE_ATTRIBUTES = _UNITS_ATTRIBUTES | {"viewBox"}


def is_scalable(drawing: Drawing, origin: tuple[float, float]) -> bool:
    """Return whether `scale_tree` can rewrite every length of the tree.

    Otherwise a group must scale the drawing.
    """
    descendants = drawing.nodes[1:]
    if origin == (0.0, 0.0):
        has_known_tags = _SCALABLE_TAGS.issuperset([node.tag for node in descendants])
    else:
        has_known_tags = TRANSFORMS.isdisjoint(drawing.names) and _are_movable(descendants)
    return has_known_tags and all(map(_has_scalable_lengths, drawing.nodes))


def _are_movable(nodes: list[Node]) -> bool:
    for node in nodes:
        positions = _POSITIONS_BY_TAG.get(node.tag)
        if positions is None or not node.attributes.keys() >= positions:
            return False
    return True


def _has_scalable_lengths(node: Node) -> bool:
    for name, value in node.attributes.items():
        if name in _LENGTHS:
            if parse_length(value, 1.0) is None:
                return False
        elif name in _NUMBER_LISTS:
            if not is_number_list(value):
                return False
        elif name in _MAYBE_SCALABLE and _UNSCALABLE.search(value):
            return False
    return True


def scale_tree(drawing: Drawing, space: Space, *, more_decimals: int = 0) -> float:
    """Scale all numbers in place, and return the area over which rounding moves the outlines.

    `more_decimals` is added to the usual decimals. The area is a rough one in square grid units,
    and counts FILLED_SHARE of the area of short outlines that are only filled.

    Raises SVGRefused: `bad_path`, `bad_transform`.
    """
    nodes, names = drawing.nodes, drawing.names
    root = nodes[0]
    by_id: dict[str, Node] = {}
    if "id" in names:
        by_id = {node.attributes["id"]: node for node in nodes if "id" in node.attributes}

    # The default stroke width scales only if it is written.
    if space.scale != 1 and "stroke" in names and _uses_default_stroke_width(root):
        root.attributes["stroke-width"] = "1"

    # A definition is drawn in the user space of each element that refers to it, and `use` can
    # refer to any element: these need the decimals of the largest zoom.
    definition_zoom = 1.0
    if not TRANSFORMS.isdisjoint(names):
        scale_transforms(nodes, space.scale, by_id)
        definition_zoom = max([node.scale for node in nodes if node.tag not in _GRADIENTS])

    # Descendants use an inherited length in their own user spaces. The root has no viewBox here.
    inherited_zoom = definition_zoom
    if space.scale == 1.0 and "stroke" in names:
        inherited_zoom = max([inherited_zoom, *(_find_child_space(n, space).zoom for n in nodes)])

    scaler = _Scaler(by_id, (definition_zoom, inherited_zoom), more_decimals)
    scaler.scale_numbers(root, space, "use" in drawing.tags, "none", "", "none")
    return scaler.moved_area


def _uses_default_stroke_width(node: Node) -> bool:
    """Return whether the node or a descendant has a stroke and no ancestor gives its width."""
    if "stroke-width" in node.attributes:
        return False
    return "stroke" in node.attributes or any(map(_uses_default_stroke_width, node.children))


class _Scaler:
    """Recursive pass over one tree that adds up the area over which rounding moves outlines."""

    def __init__(
        self, by_id: dict[str, Node], zooms: tuple[float, float], more_decimals: int
    ) -> None:
        self.by_id = by_id
        self.definition_zoom, self.inherited_zoom = zooms
        self.more_decimals = more_decimals
        self.moved_area = 0.0
        # kind, text, decimals, visibility and stroke of the last outline, and its text and area
        self.last_outline: tuple[str, str, int, bool, bool] | None = None
        self.last_scaled = ("", 0.0)

    def scale_numbers(
        self, node: Node, space: Space, is_definition: bool, stroke: str, fill: str, dashes: str
    ) -> None:
        """Scale the numbers of the node and its descendants; the last arguments are inherited."""
        attributes, tag = node.attributes, node.tag
        stroke, fill = attributes.get("stroke", stroke), attributes.get("fill", fill)
        dashes = attributes.get("stroke-dasharray", dashes)

        # decimals
        is_definition = is_definition or tag in _DEFINITION_TAGS
        zoom = node.scale if node.scale > space.zoom else space.zoom
        if is_definition and zoom < self.definition_zoom:
            zoom = self.definition_zoom
        decimals = self.more_decimals + (choose_decimals(zoom) if zoom > 1 else 0)

        # attributes
        is_stroked = stroke != "none"
        is_visible = is_stroked or fill[:4] not in ("none", "url(")
        for name, value in attributes.items():
            role = _ROLES.get(name)
            if role is None:
                continue
            if role == "path" or role == "points":
                kind = tag if tag == "polygon" and role == "points" else role
                # Each rounded length, and each rounded dash, moves all dashes behind it.
                fine_decimals = decimals + (is_stroked and dashes != "none")
                outline = (kind, value, fine_decimals, is_visible, is_stroked)
                scaled = self._scale_outline(outline, node.scale, space)
                attributes[name] = scaled or _NOTHING[name]
            else:
                attributes[name] = self._scale_value(node, name, role, space, decimals, is_stroked)

        if node.children:
            child_space = _find_child_space(node, space)
            for child in node.children:
                self.scale_numbers(child, child_space, is_definition, stroke, fill, dashes)

    def _scale_outline(
        self, outline: tuple[str, str, int, bool, bool], node_scale: float, space: Space
    ) -> str:
        """Return the scaled path data or points, and count the area if rounding is visible."""
        # Drawings often repeat an outline, filled with one gradient after the other.
        kind, text, decimals, is_visible, is_stroked = outline
        if outline != self.last_outline:
            try:
                self.last_scaled = _SCALERS[kind](
                    text,
                    space.scale,
                    space.origin,
                    decimals,
                    measure=is_visible,
                    is_stroked=is_stroked,
                )
            except PathError as error:
                raise SVGRefused("bad_path", str(error)) from None
            self.last_outline = outline

        scaled, area = self.last_scaled
        share = 1.0 if is_stroked or len(text) > DENSE else FILLED_SHARE
        self.moved_area += share * area * (node_scale / 10**decimals) ** 2
        return scaled

    def _scale_value(
        self, node: Node, name: str, role: str, space: Space, decimals: int, is_stroked: bool
    ) -> str:
        """Return the scaled value of an attribute that is no outline."""
        value, tag = node.attributes[name], node.tag
        if role == "geometry" or role == "stroke":
            if role == "stroke":
                decimals = self._choose_stroke_decimals(node, decimals)
            elif tag not in _POSITIONED_TAGS or (
                tag in _BOXED_TAGS and uses_box_units(node, self.by_id)
            ):
                return value
            # These numbers are few, and both edges of a stroke follow them.
            if is_stroked and tag in _SIMPLE_SHAPES:
                decimals += 1
            return scale_length(name, value, space, decimals, tag == "use")

        if role == "offset":
            is_scaled = tag in _OFFSET_TAGS
            return scale_length(name, value, space, decimals, True) if is_scaled else value
        if role == "number list":
            decimals = self._choose_stroke_decimals(node, decimals)
            return scale_number_list(value, space.scale, decimals + (name == "stroke-dasharray"))
        if role == "colours":  # three decimals are finer than a step of 1/255
            return " ".join([format_number(number, 3) for number in parse_numbers(value)])
        share = parse_length(value, 1.0)
        return value if share is None else format_number(share, 3)

    def _choose_stroke_decimals(self, node: Node, decimals: int) -> int:
        """Return the decimals of a length that descendants use in their own user spaces."""
        if node.children:
            decimals = max(decimals, self.more_decimals + choose_decimals(self.inherited_zoom))
        return decimals + 1


def _find_child_space(node: Node, space: Space) -> Space:
    """Return the space of the children, with a larger zoom where their unit differs.

    Such elements exist only in drawings whose scale is 1.
    """
    zoom = space.zoom
    attributes = node.attributes
    if node.tag == "marker" and "viewBox" not in attributes:
        zoom = max(zoom, MIN_MARKER_ZOOM)
    elif _SPACE_ATTRIBUTES.isdisjoint(attributes):
        return space

    if any(attributes.get(name) == _BOX_UNITS for name in _UNITS_ATTRIBUTES):
        zoom = max(zoom, GRID)
    elif "viewBox" in attributes:
        box = parse_numbers(attributes["viewBox"])
        zoom = max(zoom, GRID / max(*box[2:4], 1e-4)) if len(box) == 4 else zoom
    return replace(space, zoom=zoom) if zoom != space.zoom else space
