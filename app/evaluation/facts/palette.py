"""Colour names: decide which names fit a colour, by its distance from samples in OKLab."""

import math
from collections.abc import Iterable
from functools import lru_cache

import tinycss2.color4

from app.evaluation.facts.verdict import Verdict

RGB = tuple[float, float, float]  # sRGB, 0–1

# Each name has samples. The distance from a name is the distance from its nearest sample. A name
# fits a colour if its distance is at most SURE_MARGIN longer than that of the nearest name. Up to
# MAYBE_MARGIN, two people may disagree about the name.
SURE_MARGIN = 0.02
MAYBE_MARGIN = 0.045
MIN_CHROMA = 0.015  # a colour with less has no hue that a viewer sees
LIGHTNESS_WEIGHT = 0.2  # of the squared difference: hue and chroma decide more about a name

PALETTE: dict[str, str] = {
    "red": "#c0392b #ff0000 #dd2222 #c00000 #8b0000 #f44336 #e57373 #f92f60 #dc143c",
    "orange": "#ff8800 #ff6a00 #ffa500 #ffb74d #e65100 #f4900c #ff822d",
    "yellow": "#ffff00 #ffcc22 #fcea2b #ffeb3b #fff59d #e6c800 #ffd700",
    "green": (
        "#00ff00 #008000 #22aa44 #4caf50 #006400 #90ee90 #8bc34a #00854f #00a88c "
        "#9acd32 #6b8e23 #5c9e31"
    ),
    "blue": (
        "#0000ff #2244dd #000080 #1e90ff #87ceeb #4682b4 #5c9fdd #03a9f4 #add8e6 "
        "#0d47a1 #1a237e #3b5998 #34495e"
    ),
    "purple": (
        "#433b6b #321b41 #800080 #8822cc #9c27b0 #4b0082 #9370db #673ab7 #b39ddb "
        "#d8bfd8 #aa8ed6 #c800c8"
    ),
    "pink": "#f92f60 #ffc0cb #ff40e0 #ff69b4 #ff1493 #f48fb1 #f8bbd0 #ea596e #ff8ab5",
    "brown": "#7b3f1d #8b4513 #795548 #5d4037 #6d4c41 #a0522d #c1694f #a57939 #662113 #4e342e",
    "black": "#000000 #111111 #1c1c1c #2b2b2b",
    "gray": (
        "#808080 #999999 #555555 #6b6b6b #444444 #b0b0b0 #c4c4c4 #d3d3d3 #e0e0e0 "
        "#78909c #ccd6dd #34495e #99aab5 #e1e8ed #cac5c4"
    ),
    "white": "#ffffff #fafafa #f4f4f4",
    "cyan": "#00ffff #00bcd4 #40e0d0 #4dd0e1 #00acc1 #80deea",
    "teal": "#008080 #00796b #009688 #20b2aa",
    "beige": "#f5f5dc #d2b48c #ffe4c4 #f5deb3 #fadcbc #e7d0b0",
    "navy": "#000080 #0d1b4c #1a237e",
    "gold": "#ffd700 #d4af37 #daa520 #ffac33",
    "silver": "#c0c0c0 #b8bcc2 #d3d3d3",
    "maroon": "#800000 #6b0f1a #8b0000",
    "magenta": "#ff00ff #e000c0 #d81b9c #ff1493",
    "lime": "#00ff00 #bfff00 #76ff03 #aeea00",
    "olive": "#808000 #6b8e23 #556b2f",
    "lavender": "#b39ddb #c8b8f0 #d1c4e9 #d9d2f7",
}
"""Names with their samples. The first eleven are the basic names of English."""

ACHROMATIC = frozenset(("black", "gray", "white", "silver"))

SYNONYMS = {
    "grey": "gray",
    "violet": "purple",
    "indigo": "purple",
    "turquoise": "cyan",
    "aqua": "cyan",
    "golden": "gold",
    "cream": "beige",
    "tan": "beige",
    "burgundy": "maroon",
    "fuchsia": "magenta",
    "crimson": "red",
    "scarlet": "red",
    "reddish": "red",
    "greenish": "green",
    "bluish": "blue",
    "yellowish": "yellow",
}

# OKLab lightness of each modifier: before the first limit no, behind the second yes
LIGHTNESS = {"light": (0.58, 0.7), "pale": (0.65, 0.75), "bright": (0.45, 0.55)}
DARKNESS = {"dark": (0.6, 0.5), "deep": (0.6, 0.5)}


