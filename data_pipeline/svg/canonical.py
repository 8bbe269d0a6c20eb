"""One SVG string → one safe, canonical SVG string, or a named refusal. Knows no files and no captions."""

import math
from dataclasses import replace
from functools import lru_cache

from data_pipeline.svg.lengths import GRID, Space, parse_length
from data_pipeline.svg.names import SHAPES
from data_pipeline.svg.numbers import PathError, format_number, parse_numbers
from data_pipeline.svg.prune import Drawing, prune
from data_pipeline.svg.read import SVGRefused
from data_pipeline.svg.scale import is_scalable, scale_tree
from data_pipeline.svg.tree import Node, parse, serialise

__all__ = ["GRID", "SVGRefused", "canonicalise"]

MIN_SIDE = 1e-3  # of the viewBox: below it a scaled number leaves the range of exact floats
# Rounding shows when it moves the outlines of a stroked drawing by more than 0.45% of the page (2.3 of the 255 grey
# levels in the mean). Then it is written with a decimal more, if that costs few tokens; where it moves more than
# 4.5% of the page, whatever it costs a drawing that is not enormous.
MAX_MOVED = GRID * GRID / 225
MAX_MOVED_BY_FAR = GRID * GRID / 22
MAX_REFINED = 1_500  # characters
MAX_DENSE = 500_000
MAX_REMEMBERED = (
    96  # characters of what says what is shown: a hostile corpus must not fill the memory
)
MAX_STRETCH = 0.002  # between the picture's aspect and the viewBox's: below it nobody meant it
_OF_THE_PAGE = ("x", "y", "width", "height", "viewBox", "preserveAspectRatio", "transform", "href")


def canonicalise(svg: str | bytes, *, max_bytes: int = 4_000_000) -> str:
    """The same drawing as a safe standalone SVG on a grid whose longer side is 256 units.

    Nothing in the result runs, refers outside of it, or tells what is drawn except the drawing: no script,
    handler, animation, bitmap, metadata, title, comment or original id. Paths are relative integers. The
    result is a fixed point: canonicalise(canonicalise(x)) == canonicalise(x).

    >>> canonicalise('<svg viewBox="0 0 24 24" onload="x()"><title>box</title><path d="M1.5,3H12V6z"/></svg>')
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 256 256"><path d="m16 32h112v32z"/></svg>'

    Raises SVGRefused with one of the reasons too_large, bad_gzip, bad_encoding, entities, not_xml, not_svg,
    too_many_elements, too_many_attributes, too_deep, unsupported_style, empty, no_viewbox, bad_path, bad_transform,
    bad_number.
    """
    try:
        drawing, space, view_box = _read(svg, max_bytes)
        given = [node.attributes.copy() for node in drawing.nodes]
        text, shows = _write(drawing, space, view_box, max_bytes)
        if not shows:
            return text
        for node, attributes in zip(drawing.nodes, given, strict=True):
            node.attributes = attributes
        fine, _ = _write(drawing, space, view_box, max_bytes, more_decimals=1)
        # Decided on what is written, or a second pass could decide otherwise.
        text, shows = _write(
            drawing, replace(space, scale=1.0, origin=(0.0, 0.0)), view_box, max_bytes
        )
    except PathError as error:
        raise SVGRefused("bad_number", str(error)) from None
    return fine if shows else text


def _read(svg: str | bytes, max_bytes: int) -> tuple[Drawing, Space, str]:
    """What is drawn, in which space, and the viewBox that will show it."""
    drawing = prune(parse(svg, max_bytes=max_bytes))
    if SHAPES.isdisjoint(drawing.tags):
        raise SVGRefused("empty", "nothing is drawn")
    attributes = drawing.nodes[0].attributes
    values = [
        attributes.get(name, "") for name in ("viewBox", "width", "height", "preserveAspectRatio")
    ]
    space, view_box = (_page_short if sum(map(len, values)) < MAX_REMEMBERED else _page)(*values)
    for name in _OF_THE_PAGE:
        attributes.pop(name, None)
    if (space.scale, space.origin) != (1.0, (0.0, 0.0)) and not is_scalable(drawing, space.origin):
        drawing, space = _wrap(drawing, space)
    return drawing, space, view_box


def _write(
    drawing: Drawing, space: Space, view_box: str, max_bytes: int, *, more_decimals: int = 0
) -> tuple[str, bool]:
    """The canonical text in one precision, and whether that precision shows."""
    attributes = drawing.nodes[0].attributes
    attributes.pop("viewBox", None)
    moved = scale_tree(drawing, space, more_decimals=more_decimals)
    attributes["viewBox"] = view_box
    text = serialise(drawing.nodes[0])
    if len(text) > max_bytes:
        raise SVGRefused(
            "too_large", f"{len(text):,} characters when canonical, more than {max_bytes:,}"
        )
    shows = moved > MAX_MOVED and len(text) <= MAX_REFINED
    return text, shows or (moved > MAX_MOVED_BY_FAR and len(text) <= MAX_DENSE)


def _page(view_box: str, width: str, height: str, preserve: str) -> tuple[Space, str]:
    """What of the user space is shown, and the viewBox that shows it on the grid."""
    box = parse_numbers(view_box)
    is_box = len(box) == 4 and box[2] > 0 and box[3] > 0
    whole = box[2:] if is_box else (math.nan, math.nan)
    size = [parse_length(text, side) for text, side in zip((width, height), whole, strict=True)]
    if not is_box:
        box = [0.0, 0.0, *(side or math.nan for side in size)]
    elif size[0] and size[1] and min(size[0], size[1]) > 0:
        box = _viewport(box, size[0] / size[1], preserve)
    x, y, shown_x, shown_y = box
    if not (shown_x > 0 and shown_y > 0 and max(shown_x, shown_y) >= MIN_SIDE):
        raise SVGRefused("no_viewbox", "neither viewBox nor width and height say what is shown")
    scale = GRID / max(shown_x, shown_y)
    sides = [format_number(max(1, side * scale), 1) for side in (shown_x, shown_y)]
    return Space(scale, (x, y), shown_x, shown_y), f"0 0 {sides[0]} {sides[1]}"


_page_short = lru_cache(maxsize=4096)(_page)


def _viewport(box: list[float], aspect: float, preserve: str) -> list[float]:
    """The viewBox grown (`meet`) or cut (`slice`) to the aspect of the picture; `none` would need two scales."""
    x, y, width, height = box
    if "none" in preserve or abs(aspect * height / width - 1) < MAX_STRETCH:
        return box
    wider = aspect > width / height
    grown_width, grown_height = (
        (height * aspect, height) if wider != ("slice" in preserve) else (width, width / aspect)
    )
    share_x = 0.0 if "xMin" in preserve else 1.0 if "xMax" in preserve else 0.5
    share_y = 0.0 if "YMin" in preserve else 1.0 if "YMax" in preserve else 0.5
    return [
        x - (grown_width - width) * share_x,
        y - (grown_height - height) * share_y,
        grown_width,
        grown_height,
    ]


def _wrap(drawing: Drawing, space: Space) -> tuple[Drawing, Space]:
    """Text, filters, patterns and their like keep their numbers, and a group brings them to the grid."""
    root, *below = drawing.nodes
    x, y = space.origin
    shift = f" translate({-x} {-y})" if x or y else ""
    group = Node("g", {"transform": f"scale({space.scale}){shift}"}, root.children)
    root.children = [group]
    wrapped = Drawing([root, group, *below], drawing.tags | {"g"}, drawing.names | {"transform"})
    return wrapped, Space(1.0, (0.0, 0.0), space.width, space.height)
