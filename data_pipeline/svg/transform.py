"""Transforms in another scale: their lengths follow the scale, their linear parts stay."""

import math
import re

from data_pipeline.svg.errors import SVGRefused
from data_pipeline.svg.lengths import GRID
from data_pipeline.svg.numbers import MAX_DECIMALS, format_number, parse_numbers
from data_pipeline.svg.tree import Node

# Odd, because 511.5 rounds to 512: a far coordinate is still far after rounding.
FAR = 2 * GRID - 1
# Each limit that a drawing's farthest coordinate exceeds needs one more digit in all transforms.
_FAR_LIMITS = (5_111, 51_111, 511_111, 5_111_111, 51_111_111)
MAX_HREFS = 8  # followed for an inherited attribute: references may form a circle
TRANSFORMS = frozenset(("transform", "gradientTransform", "patternTransform"))

Call = tuple[str, list[float]]  # name and arguments of a transform function
Matrix = tuple[complex, complex, complex]  # images of (1, 0) and (0, 1) as vectors, and of (0, 0)

IDENTITY: Matrix = (1 + 0j, 1j, 0j)

_FUNCTION = re.compile(r"(translate|scale|rotate|skewX|skewY|matrix)\s*\(([^()]*)\)[\s,]*")
_FIRST_LENGTH = {"translate": 0, "rotate": 1, "matrix": 4}  # index of the first length argument
_NUM_ARGUMENTS = {
    "translate": (1, 2),
    "scale": (1, 2),
    "rotate": (1, 3),
    "skewX": (1,),
    "skewY": (1,),
    "matrix": (6,),
}


def find_inherited(node: Node, name: str, by_id: dict[str, Node]) -> Node | None:
    """Return the first node that has the attribute: the node, or a template in its `href`."""
    for _ in range(MAX_HREFS):
        if name in node.attributes:
            return node
        template = by_id.get(node.attributes.get("href", "#")[1:])
        if template is None:
            break
        node = template
    return None


def uses_box_units(node: Node, by_id: dict[str, Node]) -> bool:
    """Return whether a paint, mask or filter has coordinates relative to the painted box.

    The attribute may be inherited through `href`.
    """
    units = {"mask": "maskUnits", "filter": "filterUnits", "pattern": "patternUnits"}
    name = units.get(node.tag, "gradientUnits")
    owner = find_inherited(node, name, by_id)
    return owner is None or owner.attributes[name] != "userSpaceOnUse"


def choose_decimals(zoom: float) -> int:
    """Return the decimals that keep a step below 1.26 grid units.

    One unit covers `zoom` grid units.
    """
    return 0 if zoom <= 1 else min(MAX_DECIMALS - 2, math.ceil(math.log10(zoom) - 0.1))


def scale_transforms(nodes: list[Node], scale: float, by_id: dict[str, Node]) -> None:
    """Scale the transforms of a tree in place, and set the `scale` of its nodes.

    `nodes` are in document order, the root first. Raises SVGRefused: `bad_transform`.
    """
    calls: dict[tuple[int, str], list[Call]] = {}
    in_box: set[int] = set()
    farthest = 0.0
    for node in nodes:
        for name in TRANSFORMS & node.attributes.keys():
            if name == "gradientTransform" and uses_box_units(node, by_id):
                in_box.add(id(node))
            calls[id(node), name] = parsed = parse_transform(node.attributes[name])
            unit = GRID if id(node) in in_box else scale
            farthest = max([farthest, *(abs(length) * unit for length in _list_lengths(parsed))])

    # Rotations and scales move coordinates far off the page by their own errors.
    num_more_digits = sum(round(farthest) > limit for limit in _FAR_LIMITS)
    zooms = {id(nodes[0]): 1.0}
    for node in nodes:
        zoom = zooms[id(node)]
        for name in TRANSFORMS & node.attributes.keys():
            node.attributes[name], zoom = _write_transform(
                calls[id(node), name],
                scale=1.0 if id(node) in in_box else scale,
                zoom=float(GRID) if id(node) in in_box else zoom,
                # A gradient needs fewer digits than an outline.
                is_coarse=name == "gradientTransform" and not num_more_digits,
                num_more_digits=num_more_digits,
            )
            if not node.attributes[name]:
                del node.attributes[name]
        node.scale = zoom
        zooms.update((id(child), zoom) for child in node.children)


