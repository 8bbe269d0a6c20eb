"""Rewrites the numbers of a tree to another scale, rounded to what can be seen. Knows no bytes.

All user spaces are scaled alike: coordinates, lengths and the translations inside transforms by `scale`, the
linear parts of transforms not at all. So nested transforms stay correct without being multiplied out.
"""

from dataclasses import replace

from data_pipeline.svg.lengths import (
    GRID,
    HEIGHTS,
    WIDTHS,
    XS,
    YS,
    Space,
    is_dashes,
    parse_length,
    scale_dashes,
    scale_length,
)
from data_pipeline.svg.names import DEFINITIONS
from data_pipeline.svg.numbers import PathError, format_number, parse_numbers
from data_pipeline.svg.path import scale_path, scale_points
from data_pipeline.svg.prune import Drawing
from data_pipeline.svg.read import SVGRefused
from data_pipeline.svg.transform import TRANSFORMS, decimals_for, is_boxed, scale_transforms
from data_pipeline.svg.tree import Node

DENSE = (
    20_000  # characters of path data: a smaller filled drawing cannot show what rounding did to it
)

_GRADIENTS = ("linearGradient", "radialGradient")
_SCALABLE = frozenset(
    ("g", "defs", "path", "circle", "ellipse", "rect", "line", "polyline", "polygon")
)
_SCALABLE |= {"use", "stop", "clipPath", "mask", *_GRADIENTS}
_SCALABLE |= {
    "filter",
    "feBlend",
    "feColorMatrix",
    "feComponentTransfer",
    "feComposite",
    "feDropShadow",
    "feFlood",
}
_SCALABLE |= {
    "feFuncA",
    "feFuncB",
    "feFuncG",
    "feFuncR",
    "feGaussianBlur",
    "feMerge",
    "feMergeNode",
    "feOffset",
}
# What can be moved as well as scaled: elements whose places are all written, not left at 0.
_ANCHORS = {
    **dict.fromkeys(("g", "path", "polyline", "polygon"), frozenset[str]()),
    **dict.fromkeys(("circle", "ellipse"), frozenset(("cx", "cy"))),
    "rect": frozenset(("x", "y")),
    "line": frozenset(("x1", "y1", "x2", "y2")),
}
_BOXED = frozenset(("mask", "filter", *_GRADIENTS))
_LIFTED = DEFINITIONS | {"defs"}
_OFFSET_TAGS = frozenset(("feOffset", "feDropShadow"))
_FEW_NUMBERS = frozenset(("rect", "circle", "ellipse", "line"))
_POSITIONED = _SCALABLE | {"text", "tspan"}

_STROKE = frozenset(("stroke-width", "stroke-dashoffset", "pathLength"))
_OFFSETS = frozenset(("dx", "dy"))  # lists in text, numbers in filters
_GEOMETRY = frozenset((*XS, *YS, *WIDTHS, *HEIGHTS, "r", "fr"))
_DASHES = frozenset(("stroke-dasharray", "stdDeviation"))
_LENGTHS = _GEOMETRY | _STROKE | _OFFSETS
_ROLES = {
    "d": "path",
    "points": "points",
    **dict.fromkeys(_GEOMETRY, "place"),
    **dict.fromkeys(_STROKE, "stroke"),
    **dict.fromkeys(_OFFSETS, "offset"),
    **dict.fromkeys(_DASHES, "dashes"),
    **dict.fromkeys(("values", "tableValues"), "colours"),
    **dict.fromkeys(
        ("opacity", "fill-opacity", "stroke-opacity", "stop-opacity", "flood-opacity", "offset"),
        "share",
    ),
}
_BOX_UNITS = frozenset(
    ("clipPathUnits", "maskContentUnits", "patternContentUnits", "primitiveUnits")
)
_BOX = "objectBoundingBox"
_REUNITS = _BOX_UNITS | {"viewBox"}


def is_scalable(drawing: Drawing, origin: tuple[float, float]) -> bool:
    """Is every length of the tree one that `scale_tree` rewrites? Otherwise a group must scale it."""
    below = drawing.nodes[1:]
    if origin != (0.0, 0.0):
        if not TRANSFORMS.isdisjoint(drawing.names):
            return False
        for node in below:
            if node.tag not in _ANCHORS or not node.attributes.keys() >= _ANCHORS[node.tag]:
                return False
    elif not _SCALABLE.issuperset([node.tag for node in below]):
        return False
    for node in drawing.nodes:
        for name, value in node.attributes.items():
            if name in _LENGTHS:
                if parse_length(value, 1.0) is None:
                    return False
            elif name in _DASHES:
                if not is_dashes(value):
                    return False
            elif value == _BOX and name in _BOX_UNITS:
                return False
    return True


