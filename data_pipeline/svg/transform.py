"""Transforms in another scale: lengths inside of them follow it, their linear parts do not. Knows no bytes."""

import math
import re

from data_pipeline.svg.lengths import GRID
from data_pipeline.svg.numbers import format_number, parse_numbers
from data_pipeline.svg.read import SVGRefused
from data_pipeline.svg.tree import Node

FAR = 2 * GRID - 1  # odd, because 511.5 rounds to 512: what is far stays far when it is written
TRANSFORMS = frozenset(("transform", "gradientTransform", "patternTransform"))

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


def is_boxed(node: Node, by_id: dict[str, Node]) -> bool:
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


def scale_transforms(node: Node, zoom: float, scale: float, by_id: dict[str, Node]) -> None:
    """In place, of the node and all below it; `zoom` is what the transforms around it make of one unit.

    Sets `scale` of each node. Raises SVGRefused: `bad_transform`.
    """
    if not TRANSFORMS.isdisjoint(node.attributes):
        for name in TRANSFORMS & node.attributes.keys():
            coarse = name == "gradientTransform"
            boxed = coarse and is_boxed(node, by_id)
            scaled = (1.0, float(GRID)) if boxed else (scale, zoom)
            text, zoom = _scale_transform(node.attributes[name], *scaled, coarse=coarse)
            node.attributes[name] = text
            if not text:
                del node.attributes[name]
    node.scale = zoom
    for child in node.children:
        scale_transforms(child, zoom, scale, by_id)


def _scale_transform(text: str, scale: float, zoom: float, *, coarse: bool) -> tuple[str, float]:
    """`translate(1,2) scale(3)`, 10, 1 → `translate(10 20) scale(3)`, 3; `coarse` is what colours need."""
    if _FUNCTION.sub("", text).strip():
        raise SVGRefused("bad_transform", f"transform {text[:60]!r}")
    calls = [(name, parse_numbers(arguments)) for name, arguments in _FUNCTION.findall(text)]
    for name, numbers in calls:
        if len(numbers) not in _COUNTS[name]:
            raise SVGRefused(
                "bad_transform", f"{name} with {len(numbers)} numbers in {text[:60]!r}"
            )
        # Coordinates far off the page are brought back by exact numbers only.
        coarse = coarse and all(
            abs(round(number * scale)) <= FAR for number in numbers[_SHIFTS.get(name, 6) :]
        )
    functions = []
    for name, numbers in calls:
        shift, digits, angle = (
            (decimals_for(zoom), 3, 1) if coarse else (decimals_for(zoom) + 1, 5, 2)
        )
        if name == "translate":
            words = [format_number(number * scale, shift) for number in numbers]
        elif name == "rotate":
            words = [format_number(numbers[0], angle)]
            words += [format_number(number * scale, shift) for number in numbers[1:]]
        elif name == "matrix":
            words = _significant(numbers[:4], digits) + [
                format_number(n * scale, shift) for n in numbers[4:]
            ]
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
