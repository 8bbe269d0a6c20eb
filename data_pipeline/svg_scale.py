"""Rewrites the numbers of a tree to another scale, rounded to what can be seen. Knows no bytes.

All user spaces are scaled alike: coordinates, lengths and the translations inside transforms by `scale`, the
linear parts of transforms not at all. So nested transforms stay correct without being multiplied out.
"""

import math
import re
from dataclasses import dataclass, replace

from data_pipeline.svg_names import DEFINITIONS
from data_pipeline.svg_numbers import NUMBER, PathError, format_number, parse_numbers
from data_pipeline.svg_path import scale_path, scale_points
from data_pipeline.svg_read import SVGRefused
from data_pipeline.svg_tree import Node

FAR = 2 * 256 - 1  # odd, because 511.5 rounds to 512: what is far stays far when it is written
DENSE = 20_000  # characters of path data: a smaller filled drawing cannot show what rounding did to it
GRID = 256  # units along the longer side of every canonical drawing

_GRADIENTS = ("linearGradient", "radialGradient")
_SCALABLE = frozenset(("g", "defs", "path", "circle", "ellipse", "rect", "line", "polyline", "polygon"))
_SCALABLE |= {"use", "stop", "clipPath", "mask", *_GRADIENTS}
_SCALABLE |= {"filter", "feBlend", "feColorMatrix", "feComponentTransfer", "feComposite", "feDropShadow", "feFlood"}
_SCALABLE |= {"feFuncA", "feFuncB", "feFuncG", "feFuncR", "feGaussianBlur", "feMerge", "feMergeNode", "feOffset"}
# What can be moved as well as scaled: elements whose places are all written, not left at 0.
_ANCHORS = {
    **dict.fromkeys(("g", "path", "polyline", "polygon"), ()),
    **dict.fromkeys(("circle", "ellipse"), ("cx", "cy")),
    "rect": ("x", "y"),
    "line": ("x1", "y1", "x2", "y2"),
}
_BOXED = frozenset(("mask", "filter", *_GRADIENTS))
_TRANSFORMS = frozenset(("transform", "gradientTransform", "patternTransform"))
_OFFSETS = frozenset(("dx", "dy"))  # lists in text, numbers in filters
_X = frozenset(("x", "cx", "x1", "x2", "fx"))
_Y = frozenset(("y", "cy", "y1", "y2", "fy"))
_WIDTHS = frozenset(("width", "rx"))
_HEIGHTS = frozenset(("height", "ry"))
_DIAGONALS = frozenset(("r", "fr"))
_OFFSET_TAGS = frozenset(("feOffset", "feDropShadow"))
_FEW_NUMBERS = frozenset(("rect", "circle", "ellipse", "line"))
_POSITIONED = _SCALABLE | {"text", "tspan"}
_STROKE = frozenset(("stroke-width", "stroke-dashoffset", "pathLength"))
_GEOMETRY = _X | _Y | _WIDTHS | _HEIGHTS | _DIAGONALS
_SHARES = frozenset(("opacity", "fill-opacity", "stroke-opacity", "stop-opacity", "flood-opacity", "offset"))

_BOX_UNITS = ("clipPathUnits", "maskContentUnits", "patternContentUnits", "primitiveUnits")
_BOX = "objectBoundingBox"
_LENGTH = re.compile(rf"({NUMBER.pattern})\s*(px|pt|pc|mm|cm|in|%)?")
_DASHES = re.compile(rf"none|(?:(?>{NUMBER.pattern})(?:px)?[\s,]*+)++")
_PIXELS = {"px": 1.0, "": 1.0, "pt": 4 / 3, "pc": 16.0, "mm": 96 / 25.4, "cm": 96 / 2.54, "in": 96.0}
_FUNCTION = re.compile(r"(translate|scale|rotate|skewX|skewY|matrix)\s*\(([^()]*)\)[\s,]*")
_SHIFTS = {"translate": 0, "rotate": 1, "matrix": 4}  # where the lengths begin
_COUNTS = {
    "translate": (1, 2),
    "scale": (1, 2),
    "rotate": (1, 3),
    "skewX": (1,),
    "skewY": (1,),
    "matrix": (6,),
}


