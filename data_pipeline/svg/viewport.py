"""Viewports: write every length that depends on the size of a viewport as a number.

Scaling a page changes the lengths that 100 % means. Therefore this pass comes first. It replaces
percentages, and it writes attributes whose default is a percentage.
"""

import math
import re

from data_pipeline.svg.errors import SVGRefused
from data_pipeline.svg.lengths import HEIGHTS, WIDTHS, XS, YS, parse_length
from data_pipeline.svg.names import DEFINITIONS
from data_pipeline.svg.numbers import NUMBER, format_number, parse_numbers
from data_pipeline.svg.origin import ORIGINS, Size, fold_origin
from data_pipeline.svg.transform import find_inherited, uses_box_units
from data_pipeline.svg.tree import Drawing, Node

BOX_UNITS = "objectBoundingBox"

_HORIZONTAL = XS | WIDTHS | {"dx"}
_VERTICAL = YS | HEIGHTS | {"dy"}
_OTHER = frozenset(("r", "fr", "stroke-width", "stroke-dasharray", "stroke-dashoffset"))
_LENGTHS = _HORIZONTAL | _VERTICAL | _OTHER
_PERCENTAGE = re.compile(rf"({NUMBER.pattern})\s*%")
_REFERENCE = re.compile(r"url\(#([^)]*)\)")

# attributes that a paint inherits through `href`
_INHERITED = {
    "linearGradient": ("x1", "y1", "x2", "y2", "gradientTransform"),
    "radialGradient": ("cx", "cy", "r", "fx", "fy", "fr", "gradientTransform"),
    "pattern": ("x", "y", "width", "height", "patternTransform"),
}
_UNITS = frozenset(("gradientUnits", "patternUnits", "maskUnits", "filterUnits"))
_BOXED_TAGS = frozenset((*_INHERITED, "mask", "filter"))
_SIZE = {"width": "100%", "height": "100%"}
_REGION = {"x": "-10%", "y": "-10%", "width": "120%", "height": "120%"}
_DEFAULTS = {
    "svg": _SIZE,
    "linearGradient": {"x2": "100%"},
    "radialGradient": {"cx": "50%", "cy": "50%", "r": "50%"},
    "mask": _REGION,
    "filter": _REGION,
}


def resolve_viewports(
    drawing: Drawing, viewport: Size, *, has_percentages: bool, with_defaults: bool
) -> None:
    """Replace percentages of viewports and origins of transforms in place.

    `has_percentages` may be true for a drawing without any. Defaults are written only if
    `with_defaults`: the size of the outermost viewport will change.
    Raises SVGRefused: `unsupported_geometry`.
    """
    with_defaults = with_defaults and _may_need_defaults(drawing)
    if not (with_defaults or has_percentages or _has_other_units(drawing.names)):
        return
    root = drawing.nodes[0]
    by_id = {node.attributes["id"]: node for node in drawing.nodes if "id" in node.attributes}
    sizes = _find_viewports(root, viewport, by_id)
    primitives_in_box: set[int] = set()

    for node in drawing.nodes:
        attributes, size = node.attributes, sizes.get(id(node), viewport)
        if node.tag in _INHERITED and "href" in attributes:
            _copy_from_other_units(node, by_id)
        in_box = node.tag in _BOXED_TAGS and uses_box_units(node, by_id)
        if attributes.get("primitiveUnits") == BOX_UNITS:
            primitives_in_box.update(map(id, node.children))

        if with_defaults and not in_box and size in (viewport, None) and node is not root:
            _write_defaults(node, by_id)
        if not (in_box or id(node) in primitives_in_box):
            _resolve_percentages(node, size)
        if not ORIGINS.isdisjoint(attributes):
            fold_origin(node, (1.0, 1.0) if in_box else size)


def _has_other_units(names: set[str]) -> bool:
    """Return whether an element with these attributes may have an origin, or units of a box."""
    return not ORIGINS.isdisjoint(names) or ("href" in names and not _UNITS.isdisjoint(names))


def _may_need_defaults(drawing: Drawing) -> bool:
    return (
        not _UNITS.isdisjoint(drawing.names)
        or "symbol" in drawing.tags
        or any(node.tag == "svg" for node in drawing.nodes[1:])
    )


def _find_viewports(root: Node, viewport: Size, by_id: dict[str, Node]) -> dict[int, Size | None]:
    """Return the size that 100 % means for each node, by Python's id of the node.

    It is None for a node that is drawn in viewports of several sizes. A definition is in the
    viewport of the element that refers to it.
    """
    sizes: dict[int, Size | None] = {}
    stack: list[tuple[Node, Size | None]] = [(root, viewport)]
    while stack:
        node, size = stack.pop()
        if id(node) in sizes:
            if sizes[id(node)] in (size, None):
                continue
            size = None
        sizes[id(node)] = size

        # references
        for name, value in node.attributes.items():
            if name == "href":
                targets = [value[1:]]
            else:
                targets = _REFERENCE.findall(value) if "url(#" in value else []
            for target in filter(None, map(by_id.get, targets)):
                is_symbol = name == "href" and target.tag == "symbol"
                stack.append((target, _measure(node, size) if is_symbol else size))

        # children
        inner = _find_inner_viewport(node, size)
        if node.tag != "defs":
            stack += [(child, inner) for child in node.children if child.tag not in DEFINITIONS]
    return sizes


def _find_inner_viewport(node: Node, size: Size | None) -> Size | None:
    if node.tag == "svg" or node.tag == "symbol":
        box = parse_numbers(node.attributes.get("viewBox", ""))
        if len(box) == 4:
            return box[2], box[3]
    return _measure(node, size) if node.tag == "svg" else size


def _measure(node: Node, size: Size | None) -> Size | None:
    """Return the width and height of a nested `svg`, or of a `use` of a symbol."""
    if size is None:
        return None
    width, height = (
        parse_length(node.attributes.get(name, ""), whole)
        for name, whole in zip(("width", "height"), size, strict=True)
    )
    return (size[0] if width is None else width), (size[1] if height is None else height)


def _copy_from_other_units(node: Node, by_id: dict[str, Node]) -> None:
    """Copy attributes from templates with other units: their numbers have another scale."""
    for name in _INHERITED[node.tag]:
        owner = find_inherited(node, name, by_id)
        if owner not in (None, node) and uses_box_units(owner, by_id) != uses_box_units(
            node, by_id
        ):
            node.attributes[name] = owner.attributes[name]


def _write_defaults(node: Node, by_id: dict[str, Node]) -> None:
    defaults = _DEFAULTS.get(node.tag, {})
    if node.tag == "use" and by_id[node.attributes["href"][1:]].tag == "symbol":
        defaults = _SIZE
    for name, value in defaults.items():
        if find_inherited(node, name, by_id) is None:
            node.attributes[name] = value


def _resolve_percentages(node: Node, size: Size | None) -> None:
    for name, value in node.attributes.items():
        if "%" not in value or name not in _LENGTHS:
            continue
        if size is None:
            raise SVGRefused(
                "unsupported_geometry",
                f"{name}={value[:40]!r} in viewports of several sizes; write it as a number",
            )

        if name in _HORIZONTAL:
            whole = size[0]
        elif name in _VERTICAL:
            whole = size[1]
        else:
            whole = math.hypot(*size) / math.sqrt(2)
        decimals = max(0, 5 - math.floor(math.log10(whole))) if whole > 0 else 0
        node.attributes[name] = _PERCENTAGE.sub(
            lambda match: format_number(float(match[1]) * whole / 100, decimals),  # noqa: B023
            value,
        )
