"""Origins of transforms: write `transform-origin` and `transform-box` as translations."""

from data_pipeline.svg.errors import SVGRefused
from data_pipeline.svg.lengths import parse_length
from data_pipeline.svg.numbers import format_number, parse_numbers
from data_pipeline.svg.tree import Node

Size = tuple[float, float]  # width and height
Box = tuple[float, float, float, float]  # x, y, width and height

ORIGINS = frozenset(("transform-origin", "transform-box"))

_TRANSFORM_NAMES = {
    "linearGradient": "gradientTransform",
    "radialGradient": "gradientTransform",
    "pattern": "patternTransform",
}
_SHARES = {"left": "0%", "top": "0%", "center": "50%", "right": "100%", "bottom": "100%"}
_DECIMALS = 5


def fold_origin(node: Node, viewport: Size | None) -> None:
    """Remove the origin of the node's transform, and put translations around the transform.

    Raises SVGRefused: `unsupported_geometry`.
    """
    attributes = node.attributes
    name = _TRANSFORM_NAMES.get(node.tag, "transform")
    origin = attributes.pop("transform-origin", "")
    box_name = attributes.pop("transform-box", "view-box")
    if not origin or name not in attributes:
        return

    x, y = _parse_origin(origin, _find_reference_box(node, box_name, viewport))
    if x or y:
        there, back = (
            f"translate({format_number(sign * x, _DECIMALS)} {format_number(sign * y, _DECIMALS)})"
            for sign in (1, -1)
        )
        attributes[name] = f"{there} {attributes[name]} {back}"


def _parse_origin(origin: str, box: Box) -> tuple[float, float]:
    """Return the point that `left 20px` or `50%` means; the default of the second value is 50 %."""
    x, y, width, height = box
    values = [*origin.lower().split(), "center"]
    first, second = values[:2]
    if first in ("top", "bottom") or second in ("left", "right"):
        first, second = second, first

    across = parse_length(_SHARES.get(first, first), width)
    down = parse_length(_SHARES.get(second, second), height)
    if across is None or down is None:
        raise SVGRefused("unsupported_geometry", f"transform-origin {origin[:40]!r}")
    return x + across, y + down


def _find_reference_box(node: Node, box_name: str, viewport: Size | None) -> Box:
    """Return the box that percentages and keywords of the origin refer to.

    `view-box` begins at the origin of the user space. Other boxes are known only for simple shapes
    without a stroke.
    """
    if box_name == "view-box" and viewport is not None:
        return 0.0, 0.0, *viewport
    if box_name in ("fill-box", "content-box"):
        box = _find_bounding_box(node)
        if box is not None:
            return box
    raise SVGRefused("unsupported_geometry", f"transform-box {box_name[:40]!r} of a {node.tag}")


def _find_bounding_box(node: Node) -> Box | None:
    """Return the bounding box of a simple shape, or None."""
    attributes = node.attributes

    def read(name: str) -> float:
        return parse_length(attributes.get(name, "0"), 0.0) or 0.0

    if node.tag == "rect":
        return read("x"), read("y"), read("width"), read("height")
    if node.tag == "circle" or node.tag == "ellipse":
        names = ("r", "r") if node.tag == "circle" else ("rx", "ry")
        rx, ry = map(read, names)
        return read("cx") - rx, read("cy") - ry, 2 * rx, 2 * ry
    if node.tag == "line":
        numbers = [read(name) for name in ("x1", "y1", "x2", "y2")]
    elif node.tag == "polygon" or node.tag == "polyline":
        numbers = parse_numbers(attributes.get("points", "")) or [0.0, 0.0]
    else:
        return None
    xs, ys = numbers[::2], numbers[1::2]
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
