"""An XML tree of a drawing → a tree of allowed elements and attributes, and back to text. Knows no geometry.

No reference in the tree leaves the document, and no byte of its metadata or title is left.
"""

import re
from dataclasses import dataclass, field
from functools import lru_cache

from lxml import etree

from data_pipeline.svg_css import Compound, Rule, StyleError, compound_of, declarations, matching, parse_rules
from data_pipeline.svg_names import ATTRIBUTE_ORDER, ELEMENTS, PRESENTATION, STYLE_ONLY, TEXTS
from data_pipeline.svg_read import SVGRefused, read_xml

SVG = "http://www.w3.org/2000/svg"
XLINK_HREF = "{http://www.w3.org/1999/xlink}href"
XML_SPACE = "{http://www.w3.org/XML/1998/namespace}space"

MAX_ELEMENTS = 50_000
MAX_ATTRIBUTES = 256  # of one element: lxml looks each one up along all
MAX_DEPTH = 200  # the tree is walked by recursion

_TAGS = {prefix + tag: tag for tag in {*ELEMENTS, "a"} for prefix in ("", f"{{{SVG}}}")}
_READ = {*ATTRIBUTE_ORDER, "class", "requiredExtensions", XLINK_HREF, XML_SPACE}
_NO_REFERENCE_IN = frozenset(("d", "points"))  # long, and rewritten by their own grammar

_LOCAL_URL = re.compile(r"""url\(\s*(['"]?)#([^'")\s]+)\1\s*\)\s*([\w#.,% ]*(?:\([\w.,% ]*\))?)""", re.IGNORECASE)
_SPECIAL = re.compile(r'[&<>"\r]')
_LEAVES = re.compile(r"[\\:]|(?:url|src|image|image-set)\s*\(", re.IGNORECASE)


@dataclass(slots=True)
class Node:
    """One element, `text` before its first child and `tail` behind its end. `references` are the ids in its
    attributes; `scale` is what its transforms make of one unit of its coordinates."""

    tag: str
    attributes: dict[str, str]
    children: list["Node"] = field(default_factory=list)
    text: str = ""
    tail: str = ""
    references: list[str] = field(default_factory=list)
    scale: float = 1.0

    def walk(self) -> list["Node"]:
        """The node and all below it, in document order."""
        nodes: list[Node] = []
        stack = [self]
        while stack:
            node = stack.pop()
            nodes.append(node)
            if node.children:
                stack += node.children[::-1]
        return nodes


def parse(svg: str | bytes, *, max_bytes: int) -> Node:
    """The tree of what is allowed, CSS turned into attributes; its root is `svg`. Raises SVGRefused."""
    root = read_xml(svg, max_bytes=max_bytes)
    if root.tag not in ("svg", f"{{{SVG}}}svg"):
        raise SVGRefused("not_svg", f"the root element is {str(root.tag)[:80]!r}")
    node = _Reader(_rules(root)).read(root, inside="", depth=1)
    assert node is not None
    return node


def _rules(root: etree._Element) -> list[Rule]:
    sheets = [element.text or "" for element in root.iter("style", f"{{{SVG}}}style")]
    try:
        rules = [rule for sheet in sheets for rule in parse_rules(sheet)]
    except StyleError as error:
        raise SVGRefused("unsupported_style", str(error)) from None
    return sorted(rules, key=lambda rule: rule.specificity)