def _write_transform(
    calls: list[Call], *, scale: float, zoom: float, is_coarse: bool, num_more_digits: int
) -> tuple[str, float]:
    """Return the scaled transform, and `zoom` times the factor by which it enlarges one unit.

    `translate(1,2) scale(3)` with scale 10 and zoom 1 becomes `translate(10 20) scale(3)` and 3.
    """
    # Coordinates far off the page come back onto it only by exact numbers.
    is_coarse = is_coarse and all(
        abs(round(length * scale)) <= FAR for length in _list_lengths(calls)
    )
    more_decimals, num_digits, angle_decimals = (
        (0, 3, 1) if is_coarse else (1, 5 + num_more_digits, 2 + num_more_digits)
    )

    functions = []
    for name, numbers in calls:
        decimals = choose_decimals(zoom) + more_decimals
        if name == "translate":
            arguments = [format_number(number * scale, decimals) for number in numbers]
        elif name == "rotate":
            arguments = [format_number(numbers[0], angle_decimals)]
            arguments += [format_number(number * scale, decimals) for number in numbers[1:]]
        elif name == "matrix":
            arguments = _format_significant(numbers[:4], num_digits)
            arguments += [format_number(number * scale, decimals) for number in numbers[4:]]
            a, b, c, d = map(float, arguments[:4])
            zoom *= max(math.hypot(a, b), math.hypot(c, d))
            if (a, b, c, d) == (1, 0, 0, 1):
                name, arguments = "translate", arguments[4:]
        elif name == "scale":
            arguments = _format_significant(numbers, num_digits)
            zoom *= max(abs(float(argument)) for argument in arguments)
        else:
            arguments = [format_number(numbers[0], angle_decimals)]
        functions.append(f"{name}({' '.join(arguments).replace(' -', '-')})")
    return " ".join(functions), zoom


def parse_transform(text: str) -> list[Call]:
    """Return the functions of a transform with their arguments.

    Raises SVGRefused: `bad_transform`.
    """
    if _FUNCTION.sub("", text).strip():
        raise SVGRefused("bad_transform", f"transform {text[:60]!r}")

    calls = [(name, parse_numbers(arguments)) for name, arguments in _FUNCTION.findall(text)]
    for name, numbers in calls:
        if len(numbers) not in _NUM_ARGUMENTS[name]:
            raise SVGRefused(
                "bad_transform", f"{name} with {len(numbers)} numbers in {text[:60]!r}"
            )
    return calls


def multiply(matrix: Matrix, transform: str) -> Matrix:
    """Return the product of the matrix and a transform. Raises SVGRefused: `bad_transform`."""
    x, y, origin = matrix
    for name, numbers in parse_transform(transform):
        a, b, c, d, e, f = _find_coefficients(name, numbers)
        origin += e * x + f * y
        x, y = a * x + b * y, c * x + d * y
    return x, y, origin


def _find_coefficients(name: str, numbers: list[float]) -> tuple[float, ...]:
    """Return the six numbers of `matrix(a b c d e f)` for a transform function."""
    first, second = numbers[0], numbers[-1]
    if name == "matrix":
        return tuple(numbers)
    if name == "translate":
        return 1.0, 0.0, 0.0, 1.0, first, second if len(numbers) > 1 else 0.0
    if name == "scale":
        return first, 0.0, 0.0, second, 0.0, 0.0

    angle = math.radians(first)
    if name == "skewX":
        return 1.0, 0.0, math.tan(angle), 1.0, 0.0, 0.0
    if name == "skewY":
        return 1.0, math.tan(angle), 0.0, 1.0, 0.0, 0.0
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = numbers[1:] or (0.0, 0.0)
    return cos, sin, -sin, cos, x - x * cos + y * sin, y - x * sin - y * cos


def _list_lengths(calls: list[Call]) -> list[float]:
    return [number for name, numbers in calls for number in numbers[_FIRST_LENGTH.get(name, 6) :]]


def _format_significant(numbers: list[float], num_digits: int) -> list[str]:
    """Return the numbers with the decimals that give the largest one `num_digits` digits."""
    largest = float(f"{max(map(abs, numbers)):.{num_digits}g}")
    decimals = 0
    if largest:
        decimals = min(12, max(0, num_digits - 1 - math.floor(math.log10(largest))))
    return [format_number(number, decimals) for number in numbers]