@lru_cache(maxsize=4096)
def parse_colour(text: str) -> tuple[float, float, float, float] | None:
    """Return red, green, blue and opacity in 0–1, or None if the text is not a CSS colour.

    `currentColor` is black, as in a drawing that stands alone.
    """
    colour = tinycss2.color4.parse_color(text)
    if colour is None:
        return None
    if colour == "currentcolor":
        return 0.0, 0.0, 0.0, 1.0

    red, green, blue = (min(1.0, max(0.0, share)) for share in colour.to("srgb").coordinates)
    return red, green, blue, float(colour.alpha)


@lru_cache(maxsize=65536)
def convert_to_oklab(rgb: RGB) -> tuple[float, float, float]:
    """Return lightness, green–red and blue–yellow (Ottosson 2020)."""
    red, green, blue = (
        share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in rgb
    )
    long = (0.4122214708 * red + 0.5363325363 * green + 0.0514459929 * blue) ** (1 / 3)
    medium = (0.2119034982 * red + 0.6806995451 * green + 0.1073969566 * blue) ** (1 / 3)
    short = (0.0883024619 * red + 0.2817188376 * green + 0.6299787005 * blue) ** (1 / 3)
    return (
        0.2104542553 * long + 0.7936177850 * medium - 0.0040720468 * short,
        1.9779984951 * long - 2.4285922050 * medium + 0.4505937099 * short,
        0.0259040371 * long + 0.7827717662 * medium - 0.8086757660 * short,
    )


@lru_cache(maxsize=65536)
def name_colour(rgb: RGB) -> dict[str, Verdict]:
    """Return the names that fit the colour (`right`) and those that may fit (`cannot_tell`).

    >>> name_colour((0.0, 0.0, 1.0))
    {'blue': 'right'}
    """
    point = convert_to_oklab(rgb)
    distances = {
        name: min(_distance(point, sample) for sample in samples)
        for name, samples in _load_samples().items()
    }
    nearest = min(distances.values())

    names: dict[str, Verdict] = {}
    for name, distance in distances.items():
        if is_achromatic(rgb) and name not in ACHROMATIC:
            continue
        if distance <= nearest + SURE_MARGIN:
            names[name] = "right"
        elif distance <= nearest + MAYBE_MARGIN:
            names[name] = "cannot_tell"
    return names


def judge_colour(rgb: RGB, name: str, modifier: str = "") -> Verdict:
    """Return whether a caption may call the colour `name`, or `light name` with a modifier."""
    verdict = name_colour(rgb).get(SYNONYMS.get(name, name), "wrong")
    lightness = convert_to_oklab(rgb)[0]
    if modifier in LIGHTNESS:
        low, high = LIGHTNESS[modifier]
    elif modifier in DARKNESS:
        low, high = (1 - limit for limit in DARKNESS[modifier])
        lightness = 1 - lightness
    else:
        return verdict

    if lightness >= high:
        return verdict
    return "cannot_tell" if lightness > low and verdict != "wrong" else "wrong"


def is_achromatic(rgb: RGB) -> bool:
    """Return whether the colour is black, gray or white."""
    _, green_red, blue_yellow = convert_to_oklab(rgb)
    return math.hypot(green_red, blue_yellow) < MIN_CHROMA


def mix(colours: Iterable[RGB]) -> RGB:
    """Return the mean of the colours."""
    red, green, blue = zip(*colours, strict=True)
    return sum(red) / len(red), sum(green) / len(green), sum(blue) / len(blue)


def encode_colour(colour: RGB) -> int:
    """Return the colour as 0xRRGGBB."""
    red, green, blue = (round(255 * share) for share in colour)
    return red << 16 | green << 8 | blue


def decode_colour(code: int) -> RGB:
    """Return red, green and blue of 0xRRGGBB in 0–1."""
    return (code >> 16) / 255, (code >> 8 & 255) / 255, (code & 255) / 255


def _distance(one: RGB, other: RGB) -> float:
    lightness, green_red, blue_yellow = (a - b for a, b in zip(one, other, strict=True))
    return math.hypot(LIGHTNESS_WEIGHT**0.5 * lightness, green_red, blue_yellow)


@lru_cache(maxsize=1)
def _load_samples() -> dict[str, list[tuple[float, float, float]]]:
    samples = {}
    for name, texts in PALETTE.items():
        colours = [parse_colour(text) for text in texts.split()]
        samples[name] = [convert_to_oklab(colour[:3]) for colour in colours if colour]
    return samples