class _Reader:
    """Reads one document; counts what it reads."""

    def __init__(self, rules: list[Rule]) -> None:
        self.rules = rules
        self.cost = 1 + sum(1 + 10 * len(rule.around) for rule in rules) / 20  # of one element
        self.spent = 0.0
        self.around: list[Compound] = []  # the elements being read, if there are rules

    def read(self, element: etree._Element, *, inside: str, depth: int) -> Node | None:
        tag = _TAGS.get(element.tag)
        if tag is None:
            return None
        self._count(element, depth)
        if tag == "a":  # a link groups what it shows
            tag = "tspan" if inside in TEXTS else "g"
        raw = {str(name): str(value) for name, value in element.items() if name in _READ}
        if raw.pop("requiredExtensions", "") or (tag == "feImage" and not _href(raw).startswith("#")):
            return None
        node = Node(tag, {})
        styled: dict[str, str] = {}
        if self.rules:
            compound = compound_of(tag, raw.get("class", ""), raw.get("id", ""))
            styled = matching(self.rules, compound, self.around)
            self.around.append(compound)
        _add_attributes(node, raw, styled)
        keeps_text = tag in TEXTS
        if keeps_text:
            node.text = element.text or ""
        for child in element:
            converted = self.read(child, inside=tag, depth=depth + 1)
            if converted is not None:
                node.children.append(converted)
            if keeps_text and child.tail:
                append_text(node, node.children, child.tail)
        if self.rules:
            self.around.pop()
        return node

    def _count(self, element: etree._Element, depth: int) -> None:
        self.spent += self.cost
        if self.spent > MAX_ELEMENTS:
            most = int(MAX_ELEMENTS / self.cost)
            raise SVGRefused("too_many_elements", f"more than {most:,} with {len(self.rules)} style rules for each")
        if len(element.attrib) > MAX_ATTRIBUTES:
            raise SVGRefused(
                "too_many_attributes", f"{len(element.attrib):,}, more than {MAX_ATTRIBUTES} of an element"
            )
        if depth > MAX_DEPTH:
            raise SVGRefused("too_deep", f"more than {MAX_DEPTH} elements inside each other")


def _href(raw: dict[str, str]) -> str:
    return raw.get("href", raw.get(XLINK_HREF, ""))


def append_text(node: Node, children: list[Node], text: str) -> None:
    """Text behind what stands in `children`, which are or will be those of the node."""
    if children:
        children[-1].tail += text
    else:
        node.text += text


def _add_attributes(node: Node, raw: dict[str, str], styled: dict[str, str]) -> None:
    attributes = node.attributes
    id_, style = raw.pop("id", ""), raw.pop("style", "")
    href = _href(raw)
    raw.pop("href", None)
    raw.pop(XLINK_HREF, None)
    raw.pop("class", "")
    space = raw.pop(XML_SPACE, "")
    if space == "preserve" and node.tag in TEXTS:
        raw["xml:space"] = space
    if style or styled:
        styled |= declarations(style)
        raw.update((name, value) for name, value in styled.items() if name in PRESENTATION)
        kept = {name: _safe(styled[name]) for name in STYLE_ONLY if name in styled}
        style = ";".join(f"{name}:{value}" for name, value in kept.items() if value)
    for name, value in raw.items():
        if name not in _NO_REFERENCE_IN:
            value = _safe_short(value) if len(value) < 48 else _safe(value)
            if value[:5] == "url(#":
                node.references.append(value[5 : value.index(")")])
        if value:
            attributes[name] = value
    if id_:
        attributes["id"] = id_
    if href[:1] == "#" and node.tag != "g":
        attributes["href"] = href
        node.references.append(href[1:])
    if style:
        attributes["style"] = style


def _safe(value: str) -> str:
    """The value on one line, its reference as `url(#id)`; empty when it points out of the document."""
    value = " ".join(value.split())
    if not _LEAVES.search(value):
        return value
    local = _LOCAL_URL.fullmatch(value)
    if local is None or "url" in local[3].lower():
        return ""
    return f"url(#{local[2]}) {local[3]}".rstrip()


_safe_short = lru_cache(maxsize=4096)(_safe)


def serialise(node: Node, xmlns: str = f' xmlns="{SVG}"') -> str:
    """Text with attributes in a fixed order; `xmlns` belongs to the root alone."""
    parts: list[str] = []
    _serialise(node, xmlns, parts)
    return "".join(parts)


def _serialise(node: Node, xmlns: str, parts: list[str]) -> None:
    attributes = node.attributes
    parts.append(f"<{node.tag}{xmlns}")
    for name in sorted(attributes, key=ATTRIBUTE_ORDER.__getitem__) if len(attributes) > 1 else attributes:
        value = attributes[name]
        if name not in _NO_REFERENCE_IN and _SPECIAL.search(value):
            value = _escape(value)
        parts.append(f' {name}="{value}"')
    if node.children or node.text:
        parts.append(f">{_escape(node.text)}" if node.text else ">")
        for child in node.children:
            _serialise(child, "", parts)
        parts.append(f"</{node.tag}>")
    else:
        parts.append("/>")
    if node.tail:
        parts.append(_escape(node.tail))


def _escape(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace('"', "&quot;").replace("\r", " ")
