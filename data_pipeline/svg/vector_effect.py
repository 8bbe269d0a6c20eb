"""Vector effects: write strokes that do not scale with the drawing as strokes that do."""

import math
import re

from data_pipeline.svg.errors import SVGRefused
from data_pipeline.svg.lengths import format_size, parse_length
from data_pipeline.svg.names import SHAPES, TEXTS
from data_pipeline.svg.transform import IDENTITY, Matrix, multiply
from data_pipeline.svg.tree import Drawing, Node

_LENGTHS = ("stroke-width", "stroke-dasharray", "stroke-dashoffset")
_STROKE = ("stroke", *_LENGTHS)
_TAGS = (SHAPES - {"use"}) | TEXTS | {"svg", "g", "switch"}
_TOLERANCE = 1e-3  # relative difference of two scales that is an accident of rounding


def apply_vector_effects(drawing: Drawing, units_per_pixel: float) -> None:
    """Write each `non-scaling-stroke` in place as a stroke of the same width on the page.

    Its lengths are pixels of the picture. Raises SVGRefused: `unsupported_geometry` where the
    stroke would need several widths.
    """
    stack: list[tuple[Node, Matrix | None, dict[str, str]]] = [(drawing.nodes[0], IDENTITY, {})]
    while stack:
        node, matrix, inherited = stack.pop()
        attributes = node.attributes
        own = {name: attributes[name] for name in _STROKE if name in attributes}
        inherited = inherited | own if own else inherited

        # matrix to the page, which is unknown inside elements that are drawn elsewhere
        if "transform" in attributes and matrix is not None:
            matrix = multiply(matrix, attributes["transform"])
        if node.tag not in _TAGS or "viewBox" in attributes:
            matrix = None

        effect = attributes.pop("vector-effect", "")
        if effect == "non-scaling-stroke" and inherited.get("stroke", "none") != "none":
            _write_stroke(node, matrix, inherited, units_per_pixel)
        stack += [(child, matrix, inherited) for child in node.children]


def _write_stroke(
    node: Node, matrix: Matrix | None, inherited: dict[str, str], units_per_pixel: float
) -> None:
    """Write the width and the dashes of the stroke in the user space of the node."""
    x, y, _ = matrix or (0j, 0j, 0j)
    scale = abs(x)
    is_similar = abs(x - y / 1j) < _TOLERANCE * scale or abs(x - y * 1j) < _TOLERANCE * scale
    if not is_similar:
        raise SVGRefused(
            "unsupported_geometry",
            f"vector-effect of a {node.tag} that is scaled differently along its axes, or drawn "
            "elsewhere; remove the vector-effect",
        )

    for name, value in {"stroke-width": "1", **inherited}.items():
        if name == "stroke" or value == "none":
            continue
        texts = []
        for text in re.split(r"[\s,]+", value.strip()):
            length = parse_length(text, math.nan)
            if length is None or math.isnan(length):
                detail = f"vector-effect with {name} {value[:40]!r}"
                raise SVGRefused("unsupported_geometry", detail)
            texts.append(format_size(length * units_per_pixel / scale, 5))
        node.attributes[name] = " ".join(texts)