_NUMERIC = frozenset((*_GEOMETRY, *_STROKE, *_SHARES, *_BOX_UNITS, *_TRANSFORMS, *_OFFSETS))
_NUMERIC |= {"d", "points", "stroke-dasharray", "stdDeviation", "values", "tableValues"}


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
            if name not in _NUMERIC:
                continue
            if name in _BOX_UNITS and value == _BOX:
                return False
            if shifted and name in _TRANSFORMS:
                return False
            if name in _GEOMETRY or name in _STROKE or name in _OFFSETS:
                if parse_length(value, 1.0) is None:
                    return False
            elif name in ("stroke-dasharray", "stdDeviation") and not _DASHES.fullmatch(value):
                return False
    return True


def _is_scalable_element(node: Node, shifted: bool) -> bool:
    if not shifted:
        return node.tag in _SCALABLE
    return node.tag in _ANCHORS and all(name in node.attributes for name in _ANCHORS[node.tag])


def scale_tree(root: Node, space: Space, *, more_decimals: int = 0) -> float:
    """Rewrite all numbers in place, with more decimals than usual if asked to. Returns how much the rounding moves:
    roughly an area in square grid units, counted for what is stroked and for dense drawings only.

    Raises SVGRefused: `bad_path`, `bad_transform`.
    """
    nodes = root.walk()
    by_id = {node.attributes["id"]: node for node in nodes if "id" in node.attributes}
    if space.scale != 1 and _strokes_by_default(root):
        root.attributes["stroke-width"] = "1"  # the default does not scale unless it is written
    _scale_transforms(root, 1.0, space.scale, by_id)
    # A definition is drawn in the user space of whatever refers to it, and `use` can refer to anything.
    lift = max([node.scale for node in nodes if node.tag not in _GRADIENTS])
    dense = sum([len(node.attributes.get("d", "")) for node in nodes]) > DENSE
    scaler = _Scaler(by_id, lift, more_decimals, dense)
    scaler.scale_numbers(root, space, any(node.tag == "use" for node in nodes), "none", "")
    return scaler.moved


def _strokes_by_default(node: Node) -> bool:
    """Is anything stroked in the default width?"""
    if "stroke-width" in node.attributes:
        return False
    return "stroke" in node.attributes or any(map(_strokes_by_default, node.children))


def _is_boxed(node: Node, by_id: dict[str, Node]) -> bool:
    """Are the coordinates of this gradient, mask or filter shares of the painted box? May be inherited."""
    attribute = {"mask": "maskUnits", "filter": "filterUnits"}.get(node.tag, "gradientUnits")
    for _ in range(8):
        if attribute in node.attributes or node.attributes.get("href", "#")[1:] not in by_id:
            break
        node = by_id[node.attributes["href"][1:]]
    return node.attributes.get(attribute) != "userSpaceOnUse"


def decimals_for(zoom: float) -> int:
    """Decimals that keep a step below 1.26 grid units when one unit is drawn `zoom` of them large."""
    return 0 if zoom <= 1 else min(4, math.ceil(math.log10(zoom) - 0.1))


def _scale_transforms(node: Node, zoom: float, scale: float, by_id: dict[str, Node]) -> None:
    if not _TRANSFORMS.isdisjoint(node.attributes):
        for name in _TRANSFORMS & node.attributes.keys():
            coarse = name == "gradientTransform"
            boxed = coarse and _is_boxed(node, by_id)
            scaled = (1.0, float(GRID)) if boxed else (scale, zoom)
            text, zoom = _scale_transform(node.attributes[name], *scaled, coarse=coarse)
            node.attributes[name] = text
            if not text:
                del node.attributes[name]
    node.scale = zoom
    for child in node.children:
        _scale_transforms(child, zoom, scale, by_id)


def _scale_transform(text: str, scale: float, zoom: float, *, coarse: bool) -> tuple[str, float]:
    """`translate(1,2) scale(3)`, 10, 1 → `translate(10 20) scale(3)`, 3; `coarse` is what colours need."""
    if _FUNCTION.sub("", text).strip():
        raise SVGRefused("bad_transform", f"transform {text[:60]!r}")
    calls = [(name, parse_numbers(arguments)) for name, arguments in _FUNCTION.findall(text)]
    for name, numbers in calls:
        if len(numbers) not in _COUNTS[name]:
            raise SVGRefused("bad_transform", f"{name} with {len(numbers)} numbers in {text[:60]!r}")
        # Coordinates far off the page are brought back by exact numbers only.
        coarse = coarse and all(abs(round(number * scale)) <= FAR for number in numbers[_SHIFTS.get(name, 6) :])
    functions = []
    for name, numbers in calls:
        shift, digits, angle = (decimals_for(zoom), 3, 1) if coarse else (decimals_for(zoom) + 1, 5, 2)
        if name == "translate":
            words = [format_number(number * scale, shift) for number in numbers]
        elif name == "rotate":
            words = [format_number(numbers[0], angle)]
            words += [format_number(number * scale, shift) for number in numbers[1:]]
        elif name == "matrix":
            words = _significant(numbers[:4], digits) + [format_number(n * scale, shift) for n in numbers[4:]]
            a, b, c, d = map(float, words[:4])
            zoom *= max(math.hypot(a, b), math.hypot(c, d))
            if (a, b, c, d) == (1, 0, 0, 1):
                name, words = "translate", words[4:]
        elif name == "scale":
            words = _significant(numbers, digits)
            zoom *= max(abs(float(word)) for word in words)
        else:
            words = [format_number(numbers[0], angle)]
        functions.append(f"{name}({' '.join(words).replace(' -', '-')})")
    return " ".join(functions), zoom


