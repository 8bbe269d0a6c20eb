"""Validity of CSS values: browsers ignore a declaration whose value is invalid.

An earlier declaration, or the attribute, then counts. Only values without functions are judged,
and only those of properties whose grammar is short.
"""

import re

from tinycss2.color4 import parse_color

from data_pipeline.svg.numbers import NUMBER
from data_pipeline.svg.style.properties import WIDE_KEYWORDS

_PAINTS = frozenset(("fill", "stroke"))
_COLOURS = frozenset(("color", "stop-color", "flood-color", "lighting-color"))
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
    if "(" in value or keyword in WIDE_KEYWORDS:
        return True
    if name in _PAINTS or name in _COLOURS:
        is_keyword = keyword in _COLOUR_KEYWORDS or (name in _PAINTS and keyword in _PAINT_KEYWORDS)
        return is_keyword or parse_color(value) is not None
    grammar = _GRAMMARS.get(name)
    return grammar is None or grammar.fullmatch(keyword) is not None
