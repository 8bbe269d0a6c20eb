"""An XML document of a drawing → a tree of allowed elements and attributes, and back to text. Knows no geometry.

No reference in the tree leaves the document, and no byte of its metadata or title is left.
"""

import re
from dataclasses import dataclass, field
from functools import lru_cache

from data_pipeline.svg.css import (
    Compound,
    Rule,
    StyleError,
    compound_of,
    declarations,
    matching,
    parse_rules,
)
from data_pipeline.svg.names import ATTRIBUTE_ORDER, ELEMENTS, PRESENTATION, STYLE_ONLY, TEXTS
from data_pipeline.svg.read import SVGRefused, read_xml

SVG = "http://www.w3.org/2000/svg"
XLINK_HREF = "http://www.w3.org/1999/xlink href"
XML_SPACE = "http://www.w3.org/XML/1998/namespace space"

MAX_ELEMENTS = 50_000
MAX_ATTRIBUTES = 256  # of one element
MAX_DEPTH = 200  # the tree is walked by recursion
MAX_REMEMBERED = 48  # characters of a value: a hostile corpus must not fill the memory

_TAGS = {prefix + tag: tag for tag in {*ELEMENTS, "a"} for prefix in ("", f"{SVG} ")}
_TEXT_NAMES = (*TEXTS, "style")
_STYLES = ("style", f"{SVG} style")
_NO_REFERENCE_IN = frozenset(("d", "points"))  # long, and rewritten by their own grammar
_APART = frozenset(("id", "href", XLINK_HREF, "style", XML_SPACE))
_VALUES = frozenset(ATTRIBUTE_ORDER) - _APART - _NO_REFERENCE_IN

_LOCAL_URL = re.compile(
    r"""url\(\s*(['"]?)#([^'")\s]+)\1\s*\)\s*([\w#.,% ]*(?:\([\w.,% ]*\))?)""", re.IGNORECASE
)
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
    references: tuple[str, ...] = ()
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


def parse(svg: str | bytes, *, max_bytes: int) -> list[Node]:
    """The tree of what is allowed, CSS turned into attributes: its nodes in document order, first the root, which is
    an `svg`. Raises SVGRefused."""
    builder = _Builder()
    read_xml(svg, builder, texts=_TEXT_NAMES, max_bytes=max_bytes)
    if not builder.nodes:
        raise SVGRefused("not_svg", f"the root element is {builder.skipped[:80]!r}")
    if builder.sheets:
        _style(builder.nodes[0], _rules(builder), [])
    for node in builder.nodes:
        _allow(node)
    return builder.nodes


class _Builder:
    """Builds the tree of allowed elements, their attributes as they stand in the document."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.open: list[Node] = []  # the elements that have begun
        self.num_skipped = (
            0  # elements that have begun inside of these, the first of them not allowed
        )
        self.skipped = ""  # the last of these
        self.num_elements = 0
        self.sheets: list[str] = []
        self.in_sheet = False

    def start(self, name: str, attributes: dict[str, str]) -> None:
        around = self.open
        self.num_elements += 1
        if self.num_elements > MAX_ELEMENTS:
            raise SVGRefused("too_many_elements", f"more than {MAX_ELEMENTS:,}")
        if len(around) + self.num_skipped >= MAX_DEPTH:
            raise SVGRefused("too_deep", f"more than {MAX_DEPTH} elements inside each other")
        tag = _TAGS.get(name)
        if (
            tag is None
            or self.num_skipped
            or (_is_left_out(tag, attributes) if around else tag != "svg")
        ):
            self._skip(name)
            return
        if len(attributes) > MAX_ATTRIBUTES:
            raise SVGRefused(
                "too_many_attributes",
                f"{len(attributes):,}, more than {MAX_ATTRIBUTES} of an element",
            )
        node = Node(tag, attributes)
        if around:
            parent = around[-1]
            parent.children.append(node)
            if tag == "a":  # a link groups what it shows
                node.tag = "tspan" if parent.tag in TEXTS else "g"
        self.nodes.append(node)
        around.append(node)

    def _skip(self, name: str) -> None:
        self.num_skipped += 1
        self.skipped = name
        self.in_sheet = name in _STYLES
        if self.in_sheet:
            self.sheets.append("")

    def end(self, name: str) -> None:
        if self.num_skipped:
            self.num_skipped -= 1
            self.in_sheet = False
        else:
            self.open.pop()

    def text(self, text: str) -> None:
        if self.in_sheet:
            self.sheets[-1] += text
        elif not self.num_skipped and self.open[-1].tag in TEXTS:
            append_text(self.open[-1], self.open[-1].children, text)


def _is_left_out(tag: str, attributes: dict[str, str]) -> bool:
    """Does it need what a renderer may lack, or show what is outside of the drawing?"""
    return bool(attributes.get("requiredExtensions")) or (
        tag == "feImage" and not _href(attributes).startswith("#")
    )


def _href(attributes: dict[str, str]) -> str:
    return attributes.get("href", attributes.get(XLINK_HREF, ""))


def append_text(node: Node, children: list[Node], text: str) -> None:
    """Text behind what stands in `children`, which are or will be those of the node."""
    if children:
        children[-1].tail += text
    else:
        node.text += text


def _rules(builder: _Builder) -> list[Rule]:
    try:
        rules = [rule for sheet in builder.sheets for rule in parse_rules(sheet)]
    except StyleError as error:
        raise SVGRefused("unsupported_style", str(error)) from None
    cost = 1 + sum(1 + 10 * len(rule.around) for rule in rules) / 20  # of one element
    if builder.num_elements * cost > MAX_ELEMENTS:
        most = int(MAX_ELEMENTS / cost)
        raise SVGRefused(
            "too_many_elements", f"more than {most:,} with {len(rules)} style rules for each"
        )
    return sorted(rules, key=lambda rule: rule.specificity)


def _style(node: Node, rules: list[Rule], around: list[Compound]) -> None:
    """What the style sheets say is put before the declarations of each element's own style attribute."""
    attributes = node.attributes
    compound = compound_of(node.tag, attributes.get("class", ""), attributes.get("id", ""))
    sheet = "".join(
        [f"{name}:{value};" for name, value in matching(rules, compound, around).items()]
    )
    if sheet:
        attributes["style"] = sheet + attributes.get("style", "")
    around.append(compound)
    for child in node.children:
        _style(child, rules, around)
    around.pop()