def _significant(numbers: list[float], digits: int) -> list[str]:
    """As many decimals as give the largest of them so many digits."""
    largest = float(f"{max(map(abs, numbers)):.{digits}g}")
    decimals = min(12, max(0, digits - 1 - math.floor(math.log10(largest)))) if largest else 0
    return [format_number(number, decimals) for number in numbers]


class _Scaler:
    """Goes once through a tree, adding up what rounding moves."""

    def __init__(self, by_id: dict[str, Node], lift: float, more_decimals: int, dense: bool) -> None:
        self.by_id = by_id
        self.lift = lift
        self.more_decimals = more_decimals
        self.dense = dense
        self.moved = 0.0

    def scale_numbers(self, node: Node, space: Space, lifted: bool, stroke: str, fill: str) -> None:
        attributes = node.attributes
        lifted = lifted or node.tag in DEFINITIONS or node.tag == "defs"
        stroke, fill = attributes.get("stroke", stroke), attributes.get("fill", fill)
        zoom = max(node.scale, space.zoom, self.lift if lifted else 1.0)
        decimals = self.more_decimals + (decimals_for(zoom) if zoom > 1 else 0)
        positioned = node.tag in _POSITIONED
        if node.tag in _BOXED:
            positioned = not _is_boxed(node, self.by_id)
        # Both edges of a line follow its coordinates, and shapes have only a few of them.
        fine = decimals + (stroke != "none" and node.tag in _FEW_NUMBERS)
        moved = 0.0
        for name, value in attributes.items():
            if name not in _NUMERIC:
                continue
            if name == "d" or name == "points":
                shows = stroke != "none" or (self.dense and fill[:4] not in ("none", "url("))
                rewrite = scale_path if name == "d" else scale_points
                try:
                    attributes[name], slip = rewrite(
                        value, space.scale, origin=space.origin, decimals=decimals, measured=shows
                    )
                except PathError as error:
                    raise SVGRefused("bad_path", str(error)) from None
                moved += slip
            elif (positioned and name in _GEOMETRY) or name in _STROKE:
                attributes[name] = _scale_length(name, value, space, fine, vector=node.tag == "use")
            elif name in _OFFSETS and node.tag in _OFFSET_TAGS:
                attributes[name] = _scale_length(name, value, space, decimals, vector=True)
            elif name == "stroke-dasharray" or name == "stdDeviation":
                attributes[name] = _scale_dashes(value, space.scale, decimals + 1)
            elif name == "values" or name == "tableValues":  # of colours: a step is 1/255
                attributes[name] = " ".join([format_number(number, 3) for number in parse_numbers(value)])
            elif name in _SHARES and (share := parse_length(value, 1.0)) is not None:
                attributes[name] = format_number(share, 3)
        self.moved += moved * (node.scale / 10**decimals) ** 2
        if node.children:
            inner = _inner_space(node, space)
            for child in node.children:
                self.scale_numbers(child, inner, lifted, stroke, fill)


def _scale_length(name: str, value: str, space: Space, decimals: int, *, vector: bool) -> str:
    whole = math.hypot(space.width, space.height) / math.sqrt(2)  # what % of the others means
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
    return _small(number * space.scale, decimals + (name in _STROKE))


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
    if node.tag == "g":
        return space
    if any(node.attributes.get(units) == _BOX for units in _BOX_UNITS):
        zoom = max(zoom, GRID)
    elif "viewBox" in node.attributes:
        box = parse_numbers(node.attributes["viewBox"])
        zoom = max(zoom, GRID / max(*box[2:4], 1e-4)) if len(box) == 4 else zoom
    elif node.tag == "marker":
        zoom = max(zoom, 16.0)
    return replace(space, zoom=zoom) if zoom != space.zoom else space
