"""Extent: the page of a drawing that gives no size, as usvg finds it from the outlines."""

import math
from collections.abc import Iterator

from data_pipeline.svg.arc import MIN_LENGTH, convert_arc_to_cubics
from data_pipeline.svg.errors import SVGRefused
from data_pipeline.svg.lengths import parse_length
from data_pipeline.svg.names import DEFINITIONS
from data_pipeline.svg.origin import ORIGINS
from data_pipeline.svg.tokens import COMMANDS, cut_at_error, read_touching_flags, tokenise_path
from data_pipeline.svg.transform import IDENTITY, Matrix, multiply
from data_pipeline.svg.tree import Drawing, Node

# A `use` draws its target again: a few of them inside each other could draw without an end.
MAX_CHARACTERS = 4_000_000  # of all drawn outlines
MAX_DRAWN = 50_000  # elements

Cubic = tuple[complex, complex, complex, complex]  # control points

_NUM_VALUES = {"m": 2, "l": 2, "h": 1, "v": 1, "c": 6, "s": 4, "q": 4, "t": 2, "z": 0}
_NOT_DRAWN = DEFINITIONS | {"defs"}
_MARKERS = frozenset(("marker-start", "marker-mid", "marker-end"))


def find_extent(drawing: Drawing) -> tuple[float, float]:
    """Return the right and the bottom end of all outlines, in the user space around the root.

    usvg gives a drawing without a size the page from (0, 0) to this point. Strokes, clips and
    filters do not count. Outlines without paint do: editors add such a box to give the size.

    Raises SVGRefused: `bad_transform`, or `no_viewbox` if the extent is not positive, or depends on
    text, markers, percentages, or a symbol or nested `svg`, whose size is 100 % of an unknown page.
    Raises PathError.
    """
    by_id = {node.attributes["id"]: node for node in drawing.nodes if "id" in node.attributes}
    right = bottom = 0.0
    num_drawn = num_characters = 0
    stack = [(drawing.nodes[0], IDENTITY)]
    while stack:
        node, matrix = stack.pop()
        if node.attributes.get("display") == "none":
            continue
        matrix = _place(node, matrix)
        num_drawn += 1
        if num_drawn > MAX_DRAWN or num_characters > MAX_CHARACTERS:
            raise _refuse("too many elements are drawn")

        if node.tag == "g" or node is drawing.nodes[0]:
            stack += [(child, matrix) for child in node.children if child.tag not in _NOT_DRAWN]
        elif node.tag == "use":
            x, y, origin = matrix
            origin += _read(node, "x") * x + _read(node, "y") * y
            stack.append((by_id[node.attributes["href"][1:]], (x, y, origin)))
        else:
            d = _to_path_data(node)
            num_characters += len(d)
            for cubic in _list_cubics(d):
                points = [matrix[2] + p.real * matrix[0] + p.imag * matrix[1] for p in cubic]
                right = max(right, _find_maximum([point.real for point in points]))
                bottom = max(bottom, _find_maximum([point.imag for point in points]))

    if not (0 < right < math.inf and 0 < bottom < math.inf):
        raise _refuse("no outline is to the right of and below the origin")
    return right, bottom


def _refuse(reason: str) -> SVGRefused:
    return SVGRefused("no_viewbox", f"neither viewBox nor width and height give a size; {reason}")


def _place(node: Node, matrix: Matrix) -> Matrix:
    """Return the matrix of the user space inside the node."""
    attributes = node.attributes
    has_markers = any(attributes.get(name, "none") != "none" for name in _MARKERS)
    if has_markers or not ORIGINS.isdisjoint(attributes):
        raise _refuse("the drawing has markers or a transform-origin")
    return multiply(matrix, attributes["transform"]) if "transform" in attributes else matrix


def _read(node: Node, name: str) -> float:
    length = parse_length(node.attributes.get(name, "0"), math.nan)
    if length is None or math.isnan(length):
        raise _refuse(f"{name}={node.attributes[name][:40]!r} is not a number")
    return length


def _to_path_data(node: Node) -> str:
    """Return the outline of a shape as path data; rounded corners are left out."""

    def read(*names: str) -> list[float]:
        return [_read(node, name) for name in names]

    if node.tag == "path":
        return node.attributes.get("d", "")
    if node.tag == "line":
        x1, y1, x2, y2 = read("x1", "y1", "x2", "y2")
        return f"M{x1} {y1} {x2} {y2}"
    if node.tag in ("polygon", "polyline"):
        return f"M{node.attributes.get('points', '')}"
    if node.tag == "rect":
        x, y, width, height = read("x", "y", "width", "height")
        return f"M{x} {y}h{width}v{height}h{-width}" if width > 0 and height > 0 else ""
    if node.tag in ("circle", "ellipse"):
        cx, cy, rx, ry = read("cx", "cy", *(("r", "r") if node.tag == "circle" else ("rx", "ry")))
        rx, ry = rx if rx > 0 else ry, ry if ry > 0 else rx
        half = f"a{rx} {ry} 0 1 0"
        return f"M{cx - rx} {cy}{half} {2 * rx} 0{half} {-2 * rx} 0" if rx > 0 and ry > 0 else ""
    raise _refuse(f"the drawing has a {node.tag}")


