"""Transforms in another scale: their lengths follow the scale, their linear parts stay."""

import math
import re

from data_pipeline.svg.errors import SVGRefused
from data_pipeline.svg.lengths import GRID
from data_pipeline.svg.numbers import format_number, parse_numbers
from data_pipeline.svg.tree import Node

# Odd, because 511.5 rounds to 512: a far coordinate is still far after rounding.
FAR = 2 * GRID - 1
MAX_HREFS = 8  # followed for an inherited attribute: references may form a circle
TRANSFORMS = frozenset(("transform", "gradientTransform", "patternTransform"))

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


def uses_box_units(node: Node, by_id: dict[str, Node]) -> bool:
    """Return whether a gradient, mask or filter has coordinates relative to the painted box.

    The attribute may be inherited through `href`.
    """
    attribute = {"mask": "maskUnits", "filter": "filterUnits"}.get(node.tag, "gradientUnits")
    for _ in range(MAX_HREFS):
        if attribute in node.attributes or node.attributes.get("href", "#")[1:] not in by_id:
            break
        node = by_id[node.attributes["href"][1:]]
    return node.attributes.get(attribute) != "userSpaceOnUse"


def choose_decimals(zoom: float) -> int:
    """Return the decimals that keep a step below 1.26 grid units.

    One unit covers `zoom` grid units.
    """
    return 0 if zoom <= 1 else min(4, math.ceil(math.log10(zoom) - 0.1))


def scale_transforms(node: Node, zoom: float, scale: float, by_id: dict[str, Node]) -> None:
    """Scale the transforms of the node and its descendants in place, and set their `scale`.

    `zoom` is the factor by which the ancestors' transforms enlarge one unit.
    Raises SVGRefused: `bad_transform`.
    """
    if not TRANSFORMS.isdisjoint(node.attributes):
        for name in TRANSFORMS & node.attributes.keys():
            is_gradient = name == "gradientTransform"
            in_box = is_gradient and uses_box_units(node, by_id)
            scale_and_zoom = (1.0, float(GRID)) if in_box else (scale, zoom)

            # A gradient needs fewer digits than an outline.
            text, zoom = _scale_transform(
                node.attributes[name], *scale_and_zoom, is_coarse=is_gradient
            )
            node.attributes[name] = text
            if not text:
                del node.attributes[name]

    node.scale = zoom
    for child in node.children:
        scale_transforms(child, zoom, scale, by_id)


def _scale_transform(text: str, scale: float, zoom: float, *, is_coarse: bool) -> tuple[str, float]:
    """Return the scaled transform, and `zoom` times the factor by which it enlarges one unit.

    `translate(1,2) scale(3)` with scale 10 and zoom 1 becomes `translate(10 20) scale(3)` and 3.
    """
    calls = _parse_transform(text)

    # Coordinates far off the page come back onto it only by exact numbers.
    is_coarse = is_coarse and all(
        abs(round(number * scale)) <= FAR
        for name, numbers in calls
        for number in numbers[_FIRST_LENGTH.get(name, 6) :]
    )

    functions = []
    for name, numbers in calls:
        decimals, num_digits, angle_decimals = (
            (choose_decimals(zoom), 3, 1) if is_coarse else (choose_decimals(zoom) + 1, 5, 2)
        )
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


def _parse_transform(text: str) -> list[tuple[str, list[float]]]:
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


def _format_significant(numbers: list[float], num_digits: int) -> list[str]:
    """Return the numbers with the decimals that give the largest one `num_digits` digits."""
    largest = float(f"{max(map(abs, numbers)):.{num_digits}g}")
    decimals = 0
    if largest:
        decimals = min(12, max(0, num_digits - 1 - math.floor(math.log10(largest))))
    return [format_number(number, decimals) for number in numbers]
