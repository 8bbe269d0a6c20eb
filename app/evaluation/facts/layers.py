"""Layers of a canonical drawing: each fill and each stroke, with its outline on the page."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from app.evaluation.facts.outline import Contour, Points, outline_shape, widen_line
from app.evaluation.facts.palette import RGB, parse_colour
from app.evaluation.facts.raster import Mask, fill_mask
from data_pipeline.svg.names import DEFINITIONS
from data_pipeline.svg.numbers import parse_numbers
from data_pipeline.svg.parse import parse_tree
from data_pipeline.svg.transform import parse_transform
from data_pipeline.svg.tree import Node

Matrix = NDArray[np.float64]

MAX_DEPTH = 64  # of groups and references, which may form a circle
_PROPERTIES = """
    fill fill-rule fill-opacity stroke stroke-width stroke-opacity stroke-linecap color visibility
"""
_INHERITED = frozenset(_PROPERTIES.split())
_OUTLINED = {"path", "circle", "ellipse", "rect", "line", "polygon", "polyline"}
# elements and attributes that this reader does not draw
_UNREAD_TAGS = frozenset(("text", "svg"))
_UNREAD_ATTRIBUTES = frozenset(("mask", "filter", "marker-start", "marker-mid", "marker-end"))


@dataclass(frozen=True, eq=False)
class Layer:
    """One fill or stroke of one element."""

    contours: list[Contour]
    """Outline on the page; for a stroke, its centre line."""
    mask: Mask
    colours: list[RGB]
    """One colour, or those of a gradient's stops."""
    opacity: float
    stroke_width: float
    """0 for a fill."""
    is_even_odd: bool
    is_coloured: bool
    """Whether the drawing states the colour; `currentColor` and no colour at all are black."""


@dataclass
class Painting:
    """Layers of a drawing from back to front."""

    width: float
    height: float
    layers: list[Layer] = field(default_factory=list)
    is_complete: bool = True
    """Whether every element was read; text, masks, filters and patterns are not."""


@dataclass(frozen=True)
class _Context:
    """Inherited state of an element."""

    style: Mapping[str, str]
    matrix: Matrix
    opacity: float = 1.0
    clip: Mask | None = None
    depth: int = 0


def read_layers(canonical_svg: str) -> Painting:
    """Return the layers of a canonical drawing (see `data_pipeline.svg`)."""
    nodes = parse_tree(canonical_svg, max_bytes=len(canonical_svg) * 4)
    root = nodes[0]
    _, _, width, height = parse_numbers(root.attributes["viewBox"])
    reader = _Reader(Painting(width, height), nodes)
    identity = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    context = reader.enter(root, _Context({}, identity))
    for child in root.children:
        reader.draw(child, context)
    return reader.painting


