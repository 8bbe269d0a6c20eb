"""References between elements: ids in one encoding, and values without external addresses."""

import re
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote

import tinycss2

from data_pipeline.svg.errors import StyleError
from data_pipeline.svg.style.variables import substitute_variables
from data_pipeline.svg.tree import MAX_CACHED_VALUE

URL = re.compile(r"url\(#([^()]*)\)")  # in a value of the tree
_PLAIN_ID = re.compile(r"[\w.-]+", re.ASCII)
_PLAIN_URL = re.compile(
    r"""url\(\s*(['"]?)#([\w.-]+)\1\s*\)\s*([\w#.,% ]*(?:\([\w.,% ]*\))?)""",
    re.IGNORECASE | re.ASCII,
)
_UNSAFE = re.compile(r"[\\:]|(?:url|src|image|image-set|var)\s*\(", re.IGNORECASE)
_COLOUR = re.compile(r"[a-z]+|#[0-9a-f]+|(?:rgb|hsl)a?\([^()]*\)", re.IGNORECASE)


def encode_id(name: str) -> str:
    """Return the id, or the fragment of an address, in the encoding of the tree: `a b` as `a%20b`.

    Encoded ids have no quotes, spaces or brackets. An address may be encoded or not.
    """
    return name if _PLAIN_ID.fullmatch(name) else quote(unquote(name), safe="")


def sanitise_value(value: str) -> tuple[str, tuple[str, ...]]:
    """Return the value on one line, with its references as `url(#id)`, and these encoded ids.

    The value is empty if it refers outside the document. A fallback colour takes its place.
    """
    return _sanitise_cached(value) if len(value) < MAX_CACHED_VALUE else _sanitise(value)


def _sanitise(value: str) -> tuple[str, tuple[str, ...]]:
    value = " ".join(value.split())
    if value.lower() == "currentcolor":
        return "currentColor", ()  # some renderers know no other spelling
    if not _UNSAFE.search(value):
        return value, ()

    plain = _PLAIN_URL.fullmatch(value)
    if plain and "url" not in plain[3].lower():
        return f"url(#{plain[2]}) {plain[3]}".rstrip(), (plain[2],)
    try:
        # No element declares variables here: those of style sheets have been replaced before.
        value = substitute_variables(value, {}) or ""
    except StyleError:
        return "", ()
    return _sanitise_tokens(tinycss2.parse_component_value_list(value, skip_comments=True))


def _sanitise_tokens(tokens: list[Any]) -> tuple[str, tuple[str, ...]]:
    parts: list[str] = []
    ids: list[str] = []
    is_external = False
    for token in tokens:
        address = _get_address(token)
        if address is None:
            parts.append(tinycss2.serialize([token]))
        elif address[:1] == "#":
            ids.append(encode_id(address[1:]))
            parts.append(f" url(#{ids[-1]}) ")
        else:
            is_external = True

    value = " ".join("".join(parts).split())
    if _UNSAFE.search(URL.sub("", value)) or (is_external and not _COLOUR.fullmatch(value)):
        return "", ()
    return value, tuple(ids)


def _get_address(token: Any) -> str | None:
    """Return the address of `url(…)` in any spelling, or None for another token."""
    if token.type == "url":
        return str(token.value).strip()
    if token.type != "function" or token.lower_name != "url":
        return None
    strings = [part.value for part in token.arguments if part.type == "string"]
    return str(strings[0]).strip() if strings else ""


_sanitise_cached = lru_cache(maxsize=4096)(_sanitise)
