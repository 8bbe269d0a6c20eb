"""Rewrites the numbers of a tree to another scale, rounded to what can be seen. Knows no bytes.

All user spaces are scaled alike: coordinates, lengths and the translations inside transforms by `scale`, the
linear parts of transforms not at all. So nested transforms stay correct without being multiplied out.
"""

import math
import re
from dataclasses import dataclass, replace

from data_pipeline.svg_names import DEFINITIONS
from data_pipeline.svg_path import NUMBER, PathError, format_number, join_numbers, parse_numbers, scale_path
from data_pipeline.svg_tree import Node, SVGRefused

GRID = 256  # units along the longer side of every canonical drawing

_GRADIENTS = ("linearGradient", "radialGradient")
_SCALABLE = frozenset(("g", "defs", "path", "circle", "ellipse", "rect", "line", "polyline", "polygon"))
_SCALABLE |= {"use", "stop", "clipPath", "mask", *_GRADIENTS}
# What can be moved as well as scaled: elements whose places are all written, not left at 0.
_ANCHORS = {
    **dict.fromkeys(("g", "path", "polyline", "polygon"), ()),
    **dict.fromkeys(("circle", "ellipse"), ("cx", "cy")),
    "rect": ("x", "y"),
    "line": ("x1", "y1", "x2", "y2"),
}
_TRANSFORMS = ("transform", "gradientTransform", "patternTransform")
_X = frozenset(("x", "cx", "x1", "x2", "fx"))
_Y = frozenset(("y", "cy", "y1", "y2", "fy"))
_WIDTHS = frozenset(("width", "rx"))
_HEIGHTS = frozenset(("height", "ry"))
_DIAGONALS = frozenset(("r", "fr"))
_POSITIONED = _SCALABLE | {"text", "tspan"}
_STROKE = frozenset(("stroke-width", "stroke-dashoffset", "pathLength"))
_GEOMETRY = _X | _Y | _WIDTHS | _HEIGHTS | _DIAGONALS
_SHARES = frozenset(("opacity", "fill-opacity", "stroke-opacity", "stop-opacity", "flood-opacity", "offset"))

_BOX_UNITS = ("clipPathUnits", "maskContentUnits", "patternContentUnits")
_BOX = "objectBoundingBox"
_LENGTH = re.compile(rf"({NUMBER.pattern})\s*(px|pt|pc|mm|cm|in|%)?")
_DASHES = re.compile(rf"none|(?:(?>{NUMBER.pattern})(?:px)?[\s,]*+)++")
_PIXELS = {"px": 1.0, "": 1.0, "pt": 4 / 3, "pc": 16.0, "mm": 96 / 25.4, "cm": 96 / 2.54, "in": 96.0}
_FUNCTION = re.compile(r"(translate|scale|rotate|skewX|skewY|matrix)\s*\(([^()]*)\)[\s,]*")
_COUNTS = {
    "translate": (1, 2),
    "scale": (1, 2),
    "rotate": (1, 3),
    "skewX": (1,),
    "skewY": (1,),
    "matrix": (6,),
}


@dataclass(frozen=True, slots=True)
class Space:
    """How one user space becomes another: (point - origin) * scale. `width` × `height` is what 100% means;
    one unit is drawn at least `zoom` grid units large, whatever the transforms around it say."""

    scale: float
    origin: tuple[float, float]
    width: float
    height: float
    zoom: float = 1.0


def parse_length(text: str, whole: float) -> float | None:
    """`12`, `3pt`, `50%` of `whole` → pixels; None for anything else (`auto`, `1em`, a list)."""
    match = _LENGTH.fullmatch(text.strip())
    if match is None or not abs(float(match[1])) <= 1e7:
        return None
    return float(match[1]) * (whole / 100 if match[2] == "%" else _PIXELS[match[2] or ""])


