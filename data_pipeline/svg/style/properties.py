"""CSS properties as attributes: which ones change a drawing, and how attributes hold their values.

A property outside these tables does not change a still drawing. It is about layout, animation, the
mouse or details of fonts, or browsers do not know it.
"""

import re

from tinycss2.color4 import parse_color

from data_pipeline.svg.errors import StyleError
from data_pipeline.svg.names import PRESENTATION, STYLE_ONLY
from data_pipeline.svg.numbers import NUMBER
from data_pipeline.svg.style.transforms import convert_transform

# property → elements that have it
_GEOMETRY: dict[str, frozenset[str]] = {
    **dict.fromkeys(("x", "y"), frozenset(("svg", "rect", "use"))),
    **dict.fromkeys(("width", "height"), frozenset(("svg", "rect"))),
    **dict.fromkeys(("cx", "cy"), frozenset(("circle", "ellipse"))),
    **dict.fromkeys(("rx", "ry"), frozenset(("rect", "ellipse"))),
    "r": frozenset(("circle",)),
    "d": frozenset(("path",)),
}
_SAME_AS_ATTRIBUTE = PRESENTATION | {"mask-type", "transform-origin", "transform-box"}
_LONGHANDS = {"text-decoration-line": "text-decoration", "font-variant-caps": "font-variant"}
_WHITE_SPACE = ("white-space", "white-space-collapse")
# property → values that change nothing; a drawing with another value is refused
_REFUSED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("translate", "rotate", "scale", "offset-path"), ("none",)),
    **dict.fromkeys(("mask-image", "mask-border", "text-shadow", "backdrop-filter"), ("none",)),
    **dict.fromkeys(("text-transform", "vector-effect", "background-image"), ("none",)),
    **dict.fromkeys(("overflow-x", "overflow-y"), ("visible",)),
    "mask-mode": ("match-source",),
    "clip": ("auto",),
    "zoom": ("1", "100%", "normal"),
    **dict.fromkeys(("all", "font"), ()),
}
RELEVANT = _SAME_AS_ATTRIBUTE.union(
    _GEOMETRY, STYLE_ONLY, _LONGHANDS, _WHITE_SPACE, _REFUSED, ("transform",)
)

# Values of inherited properties that `initial` stands for. `initial` removes any other attribute.
_INITIAL = {
    "fill": "#000",
    "stroke": "none",
    "color": "#000",
    **dict.fromkeys(("fill-opacity", "stroke-opacity", "stroke-width"), "1"),
    **dict.fromkeys(("fill-rule", "clip-rule"), "nonzero"),
    **dict.fromkeys(("marker-start", "marker-mid", "marker-end", "stroke-dasharray"), "none"),
    "stroke-dashoffset": "0",
    "stroke-linecap": "butt",
    "stroke-linejoin": "miter",
    "stroke-miterlimit": "4",
    **dict.fromkeys(("paint-order", "letter-spacing", "word-spacing"), "normal"),
    **dict.fromkeys(("font-style", "font-variant", "font-weight", "font-stretch"), "normal"),
    "font-size": "medium",
    "visibility": "visible",
    "shape-rendering": "auto",
    "text-anchor": "start",
    "direction": "ltr",
    "writing-mode": "horizontal-tb",
    "color-interpolation": "sRGB",
    "color-interpolation-filters": "linearRGB",
}
_RESETS = frozenset(("initial", "unset", "revert", "revert-layer"))
WIDE_KEYWORDS = _RESETS | {"inherit"}

# Functions of SVG 1.1, and of CSS filters and shapes. Attributes of SVG cannot hold others, such
# as `calc()` and `color()`.
_FUNCTIONS = """
    rgb rgba hsl hsla icc-color url var blur brightness contrast drop-shadow grayscale hue-rotate
    invert opacity saturate sepia circle ellipse inset polygon path
"""
FUNCTIONS = frozenset(_FUNCTIONS.split())
_PRESERVING = frozenset(("pre", "pre-wrap", "break-spaces", "preserve", "preserve-spaces"))
_QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'")
_FUNCTION_NAME = re.compile(r"([\w-]+)\(")
_RELATIVE_COLOUR = re.compile(r"\b((?:rgb|hsl)a?)\(\s*from\s", re.IGNORECASE)

_LENGTH = re.compile(rf"[-+]?0+(?:\.0*)?|(?:{NUMBER.pattern})(?:%|[a-zA-Z]+)")
_UNKNOWN_WHOLE = re.compile(r".*(?:%|v[whib]|vmin|vmax)", re.IGNORECASE)
_PATH = re.compile(r"""path\(\s*(?:"([^"]*)"|'([^']*)')\s*\)""", re.IGNORECASE)
_KEYWORD = re.compile(r"[a-zA-Z-]+")
_MASK = re.compile(r"""(?:[a-z-]+|url\((?:[^"')]|"[^"]*"|'[^']*')*\))?""", re.IGNORECASE)
_MASK_TYPES = {"alpha": "alpha", "inherit": "inherit", "luminance": "", "": ""}
_TRANSPARENT = parse_color("transparent")
_TRANSFORM_NAMES = {
    "linearGradient": "gradientTransform",
    "radialGradient": "gradientTransform",
    "pattern": "patternTransform",
}