class _Reader:
    def __init__(self, painting: Painting, nodes: Iterable[Node]) -> None:
        self.painting = painting
        self.by_id = {n.attributes["id"]: n for n in nodes if "id" in n.attributes}

    def draw(self, node: Node, context: _Context) -> None:
        """Append the layers of the node and of its content."""
        if node.tag in DEFINITIONS or node.tag == "defs" or context.depth > MAX_DEPTH:
            return
        if node.tag in _UNREAD_TAGS:
            self.painting.is_complete = False
        if node.attributes.get("display") == "none":
            return

        inner = self.enter(node, context)
        if node.tag == "use":
            target = self.by_id.get(node.attributes.get("href", "#")[1:])
            if target is not None:
                self._draw_target(target, inner)
        elif node.tag in _OUTLINED and inner.style.get("visibility", "visible") == "visible":
            self._draw_outline(node, inner)
        for child in node.children:
            self.draw(child, inner)

    def _draw_target(self, target: Node, context: _Context) -> None:
        if target.tag != "symbol":
            self.draw(target, context)
            return
        if "viewBox" in target.attributes:
            self.painting.is_complete = False
        for child in target.children:
            self.draw(child, context)

    def enter(self, node: Node, context: _Context) -> _Context:
        """Return the state inside the node."""
        attributes = node.attributes
        style = dict(context.style)
        for name in _INHERITED & attributes.keys():
            if attributes[name] != "inherit":
                style[name] = attributes[name]

        # transform
        matrix = context.matrix
        if "transform" in attributes:
            matrix = multiply(matrix, read_transform(attributes["transform"]))
        if node.tag == "use":
            shift = [sum(parse_numbers(attributes.get(name, "0"))) for name in ("x", "y")]
            matrix = multiply(matrix, np.array([[1, 0, shift[0]], [0, 1, shift[1]]]))

        # clip and opacity
        clip = self._read_clip(attributes.get("clip-path", ""), matrix, context.clip)
        opacity = context.opacity * _read_share(attributes.get("opacity", ""))
        if _UNREAD_ATTRIBUTES & attributes.keys():
            self.painting.is_complete = False
        return _Context(style, matrix, opacity, clip, context.depth + 1)

    def _read_clip(self, value: str, matrix: Matrix, outer: Mask | None) -> Mask | None:
        node = self.by_id.get(value[5:-1]) if value.startswith("url(#") else None
        if node is None:
            return outer
        if node.attributes.get("clipPathUnits") == "objectBoundingBox":
            self.painting.is_complete = False
            return outer

        if "transform" in node.attributes:
            matrix = multiply(matrix, read_transform(node.attributes["transform"]))
        mask = np.zeros_like(fill_mask([]))
        for child in node.children:
            target = child
            if child.tag == "use":
                target = self.by_id.get(child.attributes.get("href", "#")[1:], child)
            if target.tag in _OUTLINED:
                inner = matrix
                if "transform" in target.attributes:
                    inner = multiply(matrix, read_transform(target.attributes["transform"]))
                contours = outline_shape(target.tag, target.attributes)
                mask |= fill_mask([apply_matrix(inner, c.points) for c in contours])
        return mask if outer is None else mask & outer

    def _draw_outline(self, node: Node, context: _Context) -> None:
        style, matrix = context.style, context.matrix
        contours = [
            Contour(apply_matrix(matrix, contour.points), contour.is_closed)
            for contour in outline_shape(node.tag, node.attributes)
        ]
        if not contours:
            return
        is_even_odd = style.get("fill-rule") == "evenodd"

        # fill
        colours, alpha = self._read_paint(style.get("fill", "black"), style)
        alpha *= _read_share(style.get("fill-opacity", "")) * context.opacity
        if colours and alpha > 0.02 and node.tag != "line":
            mask = fill_mask([contour.points for contour in contours], is_even_odd=is_even_odd)
            is_coloured = _states_colour(style.get("fill", ""), style)
            self._add(Layer(contours, mask, colours, alpha, 0.0, is_even_odd, is_coloured), context)

        # stroke
        colours, alpha = self._read_paint(style.get("stroke", "none"), style)
        alpha *= _read_share(style.get("stroke-opacity", "")) * context.opacity
        width = sum(parse_numbers(style.get("stroke-width", "1"))[:1])
        width *= abs(float(np.linalg.det(matrix[:, :2]))) ** 0.5
        if colours and alpha > 0.02 and width > 0:
            cap = style.get("stroke-linecap", "butt")
            polygons = [
                polygon
                for contour in contours
                for polygon in widen_line(
                    contour.points, width, is_closed=contour.is_closed, cap=cap
                )
            ]
            mask = fill_mask(polygons)
            is_coloured = _states_colour(style["stroke"], style)
            self._add(Layer(contours, mask, colours, alpha, width, False, is_coloured), context)

    def _add(self, layer: Layer, context: _Context) -> None:
        if context.clip is not None:
            layer = replace(layer, mask=layer.mask & context.clip)
        self.painting.layers.append(layer)

    def _read_paint(self, paint: str, style: Mapping[str, str]) -> tuple[list[RGB], float]:
        """Return the colours of a paint and their mean opacity; none for `none`."""
        if paint.startswith("url(#"):
            name, _, fallback = paint[5:].partition(")")
            server = self.by_id.get(name)
            if server is not None:
                return self._read_server(server, style)
            paint = fallback.strip() or "none"
        if paint.lower() == "currentcolor":
            paint = style.get("color", "black")

        colour = None if paint == "none" else parse_colour(paint)
        return ([], 0.0) if colour is None else ([colour[:3]], colour[3])

    def _read_server(self, server: Node, style: Mapping[str, str]) -> tuple[list[RGB], float]:
        """Return the colours of a gradient's stops; a pattern is gray and makes it incomplete."""
        if server.tag == "pattern":
            self.painting.is_complete = False
            return [(0.5, 0.5, 0.5)], 0.5

        # stops, which may be those of a template
        for _ in range(8):
            stops = [child for child in server.children if child.tag == "stop"]
            template = self.by_id.get(server.attributes.get("href", "#")[1:])
            if stops or template is None:
                break
            server = template
        colours, alphas = [], []
        for stop in stops:
            text = stop.attributes.get("stop-color", "black")
            colour = parse_colour(style.get("color", "black") if text == "currentColor" else text)
            if colour is not None:
                alpha = colour[3] * _read_share(stop.attributes.get("stop-opacity", ""))
                alphas.append(alpha)
                if alpha > 0.3:
                    colours.append(colour[:3])
        return colours, sum(alphas) / max(len(alphas), 1)


def _states_colour(paint: str, style: Mapping[str, str]) -> bool:
    return "color" in style if paint.lower() == "currentcolor" else bool(paint)


def _read_share(text: str) -> float:
    numbers = parse_numbers(text)
    if not numbers:
        return 1.0
    return min(1.0, max(0.0, numbers[0] / 100 if "%" in text else numbers[0]))


def apply_matrix(matrix: Matrix, points: Points) -> Points:
    """Return the transformed points."""
    (a, c, e), (b, d, f) = matrix
    x, y = points.real, points.imag
    moved: Points = (a * x + c * y + e) + 1j * (b * x + d * y + f)
    return moved


def multiply(outer: Matrix, inner: Matrix) -> Matrix:
    """Return the affine map that applies `inner` first."""
    product = outer[:, :2] @ inner
    product[:, 2] += outer[:, 2]
    return product


def read_transform(text: str) -> Matrix:
    """Return the affine map of a transform attribute."""
    matrix = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    for name, numbers in parse_transform(text):
        matrix = multiply(matrix, _read_call(name, numbers))
    return matrix


def _read_call(name: str, numbers: list[float]) -> Matrix:
    if name == "matrix":
        return np.array(numbers).reshape(3, 2).T
    if name == "translate":
        return np.array([[1, 0, numbers[0]], [0, 1, [*numbers, 0.0][1]]])
    if name == "scale":
        return np.array([[numbers[0], 0, 0], [0, numbers[-1], 0]])

    angle = math.radians(numbers[0])
    if name != "rotate":
        slant = math.tan(angle)
        return np.array(
            [[1, slant, 0], [0, 1, 0]] if name == "skewX" else [[1, 0, 0], [slant, 1, 0]]
        )
    turn = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]])
    if len(numbers) == 3:
        centre = np.array(numbers[1:])
        turn[:, 2] = centre - turn[:, :2] @ centre
    return turn