def is_scalable(root: Node, origin: tuple[float, float]) -> bool:
    """Is every length of the tree one that `scale_tree` rewrites? Otherwise a group must scale it."""
    shifted = origin != (0.0, 0.0)
    for node in root.walk():
        if node is not root and not _is_scalable_element(node, shifted):
            return False
        for name, value in node.attributes.items():
            if name in _BOX_UNITS and value == _BOX:
                return False
            if shifted and name in _TRANSFORMS:
                return False
            if name in _GEOMETRY or name in _STROKE:
                if parse_length(value, 1.0) is None:
                    return False
            elif name == "stroke-dasharray" and not _DASHES.fullmatch(value):
                return False
    return True


def _is_scalable_element(node: Node, shifted: bool) -> bool:
    if not shifted:
        return node.tag in _SCALABLE
    return node.tag in _ANCHORS and all(name in node.attributes for name in _ANCHORS[node.tag])


def scale_tree(root: Node, space: Space) -> None:
    """Rewrite all numbers in place. Raises SVGRefused: `bad_path`, `bad_transform`."""
    by_id = {node.attributes["id"]: node for node in root.walk() if "id" in node.attributes}
    if space.scale != 1 and _strokes_by_default(root):
        root.attributes["stroke-width"] = "1"  # the default does not scale unless it is written
    _scale_transforms(root, 1.0, space.scale, by_id)
    # A definition is drawn in the user space of whatever refers to it, and `use` can refer to anything.
    zooms = [node.scale for node in root.walk() if node.tag not in _GRADIENTS]
    has_use = any(node.tag == "use" for node in root.walk())
    _scale_numbers(root, space, max(zooms), has_use, by_id)


def _strokes_by_default(node: Node) -> bool:
    """Is anything stroked in the default width?"""
    if "stroke-width" in node.attributes:
        return False
    return "stroke" in node.attributes or any(map(_strokes_by_default, node.elements()))


def _is_boxed(node: Node, by_id: dict[str, Node]) -> bool:
    """Are the coordinates of this gradient or mask shares of the painted box? May be inherited."""
    attribute = "maskUnits" if node.tag == "mask" else "gradientUnits"
    for _ in range(8):
        if attribute in node.attributes or node.attributes.get("href", "#")[1:] not in by_id:
            break
        node = by_id[node.attributes["href"][1:]]
    return node.attributes.get(attribute) != "userSpaceOnUse"


def decimals_for(zoom: float) -> int:
    """Decimals that keep a step below 1.26 grid units when one unit is drawn `zoom` of them large."""
    return 0 if zoom <= 1 else min(4, math.ceil(math.log10(zoom) - 0.1))


def _scale_transforms(node: Node, zoom: float, scale: float, by_id: dict[str, Node]) -> None:
    for name in _TRANSFORMS:
        if name in node.attributes:
            boxed = node.tag in _GRADIENTS and _is_boxed(node, by_id)
            text, zoom = (
                _scale_transform(node.attributes[name], 1.0, float(GRID))
                if boxed
                else _scale_transform(node.attributes[name], scale, zoom)
            )
            node.attributes[name] = text
            if not text:
                del node.attributes[name]
    node.scale = zoom
    for child in node.elements():
        _scale_transforms(child, zoom, scale, by_id)


def _scale_transform(text: str, scale: float, zoom: float) -> tuple[str, float]:
    """`translate(1,2) scale(3)`, 10, 1 → `translate(10 20) scale(3)`, 3."""
    if _FUNCTION.sub("", text).strip():
        raise SVGRefused("bad_transform", f"transform {text[:60]!r}")
    functions = []
    for name, arguments in _FUNCTION.findall(text):
        numbers = parse_numbers(arguments)
        if len(numbers) not in _COUNTS[name]:
            raise SVGRefused("bad_transform", f"{name} with {len(numbers)} numbers in {text[:60]!r}")
        shift = decimals_for(zoom) + 1
        if name == "translate":
            words = [format_number(number * scale, shift) for number in numbers]
        elif name == "rotate":
            words = [format_number(numbers[0], 2)]
            words += [format_number(number * scale, shift) for number in numbers[1:]]
        elif name == "matrix":
            words = _significant(numbers[:4]) + [format_number(n * scale, shift) for n in numbers[4:]]
            a, b, c, d = map(float, words[:4])
            zoom *= max(math.hypot(a, b), math.hypot(c, d))
            if (a, b, c, d) == (1, 0, 0, 1):
                name, words = "translate", words[4:]
        elif name == "scale":
            words = _significant(numbers)
            zoom *= max(abs(float(word)) for word in words)
        else:
            words = [format_number(numbers[0], 2)]
        functions.append(f"{name}({' '.join(words).replace(' -', '-')})")
    return " ".join(functions), zoom


