"""One SVG string → one safe, canonical SVG string, or a named refusal. Knows no files and no captions."""

import math

from data_pipeline.svg_names import SHAPES
from data_pipeline.svg_path import PathError, parse_numbers
from data_pipeline.svg_prune import prune
from data_pipeline.svg_scale import GRID, Space, is_scalable, parse_length, scale_tree
from data_pipeline.svg_tree import Node, SVGRefused, parse, serialise

__all__ = ["GRID", "SVGRefused", "canonicalise"]

MIN_SIDE = 1e-3  # of the viewBox: below it a scaled number leaves the range of exact floats
_OF_THE_PAGE = ("x", "y", "width", "height", "viewBox", "preserveAspectRatio", "transform", "href")


def canonicalise(svg: str | bytes, *, max_bytes: int = 1_000_000) -> str:
    """The same drawing as a safe standalone SVG on a grid whose longer side is 256 units.

    Nothing in the result runs, refers outside of it, or tells what is drawn except the drawing: no script,
    handler, animation, bitmap, metadata, title, comment or original id. Paths are relative integers. The
    result is a fixed point: canonicalise(canonicalise(x)) == canonicalise(x).

    >>> canonicalise('<svg viewBox="0 0 24 24" onload="x()"><title>box</title><path d="M1.5,3H12V6z"/></svg>')
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 256 256"><path d="m16 32h112v32z"/></svg>'

    Raises SVGRefused with one of the reasons too_large, not_xml, entities, not_svg, unsupported_style, empty,
    no_viewbox, bad_path, bad_transform, bad_number.
    """
    try:
        root = parse(svg, max_bytes=max_bytes)
        prune(root)
        if not any(node.tag in SHAPES for node in root.walk()):
            raise SVGRefused("empty", "nothing is drawn")
        space, view_box = _page(root)
        for name in _OF_THE_PAGE:
            root.attributes.pop(name, None)
        if (space.scale, space.origin) != (1.0, (0.0, 0.0)) and not is_scalable(root, space.origin):
            space = _wrap(root, space)
        scale_tree(root, space)
    except PathError as error:
        raise SVGRefused("bad_number", str(error)) from None
    root.attributes["viewBox"] = view_box
    return serialise(root)


def _page(root: Node) -> tuple[Space, str]:
    """What of the user space is shown, and the viewBox that shows it on the grid."""
    box = parse_numbers(root.attributes.get("viewBox", ""))
    if len(box) != 4:
        sides = [parse_length(root.attributes.get(name, ""), math.nan) for name in ("width", "height")]
        box = [0.0, 0.0, *(side or math.nan for side in sides)]
    x, y, width, height = box
    if not (width > 0 and height > 0 and max(width, height) >= MIN_SIDE):
        raise SVGRefused("no_viewbox", "neither viewBox nor width and height say what is shown")
    scale = GRID / max(width, height)
    sides = [max(1, round(width * scale)), max(1, round(height * scale))]
    return Space(scale, (x, y), width, height), f"0 0 {sides[0]} {sides[1]}"


def _wrap(root: Node, space: Space) -> Space:
    """Text, filters, patterns and their like keep their numbers, and a group brings them to the grid."""
    x, y = space.origin
    shift = f" translate({-x} {-y})" if x or y else ""
    root.children = [Node("g", {"transform": f"scale({space.scale}){shift}"}, root.children)]
    return Space(1.0, (0.0, 0.0), space.width, space.height)