def _list_cubics(d: str) -> list[Cubic]:
    """Return the segments of path data, also lines, arcs and moves, as cubic Bézier curves.

    A move alone draws nothing, and two moves in turn are one.
    """
    cubics: list[Cubic] = []
    here = start = control = 0j
    last = ""
    for command, is_relative, numbers in _read_commands(cut_at_error(d)):
        base = here if is_relative else 0j
        if command in "mz":
            if command == last == "m":
                cubics.pop()
            start = base + complex(*numbers) if command == "m" else start
            here = start
            cubics.append((start, start, start, start))
        else:
            is_smooth = (command == "s" and last in "cs") or (command == "t" and last in "qt")
            mirrored = 2 * here - control if last and is_smooth else here
            points = _find_control_points(command, numbers, base, here, mirrored)
            for n in range(0, len(points), 3):
                one, two, end = points[n : n + 3]
                cubics.append((here, one, two, end))
                here = end
                control = end + (two - end) * 1.5 if command in "qt" else two
        last = command
    return cubics if len(cubics) > 1 else []


def _read_commands(d: str) -> Iterator[tuple[str, bool, list[float]]]:
    """Yield the command in lower case, whether it is relative, and its numbers."""
    tokens, values = tokenise_path(d)
    index, command, is_relative = 0, "", False
    while index < len(values):
        if values[index] is None:
            command, is_relative = COMMANDS[tokens[index]]
            index += 1
        elif command == "m":
            command = "l"

        if command == "a":
            radii_and_angle = values[index : index + 3]
            *numbers, index = read_touching_flags(tokens, values, index + 3)
            yield command, is_relative, [*radii_and_angle, *numbers]
        else:
            end = index + _NUM_VALUES[command]
            yield command, is_relative, list(values[index:end])
            index = end


def _find_control_points(
    command: str, numbers: list[float], base: complex, here: complex, mirrored: complex
) -> list[complex]:
    """Return the absolute control points behind `here`, three for each cubic."""
    if command == "a":
        return _convert_arc(numbers, base, here)
    if command == "h":
        numbers = [numbers[0], here.imag - base.imag]
    elif command == "v":
        numbers = [here.real - base.real, numbers[0]]

    points = [base + complex(*numbers[n : n + 2]) for n in range(0, len(numbers), 2)]
    if command in "st":
        points = [mirrored, *points]
    if command in "qt":
        quadratic, end = points
        return [here + (quadratic - here) * 2 / 3, end + (quadratic - end) * 2 / 3, end]
    return points if command in "cs" else [here, points[0], points[0]]


def _convert_arc(numbers: list[float], base: complex, here: complex) -> list[complex]:
    rx, ry, phi, large, sweep, x, y = numbers
    end = base + complex(x, y)
    chord = end - here
    if min(abs(rx), abs(ry), abs(chord)) < MIN_LENGTH:
        return [here, end, end]
    found = convert_arc_to_cubics(
        here.real, here.imag, chord.real, chord.imag,
        abs(rx), abs(ry), phi, large, sweep, large_radius=math.inf,
    )  # fmt: skip
    return [complex(*found[n : n + 2]) for n in range(0, len(found), 2)]


def _find_maximum(p: list[float]) -> float:
    """Return the largest ordinate of a cubic Bézier curve from those of its control points."""
    largest = max(p[0], p[3])
    if max(p) <= largest:
        return largest

    # the derivative is 3 (a t² + 2 b t + c)
    steps = [p[1] - p[0], p[2] - p[1], p[3] - p[2]]
    a, b, c = steps[0] - 2 * steps[1] + steps[2], steps[1] - steps[0], steps[0]
    root = math.sqrt(max(0.0, b * b - a * c))
    product = -b - math.copysign(root, b)
    for t in (product / a if a else 0.0, c / product if product else 0.0):
        if 0 < t < 1:
            u = 1 - t
            at_t = u**3 * p[0] + 3 * u * u * t * p[1] + 3 * u * t * t * p[2] + t**3 * p[3]
            largest = max(largest, at_t)
    return largest
