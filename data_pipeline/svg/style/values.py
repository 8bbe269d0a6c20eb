"""Validity of CSS values: browsers ignore a declaration whose value is invalid.

An earlier declaration, or the attribute, then counts. Only properties whose grammar is short are
judged. A value with a function that attributes cannot hold is valid here: `css` prefers an earlier
value to it, and `properties` refuses it.
"""

import re

from tinycss2.color4 import parse_color

from data_pipeline.svg.numbers import NUMBER
from data_pipeline.svg.style.properties import (
    WIDE_KEYWORDS,
    find_unsupported_function,
    list_functions,
)

_PAINTS = frozenset(("fill", "stroke"))
_COLOURS = frozenset(("color", "stop-color", "flood-color", "lighting-color", "background-color"))
_COLOUR_FUNCTIONS = frozenset(("rgb", "rgba", "hsl", "hsla"))
_PAINT_KEYWORDS = frozenset(("none", "context-fill", "context-stroke"))
_COLOUR_WORDS = """
    currentcolor accentcolor accentcolortext activetext buttonborder buttonface buttontext canvas
    canvastext field fieldtext graytext highlight highlighttext linktext mark marktext selecteditem
    selecteditemtext visitedtext activeborder activecaption appworkspace background buttonhighlight
    buttonshadow captiontext inactiveborder inactivecaption inactivecaptiontext infobackground
    infotext menu menutext scrollbar threeddarkshadow threedface threedhighlight threedlightshadow
    threedshadow window windowframe windowtext
"""
_COLOUR_KEYWORDS = frozenset(_COLOUR_WORDS.split())
_DISPLAYS = """
    none contents block inline inline-block flex inline-flex grid inline-grid flow flow-root table
    inline-table list-item run-in ruby math table-row-group table-header-group table-footer-group
    table-row table-cell table-column-group table-column table-caption ruby-base ruby-text
    ruby-base-container ruby-text-container -webkit-box -webkit-inline-box -webkit-flex
    -webkit-inline-flex
"""

_SIGNED = f"(?:{NUMBER.pattern})"
_POSITIVE = rf"(?!-){_SIGNED}"
_UNIT = (
    r"(?:%|px|cm|mm|q|in|pt|pc|r?(?:em|ex|ch|cap|ic|lh)|[sld]?v(?:w|h|i|b|min|max)"
    r"|cq(?:w|h|i|b|min|max))?"
)
_OPACITY = f"{_SIGNED}%?"
# numbers and percentages together, which tinycss2 does not accept
_MIXED_COLOUR = re.compile(
    rf"rgba?\(\s*{_OPACITY}(?:\s+{_OPACITY}){{2}}(?:\s*/\s*{_OPACITY})?\s*\)"
)
_RULE = "nonzero|evenodd"
_LIST = rf"none|{_POSITIVE}{_UNIT}(?:(?:\s*+,\s*+|\s++){_POSITIVE}{_UNIT})*"
_GRAMMARS = {
    name: re.compile(grammar)
    for name, grammar in {
        **dict.fromkeys(("opacity", "fill-opacity", "stroke-opacity"), _OPACITY),
        **dict.fromkeys(("stop-opacity", "flood-opacity"), _OPACITY),
        **dict.fromkeys(("fill-rule", "clip-rule"), _RULE),
        "stroke-width": _POSITIVE + _UNIT,
        "stroke-dasharray": _LIST,
        "stroke-dashoffset": _SIGNED + _UNIT,
        "stroke-miterlimit": _SIGNED,
        "stroke-linecap": "butt|round|square",
        "stroke-linejoin": "miter|miter-clip|round|bevel|arcs",
        "visibility": "visible|hidden|collapse",
        "text-anchor": "start|middle|end",
        "display": rf"(?:(?:{'|'.join(_DISPLAYS.split())})(?:\s+|$))+",
    }.items()
}


def is_valid(name: str, value: str) -> bool:
    """Return whether browsers accept the value of a property, or True if this is not known.

    >>> is_valid("stroke-width", "2px"), is_valid("stroke-width", "2 px"), is_valid("fill", "rde")
    (True, False, False)
    """
    keyword = value.lower()
    if keyword in WIDE_KEYWORDS:
        return True
    functions = {function.lower() for function in list_functions(value)}
    if "var" in functions or find_unsupported_function(name, value):
        return True
    if name in _PAINTS or name in _COLOURS:
        return _is_paint(name, value, functions)
    grammar = _GRAMMARS.get(name)
    return grammar is None or grammar.fullmatch(keyword) is not None


def _is_paint(name: str, value: str, functions: set[str]) -> bool:
    """Return whether the value is a colour or, for `fill` and `stroke`, a paint."""
    if not functions <= _COLOUR_FUNCTIONS:
        others = functions - _COLOUR_FUNCTIONS
        return others <= ({"url", "icc-color"} if name in _PAINTS else {"icc-color"})
    keyword = value.lower()
    is_keyword = keyword in _COLOUR_KEYWORDS or (name in _PAINTS and keyword in _PAINT_KEYWORDS)
    return (
        is_keyword or parse_color(value) is not None or _MIXED_COLOUR.fullmatch(keyword) is not None
    )