def scale_tree(drawing: Drawing, space: Space, *, more_decimals: int = 0) -> float:
    """Rewrite all numbers in place, with more decimals than usual if asked to. Returns how much the rounding moves:
    roughly an area in square grid units, counted for what is stroked and for dense drawings only.

    Raises SVGRefused: `bad_path`, `bad_transform`.
    """
    nodes, names = drawing.nodes, drawing.names
    root = nodes[0]
    by_id = (
        {node.attributes["id"]: node for node in nodes if "id" in node.attributes}
        if "id" in names
        else {}
    )
    if space.scale != 1 and "stroke" in names and _strokes_by_default(root):
        root.attributes["stroke-width"] = "1"  # the default does not scale unless it is written
    lift = 1.0
    if not TRANSFORMS.isdisjoint(names):
        scale_transforms(root, 1.0, space.scale, by_id)
        # A definition is drawn in the user space of whatever refers to it, and `use` can refer to anything.
        lift = max([node.scale for node in nodes if node.tag not in _GRADIENTS])
    dense = sum([len(node.attributes.get("d", "")) for node in nodes]) > DENSE
    scaler = _Scaler(by_id, lift, more_decimals, dense)
    scaler.scale_numbers(root, space, "use" in drawing.tags, "none", "")
    return scaler.moved


def _strokes_by_default(node: Node) -> bool:
    """Is anything stroked in the default width?"""
    if "stroke-width" in node.attributes:
        return False
    return "stroke" in node.attributes or any(map(_strokes_by_default, node.children))


class _Scaler:
    """Goes once through a tree, adding up what rounding moves."""

    def __init__(
        self, by_id: dict[str, Node], lift: float, more_decimals: int, dense: bool
    ) -> None:
        self.by_id = by_id
        self.lift = lift
        self.more_decimals = more_decimals
        self.dense = dense
        self.moved = 0.0
        self.last: tuple[str, str, int, bool] | None = None  # outline read, and what it is
        self.written = ("", 0.0)

    def scale_numbers(self, node: Node, space: Space, lifted: bool, stroke: str, fill: str) -> None:
        attributes, tag = node.attributes, node.tag
        lifted = lifted or tag in _LIFTED
        stroke, fill = attributes.get("stroke", stroke), attributes.get("fill", fill)
        zoom = node.scale if node.scale > space.zoom else space.zoom
        if lifted and zoom < self.lift:
            zoom = self.lift
        decimals = self.more_decimals + (decimals_for(zoom) if zoom > 1 else 0)
        for name, value in attributes.items():
            role = _ROLES.get(name)
            if role is None:
                continue
            if role == "path" or role == "points":
                shows = stroke != "none" or (self.dense and fill[:4] not in ("none", "url("))
                # An outline is often drawn several times over, in one gradient after the other.
                if (key := (role, value, decimals, shows)) != self.last:
                    rewrite = scale_path if role == "path" else scale_points
                    try:
                        self.written = rewrite(
                            value, space.scale, space.origin, decimals, measured=shows
                        )
                    except PathError as error:
                        raise SVGRefused("bad_path", str(error)) from None
                    self.last = key
                attributes[name], slip = self.written
                if slip:
                    self.moved += slip * (node.scale / 10**decimals) ** 2
            elif role == "place" or role == "stroke":
                # Both edges of a line follow its coordinates, and shapes have only a few of them.
                fine = decimals + (stroke != "none" and tag in _FEW_NUMBERS) + (role == "stroke")
                if role == "stroke" or (
                    tag in _POSITIONED and not (tag in _BOXED and is_boxed(node, self.by_id))
                ):
                    attributes[name] = scale_length(name, value, space, fine, tag == "use")
            elif role == "offset":
                if tag in _OFFSET_TAGS:
                    attributes[name] = scale_length(name, value, space, decimals, True)
            elif role == "dashes":
                attributes[name] = scale_dashes(value, space.scale, decimals + 1)
            elif role == "colours":  # a step is 1/255
                attributes[name] = " ".join(
                    [format_number(number, 3) for number in parse_numbers(value)]
                )
            elif (share := parse_length(value, 1.0)) is not None:
                attributes[name] = format_number(share, 3)
        if node.children:
            inner = _inner_space(node, space)
            for child in node.children:
                self.scale_numbers(child, inner, lifted, stroke, fill)


def _inner_space(node: Node, space: Space) -> Space:
    """What a unit means to the children, where it isn't the unit of the parent: only ever with scale 1."""
    zoom = space.zoom
    attributes = node.attributes
    if node.tag == "marker" and "viewBox" not in attributes:
        zoom = max(zoom, 16.0)
    elif _REUNITS.isdisjoint(attributes):
        return space
    if any(attributes.get(units) == _BOX for units in _BOX_UNITS):
        zoom = max(zoom, GRID)
    elif "viewBox" in attributes:
        box = parse_numbers(attributes["viewBox"])
        zoom = max(zoom, GRID / max(*box[2:4], 1e-4)) if len(box) == 4 else zoom
    return replace(space, zoom=zoom) if zoom != space.zoom else space