def _significant(numbers: list[float]) -> list[str]:
    """As many decimals as give the largest of them five digits."""
    largest = float(f"{max(map(abs, numbers)):.5g}")
    decimals = min(12, max(0, 4 - math.floor(math.log10(largest)))) if largest else 0
    return [format_number(number, decimals) for number in numbers]


def _scale_numbers(node: Node, space: Space, lift: float, lifted: bool, by_id: dict[str, Node]) -> None:
    lifted = lifted or node.tag in DEFINITIONS or node.tag == "defs"
    zoom = max(node.scale, space.zoom, lift if lifted else 1.0)
    decimals = decimals_for(zoom)
    attributes = node.attributes
    positioned = node.tag in _POSITIONED
    if node.tag in _GRADIENTS or node.tag == "mask":
        positioned = not _is_boxed(node, by_id)
    for name, value in attributes.items():
        if name == "d" or name == "points":
            attributes[name] = _scale_points(name, value, space, decimals)
        elif (positioned and name in _GEOMETRY) or name in _STROKE:
            attributes[name] = _scale_length(name, value, space, decimals, vector=node.tag == "use")
        elif name == "stroke-dasharray":
            attributes[name] = _scale_dashes(value, space.scale, decimals)
        elif name in _SHARES and (share := parse_length(value, 1.0)) is not None:
            attributes[name] = format_number(share, 3)
    inner = _inner_space(node, space)
    for child in node.elements():
        _scale_numbers(child, inner, lift, lifted, by_id)


def _scale_points(name: str, value: str, space: Space, decimals: int) -> str:
    try:
        if name == "d":
            return scale_path(value, space.scale, origin=space.origin, decimals=decimals)
        numbers = parse_numbers(value)
    except PathError as error:
        raise SVGRefused("bad_path", str(error)) from None
    unit = space.scale * 10**decimals
    points = [round((number - space.origin[n % 2]) * unit) for n, number in enumerate(numbers)]
    return join_numbers(points[: len(points) // 2 * 2], decimals)


def _scale_length(name: str, value: str, space: Space, decimals: int, *, vector: bool) -> str:
    whole = math.hypot(space.width, space.height) / math.sqrt(2)
    if name in _X or name in _WIDTHS:
        whole = space.width
    elif name in _Y or name in _HEIGHTS:
        whole = space.height
    number = parse_length(value, whole)
    if number is None:
        return value
    if name in _X:
        return format_number((number - (0 if vector else space.origin[0])) * space.scale, decimals)
    if name in _Y:
        return format_number((number - (0 if vector else space.origin[1])) * space.scale, decimals)
    return _small(number * space.scale, decimals)


def _small(length: float, decimals: int) -> str:
    """Lengths below 16 units keep one more decimal, and none becomes nothing."""
    text = format_number(length, decimals + (abs(length) * 10**decimals < 16))
    return format_number(length, decimals + 4) if text == "0" else text


def _scale_dashes(value: str, scale: float, decimals: int) -> str:
    if value == "none" or not _DASHES.fullmatch(value):
        return value
    return " ".join(_small(number * scale, decimals) for number in parse_numbers(value))


def _inner_space(node: Node, space: Space) -> Space:
    """What a unit means to the children, where it isn't the unit of the parent: only ever with scale 1."""
    zoom = space.zoom
    if any(node.attributes.get(units) == _BOX for units in _BOX_UNITS):
        zoom = max(zoom, GRID)
    elif "viewBox" in node.attributes:
        box = parse_numbers(node.attributes["viewBox"])
        zoom = max(zoom, GRID / max(*box[2:4], 1e-4)) if len(box) == 4 else zoom
    elif node.tag == "marker":
        zoom = max(zoom, 16.0)
    return replace(space, zoom=zoom) if zoom != space.zoom else space
