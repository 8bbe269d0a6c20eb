"""Drawings for the tests of canonical SVG."""

import re

import pytest
from lxml import etree

from data_pipeline.svg import SVGRefused, canonicalise

HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    ' viewBox="0 0 256 256">'
)
GRID24 = HEAD.replace("256 256", "24 24")
LINE = '<path d="M0 0h9"/>'


def inner(body: str, head: str = HEAD) -> str:
    """Return the canonical drawing between the root's tags.

    Asserts that the canonical text is a fixed point and well-formed XML.
    """
    result = canonicalise(f"{head}{body}</svg>")
    assert canonicalise(result) == result
    assert etree.fromstring(result).tag == "{http://www.w3.org/2000/svg}svg"
    return re.fullmatch(r"<svg[^>]*>(.*)</svg>", result, re.DOTALL)[1]  # type: ignore[index]


def doctype(entities: str, body: str) -> str:
    """Return a drawing with an internal document type."""
    return f"<!DOCTYPE svg [{entities}]>{HEAD}{body}{LINE}</svg>"


def refusal_reason(svg: str | bytes) -> str:
    """Return the reason for which the drawing is refused; fail if it is not."""
    with pytest.raises(SVGRefused) as refusal:
        canonicalise(svg)
    assert refusal.value.detail
    return refusal.value.reason


def fills(body: str) -> list[str]:
    """Return the fill of each path of the canonical drawing, in order."""
    return [
        re.sub(r'.*fill="([^"]*)".*|.*', r"\1", path) for path in inner(body).split("<path")[1:]
    ]