def _allow(node: Node) -> None:
    """Keeps the attributes that are allowed, with values that do not leave the document."""
    raw = node.attributes
    if "style" in raw:
        _inline_style(raw)
    attributes: dict[str, str] = {}
    node.attributes = attributes
    for name, value in raw.items():
        if name in _VALUES:
            value, reference = _safe_short(value) if len(value) < MAX_REMEMBERED else _safe(value)
            if reference:
                node.references += (reference,)
            if value:
                attributes[name] = value
        elif name in _NO_REFERENCE_IN:
            if value:
                attributes[name] = value
        elif name in _APART:
            _allow_apart(node, name, value, raw)


def _allow_apart(node: Node, name: str, value: str, raw: dict[str, str]) -> None:
    if name == XML_SPACE:
        if value == "preserve" and node.tag in TEXTS:
            node.attributes["xml:space"] = value
    elif name == "id" or name == "style":
        if value:
            node.attributes[name] = value
    elif (href := _href(raw))[:1] == "#" and node.tag != "g":
        node.attributes["href"] = href
        node.references += (href[1:],)


def _inline_style(raw: dict[str, str]) -> None:
    """Declarations become attributes; the style attribute keeps those that have none."""
    declared = declarations(raw["style"])
    raw.update((name, value) for name, value in declared.items() if name in PRESENTATION)
    kept = {name: _safe(declared[name])[0] for name in STYLE_ONLY if name in declared}
    raw["style"] = ";".join(f"{name}:{value}" for name, value in kept.items() if value)


def _safe(value: str) -> tuple[str, str]:
    """The value on one line, its reference as `url(#id)`, and the id; empty when it points out of the document."""
    value = " ".join(value.split())
    if not _LEAVES.search(value):
        return value, ""
    local = _LOCAL_URL.fullmatch(value)
    if local is None or "url" in local[3].lower():
        return "", ""
    value = f"url(#{local[2]}) {local[3]}".rstrip()
    return value, value[5 : value.index(")")]


_safe_short = lru_cache(maxsize=4096)(_safe)


def serialise(node: Node, xmlns: str = f' xmlns="{SVG}"') -> str:
    """Text with attributes in a fixed order; `xmlns` belongs to the root alone."""
    parts: list[str] = []
    _serialise(node, xmlns, parts)
    return "".join(parts)


def _serialise(node: Node, xmlns: str, parts: list[str]) -> None:
    attributes = node.attributes
    parts.append(f"<{node.tag}{xmlns}")
    for name in _in_order(tuple(attributes)) if len(attributes) > 1 else attributes:
        value = attributes[name]
        if name not in _NO_REFERENCE_IN:
            value = _escape_short(value) if len(value) < MAX_REMEMBERED else _escape(value)
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


@lru_cache(maxsize=4096)
def _in_order(names: tuple[str, ...]) -> list[str]:
    return sorted(names, key=ATTRIBUTE_ORDER.__getitem__)


def _escape(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace('"', "&quot;").replace("\r", " ")


_escape_short = lru_cache(maxsize=4096)(_escape)
