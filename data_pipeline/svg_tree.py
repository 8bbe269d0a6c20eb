"""Hostile SVG bytes → a tree of allowed elements and attributes, and back to text. Knows no geometry.

No reference in the tree leaves the document, and no byte of its metadata or title is left.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lxml import etree

from data_pipeline.svg_css import Rule, StyleError, declarations, matching, parse_rules
from data_pipeline.svg_names import ATTRIBUTE_ORDER, ELEMENTS, PRESENTATION, STYLE_ONLY, TEXTS

SVG = "http://www.w3.org/2000/svg"
XLINK_HREF = "{http://www.w3.org/1999/xlink}href"
XML_SPACE = "{http://www.w3.org/XML/1998/namespace}space"

_READ = {*ATTRIBUTE_ORDER, "class", XLINK_HREF, XML_SPACE}
_NO_REFERENCE_IN = frozenset(("d", "points"))  # long, and rewritten by their own grammar

_LOCAL_URL = re.compile(r"""url\(\s*(['"]?)#([^'")\s]+)\1\s*\)\s*([\w#.,% ]*(?:\([\w.,% ]*\))?)""", re.IGNORECASE)
_LEAVES = re.compile(r"[\\:]|(?:url|src|image|image-set)\s*\(", re.IGNORECASE)


class SVGRefused(ValueError):
    """This drawing does not enter the corpus: `reason` is a short stable name, `detail` a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(slots=True)
class Node:
    """One element. `scale` is what its transforms make of one unit of its coordinates."""

    tag: str
    attributes: dict[str, str]
    children: list["Node | str"] = field(default_factory=list)
    scale: float = 1.0

    def elements(self) -> list["Node"]:
        return [child for child in self.children if isinstance(child, Node)]

    def walk(self) -> Iterator["Node"]:
        yield self
        for child in self.elements():
            yield from child.walk()


def _parser(encoding: str | None) -> etree.XMLParser:
    return etree.XMLParser(
        encoding=encoding,
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )


_PARSERS = {bytes: _parser(None), str: _parser("utf-8")}  # text was decoded already: its declaration is void


def parse(svg: str | bytes, *, max_bytes: int) -> Node:
    """The tree of what is allowed, CSS turned into attributes; its root is `svg`. Raises SVGRefused."""
    data = svg.encode("utf-8", "surrogatepass") if isinstance(svg, str) else svg
    if len(data) > max_bytes:
        raise SVGRefused("too_large", f"{len(data):,} bytes, more than {max_bytes:,}")
    try:
        root = etree.fromstring(data.lstrip(), _PARSERS[type(svg)])
    except etree.XMLSyntaxError as error:
        raise SVGRefused("not_xml", str(error)) from None
    dtd: Any = root.getroottree().docinfo.internalDTD  # the stubs know no DTD.entities
    if dtd is not None and dtd.entities():
        raise SVGRefused("entities", "the document declares entities")
    if root.tag not in ("svg", f"{{{SVG}}}svg"):
        raise SVGRefused("not_svg", f"the root element is {str(root.tag)[:80]!r}")
    node = _convert(root, _rules(root), inside="")
    assert node is not None
    return node


def _rules(root: etree._Element) -> list[Rule]:
    sheets = [element.text or "" for element in root.iter("style", f"{{{SVG}}}style")]
    try:
        rules = [rule for sheet in sheets for rule in parse_rules(sheet)]
    except StyleError as error:
        raise SVGRefused("unsupported_style", str(error)) from None
    return sorted(rules, key=lambda rule: rule.specificity)


def _convert(element: etree._Element, rules: list[Rule], *, inside: str) -> Node | None:
    namespace, _, tag = str(element.tag).rpartition("}")
    if namespace not in ("", f"{{{SVG}"):
        return None
    if tag == "a":  # a link groups what it shows
        tag = "tspan" if inside in TEXTS else "g"
    if tag not in ELEMENTS or element.get("requiredExtensions"):
        return None
    node = Node(tag, _attributes(element, tag, rules))
    keeps_text = tag in TEXTS
    if keeps_text and element.text:
        node.children.append(element.text)
    for child in element:
        converted = _convert(child, rules, inside=tag)
        if converted is not None:
            node.children.append(converted)
        if keeps_text and child.tail:
            node.children.append(child.tail)
    return node


def _attributes(element: etree._Element, tag: str, rules: list[Rule]) -> dict[str, str]:
    # By name, because element.items() looks each value up along all attributes: quadratic.
    raw = {str(name): str(element.get(name)) for name in element.keys() if name in _READ}  # noqa: SIM118
    raw.setdefault("href", raw.pop(XLINK_HREF, ""))
    space = raw.pop(XML_SPACE, "")
    if space == "preserve" and tag in TEXTS:
        raw["xml:space"] = space
    style = raw.pop("style", "")
    if style or rules:
        styled = matching(rules, tag, raw.get("class", ""), raw.get("id", "")) | declarations(style)
        raw.update((name, value) for name, value in styled.items() if name in PRESENTATION)
        kept = {name: _safe(styled[name]) for name in STYLE_ONLY if name in styled}
        style = ";".join(f"{name}:{value}" for name, value in kept.items() if value)
    safe = {
        name: value if name in _NO_REFERENCE_IN else _safe(value)
        for name, value in raw.items()
        if name not in ("id", "href", "style", "class")
    }
    attributes = {name: value for name, value in safe.items() if value}
    if raw.get("id"):
        attributes["id"] = raw["id"]
    if raw["href"].startswith("#") and tag != "g":
        attributes["href"] = raw["href"]
    if style:
        attributes["style"] = style
    return attributes


def _safe(value: str) -> str:
    """The value on one line, its reference as `url(#id)`; empty when it points out of the document."""
    value = " ".join(value.split())
    if not _LEAVES.search(value):
        return value
    local = _LOCAL_URL.fullmatch(value)
    if local is None or "url" in local[3].lower():
        return ""
    return f"url(#{local[2]}) {local[3]}".rstrip()


def serialise(node: Node, xmlns: str = f' xmlns="{SVG}"') -> str:
    """Text with attributes in a fixed order; `xmlns` belongs to the root alone."""
    attributes = "".join(
        f' {name}="{_escape(value)}"'
        for name, value in sorted(node.attributes.items(), key=lambda item: ATTRIBUTE_ORDER[item[0]])
    )
    if not node.children:
        return f"<{node.tag}{xmlns}{attributes}/>"
    inner = "".join(serialise(child, "") if isinstance(child, Node) else _escape(child) for child in node.children)
    return f"<{node.tag}{xmlns}{attributes}>{inner}</{node.tag}>"


def _escape(text: str) -> str:
    if "&" in text or "<" in text or ">" in text or '"' in text or "\r" in text:
        text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        text = text.replace('"', "&quot;").replace("\r", " ")
    return text