def list_functions(value: str) -> list[str]:
    """Return the names of the functions in a value, without texts in quotes."""
    return _FUNCTION_NAME.findall(_QUOTED.sub("", value)) if "(" in value else []


def find_unsupported_function(name: str, value: str) -> str:
    """Return the name of a function in the value that no attribute can hold, else an empty text."""
    if "(" not in value or name == "transform" or name.startswith("--"):
        return ""
    if relative := _RELATIVE_COLOUR.search(value):
        return relative[1]
    return next((found for found in list_functions(value) if found.lower() not in FUNCTIONS), "")


def put_properties(
    tag: str, attributes: dict[str, str], properties: dict[str, str], *, is_root: bool
) -> None:
    """Replace attributes of one element by its CSS properties, which take precedence.

    Raises StyleError for a property that changes the drawing if no attribute holds its value.
    """
    kept: dict[str, str] = {}
    for name, value in properties.items():
        if name in _SAME_AS_ATTRIBUTE:
            _check_functions(name, value)
            value = _replace_reset(name, value)
            if name == "mask-type":
                value = value.lower()
                if value not in _MASK_TYPES:
                    continue  # invalid: it changes nothing, as in browsers
                value = _MASK_TYPES[value]
            elif name == "mask" and not _MASK.fullmatch(value):
                raise StyleError(f"the property mask with the value {value[:60]!r}")
            attributes[name] = value  # an empty one is removed later
        elif name == "background-color":
            if is_root and _is_opaque(value):
                kept[name] = value
        elif name in STYLE_ONLY:
            if _KEYWORD.fullmatch(value):
                kept[name] = value
        else:
            _put_special(tag, attributes, name, value, is_root=is_root)
    attributes["style"] = ";".join(f"{name}:{kept[name]}" for name in STYLE_ONLY if name in kept)


def _is_opaque(value: str) -> bool:
    """Return whether a background is a colour other than `transparent`. Raises StyleError."""
    _check_functions("background-color", value)
    if "url" in list_functions(value.lower()):  # the value of a variable
        raise StyleError(f"the property background with the value {value[:60]!r}")
    colour = parse_color(value)
    return colour is not None and colour != _TRANSPARENT


def _replace_reset(name: str, value: str) -> str:
    """Return the value that `initial` or `unset` stands for; an empty one means no attribute."""
    keyword = value.lower()
    if keyword not in _RESETS:
        return value
    return _INITIAL.get(name, "") if keyword == "initial" else ""


def _check_functions(name: str, value: str) -> None:
    if function := find_unsupported_function(name, value):
        raise StyleError(f"{name} with {function}() in {value[:60]!r}")


def _put_special(
    tag: str, attributes: dict[str, str], name: str, value: str, *, is_root: bool
) -> None:
    """Put a property that not every element has, or that has another form as an attribute."""
    keyword = value.lower()
    if name in _GEOMETRY:
        if tag in _GEOMETRY[name]:
            _check_functions(name, value)
            _put_geometry(attributes, name, value, is_root=is_root)
    elif name == "transform":
        is_reset = keyword == "none" or keyword in _RESETS
        transform = "" if is_reset else convert_transform(value)
        if transform is not None:
            attributes[_TRANSFORM_NAMES.get(tag, name)] = transform
    elif name in _WHITE_SPACE:
        if keyword != "inherit":
            attributes["white-space"] = keyword
    elif name in _LONGHANDS:
        shorthand = _LONGHANDS[name]
        if keyword not in ("none", "normal") or shorthand in attributes:
            attributes[shorthand] = value
    elif (
        keyword not in _REFUSED[name]
        and (keyword not in WIDE_KEYWORDS or not _REFUSED[name])
        and (is_root or name != "background-image")
    ):
        raise StyleError(f"the property {name} with the value {value[:60]!r}")


def _put_geometry(attributes: dict[str, str], name: str, value: str, *, is_root: bool) -> None:
    """Put a position, a size or path data. An invalid value changes nothing, as in browsers."""
    keyword = value.lower()
    if name == "d":
        path = _PATH.fullmatch(value)
        if path or keyword == "none":
            attributes[name] = (path[1] or path[2] or "") if path else ""
    elif is_root and (keyword == "auto" or _UNKNOWN_WHOLE.fullmatch(keyword)):
        pass  # the page around the drawing is not known
    elif keyword == "auto" or keyword in _RESETS:
        attributes[name] = ""
    elif _LENGTH.fullmatch(value):
        attributes[name] = value


def preserves_white_space(value: str) -> bool:
    """Return whether this value of `white-space` keeps repeated spaces."""
    return not _PRESERVING.isdisjoint(value.lower().split())
