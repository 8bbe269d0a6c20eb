"""CSS shorthands: one declaration that stands for several properties."""

import re

import tinycss2
from tinycss2.color4 import parse_color

from data_pipeline.svg.style.properties import RELEVANT, WIDE_KEYWORDS

_MARKERS = ("marker-start", "marker-mid", "marker-end")
_FONT_KEYWORDS = {
    "font-style": ("italic", "oblique"),
    "font-variant": ("small-caps",),
    "font-weight": ("bold", "bolder", "lighter", *[f"{n}00" for n in range(1, 10)]),
    "font-stretch": tuple(
        f"{degree}{kind}"
        for kind in ("condensed", "expanded")
        for degree in ("ultra-", "extra-", "semi-", "")
    ),
}
_FONT_SIZE = re.compile(
    r"[\d.]+(?:[a-z]+|%)|(?:xx-|x-)?(?:small|large)|medium|smaller|larger", re.IGNORECASE
)
_IMAGE = re.compile(r"gradient$|image|^(?:url|src|element|cross-fade|paint)$")
_SLASH = re.compile(r"\s*/\s*")


def expand_shorthand(name: str, value: str) -> list[tuple[str, str]]:
    """Return the properties that a declaration stands for, with their values.

    `-webkit-transform` stands for `transform`, and so on.
    """
    if name == "marker":
        return [(longhand, value) for longhand in _MARKERS]
    if name == "font":
        return _expand_font(value)
    if name == "background":
        return _expand_background(value)
    if name == "offset" and "(" in value:
        return [("offset-path", value)]
    if name[:8] == "-webkit-" and name[8:] in RELEVANT:
        return [(name[8:], value)]
    return [(name, value)]


def _expand_font(value: str) -> list[tuple[str, str]]:
    """Return the six properties of `italic bold 12px/1.5 "Open Sans"`, without the line height."""
    if value.lower() in WIDE_KEYWORDS:
        return [(name, value) for name in (*_FONT_KEYWORDS, "font-size", "font-family")]
    if "(" in value:
        return [("font", value)]  # refused where an element has it

    found = dict.fromkeys(_FONT_KEYWORDS, "normal")
    words = _SLASH.sub("/", value).split()
    for position, word in enumerate(words):
        size = word.partition("/")[0]
        family = " ".join(words[position + 1 :])
        if _FONT_SIZE.fullmatch(size) and family:
            return [*found.items(), ("font-size", size), ("font-family", family)]

        names = [name for name, keywords in _FONT_KEYWORDS.items() if word.lower() in keywords]
        if names:
            found[names[0]] = word.lower()
        elif word.lower() != "normal":
            break
    return []  # invalid: browsers ignore it


def _expand_background(value: str) -> list[tuple[str, str]]:
    """Return the colour of a background, or the whole value as an image.

    A function that is no image is a colour, perhaps an invalid one or one of a newer CSS.
    """
    colour = "transparent"
    for token in tinycss2.parse_component_value_list(value, skip_comments=True):
        is_function = token.type == "function"
        if token.type == "url" or (is_function and _IMAGE.search(token.lower_name)):
            return [("background-image", value)]
        if is_function or parse_color(token):
            colour = tinycss2.serialize([token])
    return [("background-color", colour)]
