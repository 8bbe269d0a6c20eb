"""Media queries of style sheets, evaluated for a screen of light scheme and any size."""

from typing import Any

import tinycss2

from data_pipeline.svg.errors import StyleError

Truth = bool | None  # None: the query is invalid, or it names an unknown feature

_MEDIA_TYPES = {"all": True, "screen": True}
_FEATURES = {
    "prefers-color-scheme": "light",
    "prefers-reduced-motion": "no-preference",
    "prefers-reduced-transparency": "no-preference",
    "prefers-reduced-data": "no-preference",
    "prefers-contrast": "no-preference",
    "forced-colors": "none",
    "inverted-colors": "none",
    "hover": "hover",
    "any-hover": "hover",
    "pointer": "fine",
    "any-pointer": "fine",
    "update": "fast",
    "scripting": "none",
    "grid": "0",
    "monochrome": "0",
    "color-gamut": "srgb",
    "dynamic-range": "standard",
    "display-mode": "browser",
}
_SPACES = ("whitespace", "comment")
_FALSE_VALUES = ("none", "no-preference", "0")
_SIZES = frozenset(("width", "height", "aspect-ratio", "orientation", "resolution"))


def matches_screen(tokens: list[Any]) -> bool:
    """Return whether the media query list applies to a screen of light scheme.

    An empty list applies. Raises StyleError for a query about the size of the window.
    """
    queries = split_at_commas(tokens)
    words = [[token for token in query if token.type not in _SPACES] for query in queries]
    return words == [[]] or any(map(_evaluate, words))


def split_at_commas(tokens: list[Any]) -> list[list[Any]]:
    """Return the parts of a list; without a comma, its only part."""
    parts: list[list[Any]] = [[]]
    for token in tokens:
        if token == ",":
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def _evaluate(words: list[Any]) -> Truth:
    """Evaluate terms that are joined by `and` or by `or`, perhaps behind `not` or `only`."""
    prefix = _get_keyword(words)
    if prefix in ("not", "only"):
        words = words[1:]
    joints = {_get_keyword([word]) for word in words[1::2]}
    if len(words) % 2 == 0 or len(joints) > 1 or not joints <= {"and", "or"}:
        return None

    decisive = joints == {"or"}  # one such term decides alone
    values = [_evaluate_term(word) for word in words[::2]]
    if decisive in values:
        return decisive != (prefix == "not")
    return None if None in values else decisive == (prefix == "not")


def _get_keyword(words: list[Any]) -> str:
    return str(words[0].lower_value) if words and words[0].type == "ident" else ""


def _evaluate_term(word: Any) -> Truth:
    if word.type == "ident":
        return _MEDIA_TYPES.get(word.lower_value, False)
    if word.type != "() block":
        return None

    content = [token for token in word.content if token.type not in _SPACES]
    if any(token.type == "() block" for token in content):
        return _evaluate(content)
    return _evaluate_feature(content)


def _evaluate_feature(words: list[Any]) -> Truth:
    """Evaluate `name` or `name: value`, or refuse a comparison of sizes."""
    names = [word.lower_value for word in words if word.type == "ident"]
    for name in names:
        if name.removeprefix("min-").removeprefix("max-").removeprefix("device-") in _SIZES:
            text = tinycss2.serialize(words)
            raise StyleError(f"@media ({text[:60]}): the size of the window is not known")

    actual = _FEATURES.get(names[0]) if names else None
    if actual is None:
        return None
    if len(words) == 1:
        return actual not in _FALSE_VALUES
    if len(words) != 3 or words[1] != ":":
        return None
    return bool(tinycss2.serialize(words[2:]).lower() == actual)
