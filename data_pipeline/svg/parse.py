"""Parsing: turn an XML document into a tree of allowed elements and attributes.

No reference in the tree leaves the document, and the tree holds no metadata and no title.
"""

import re
from functools import lru_cache

from data_pipeline.svg.css import (
    Compound,
    Rule,
    describe_element,
    match_rules,
    parse_declarations,
    parse_rules,
)
from data_pipeline.svg.errors import StyleError, SVGRefused
from data_pipeline.svg.names import (
    ATTRIBUTE_ORDER,
    ELEMENTS,
    OUTLINES,
    PRESENTATION,
    STYLE_ONLY,
    TEXTS,
)
from data_pipeline.svg.read import read_xml
from data_pipeline.svg.tree import MAX_CACHED_VALUE, SVG, Node, append_text

XLINK_HREF = "http://www.w3.org/1999/xlink href"
XML_SPACE = "http://www.w3.org/XML/1998/namespace space"

MAX_ELEMENTS = 50_000
MAX_ATTRIBUTES = 256  # of one element
MAX_DEPTH = 200  # other passes recurse through the tree

_TAGS = {prefix + tag: tag for tag in {*ELEMENTS, "a"} for prefix in ("", f"{SVG} ")}
_TEXT_NAMES = (*TEXTS, "style")
_STYLE_NAMES = ("style", f"{SVG} style")
_SPECIAL_ATTRIBUTES = frozenset(("id", "href", XLINK_HREF, "style", XML_SPACE))
_PLAIN_ATTRIBUTES = frozenset(ATTRIBUTE_ORDER) - _SPECIAL_ATTRIBUTES - OUTLINES

_LOCAL_URL = re.compile(
    r"""url\(\s*(['"]?)#([^'")\s]+)\1\s*\)\s*([\w#.,% ]*(?:\([\w.,% ]*\))?)""", re.IGNORECASE
)
_UNSAFE = re.compile(r"[\\:]|(?:url|src|image|image-set)\s*\(", re.IGNORECASE)


def parse_tree(svg: str | bytes, *, max_bytes: int) -> list[Node]:
    """Return the nodes of the tree of allowed elements in document order, the root `svg` first.

    CSS becomes attributes. Raises SVGRefused.
    """
    builder = _Builder()
    read_xml(svg, builder, texts=_TEXT_NAMES, max_bytes=max_bytes)
    if not builder.nodes:
        raise SVGRefused("not_svg", f"the root element is {builder.skipped_name[:80]!r}")

    if builder.sheets:
        _inline_style_sheets(builder.nodes[0], _parse_sheets(builder), [])
    for node in builder.nodes:
        _keep_allowed_attributes(node)
    return builder.nodes


class _Builder:
    """Handler of `read_xml` that builds the tree of allowed elements, with all their attributes."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.open_nodes: list[Node] = []
        self.skip_depth = 0  # open elements below `open_nodes`; the outermost is not allowed
        self.skipped_name = ""  # of the last skipped element
        self.num_elements = 0
        self.sheets: list[str] = []
        self.in_sheet = False

    def start(self, name: str, attributes: dict[str, str]) -> None:
        """Add an element, or skip it if it or an ancestor is not allowed."""
        open_nodes = self.open_nodes

        # limits of the document
        self.num_elements += 1
        if self.num_elements > MAX_ELEMENTS:
            raise SVGRefused("too_many_elements", f"more than {MAX_ELEMENTS:,}")
        if len(open_nodes) + self.skip_depth >= MAX_DEPTH:
            raise SVGRefused("too_deep", f"more than {MAX_DEPTH} elements inside each other")

        # allowed elements
        tag = _TAGS.get(name)
        if (
            tag is None
            or self.skip_depth
            or (_is_unsafe_element(tag, attributes) if open_nodes else tag != "svg")
        ):
            self._skip(name)
            return
        if len(attributes) > MAX_ATTRIBUTES:
            raise SVGRefused(
                "too_many_attributes",
                f"{len(attributes):,}, more than {MAX_ATTRIBUTES} of an element",
            )

        # new node
        node = Node(tag, attributes)
        if open_nodes:
            parent = open_nodes[-1]
            parent.children.append(node)
            if tag == "a":  # a link is only a group of its content
                node.tag = "tspan" if parent.tag in TEXTS else "g"
        self.nodes.append(node)
        open_nodes.append(node)

    def _skip(self, name: str) -> None:
        self.skip_depth += 1
        self.skipped_name = name
        self.in_sheet = name in _STYLE_NAMES
        if self.in_sheet:
            self.sheets.append("")

    def end(self, name: str) -> None:
        """Close the innermost open element."""
        if self.skip_depth:
            self.skip_depth -= 1
            self.in_sheet = False
        else:
            self.open_nodes.pop()

    def text(self, text: str) -> None:
        """Append character data to a style sheet or to a text element; ignore other data."""
        if self.in_sheet:
            self.sheets[-1] += text
        elif not self.skip_depth and self.open_nodes[-1].tag in TEXTS:
            append_text(self.open_nodes[-1], self.open_nodes[-1].children, text)


def _is_unsafe_element(tag: str, attributes: dict[str, str]) -> bool:
    """Return whether it needs a renderer extension, or shows a picture outside the drawing."""
    return bool(attributes.get("requiredExtensions")) or (
        tag == "feImage" and not _get_href(attributes).startswith("#")
    )


def _get_href(attributes: dict[str, str]) -> str:
    return attributes.get("href", attributes.get(XLINK_HREF, ""))


def _parse_sheets(builder: _Builder) -> list[Rule]:
    """Return the rules of all sheets in ascending specificity.

    Raises SVGRefused: `unsupported_style`, or `too_many_elements` for this number of rules.
    """
    try:
        rules = [rule for sheet in builder.sheets for rule in parse_rules(sheet)]
    except StyleError as error:
        raise SVGRefused("unsupported_style", str(error)) from None

    # Matching costs elements × rules, and more for each required ancestor.
    cost_per_element = 1 + sum(1 + 10 * len(rule.ancestors) for rule in rules) / 20
    if builder.num_elements * cost_per_element > MAX_ELEMENTS:
        max_elements = int(MAX_ELEMENTS / cost_per_element)
        raise SVGRefused(
            "too_many_elements",
            f"more than {max_elements:,} with {len(rules)} style rules for each",
        )
    return sorted(rules, key=lambda rule: rule.specificity)


def _inline_style_sheets(node: Node, rules: list[Rule], ancestors: list[Compound]) -> None:
    """Put the declarations of matching rules before those of each element's style attribute."""
    attributes = node.attributes
    element = describe_element(node.tag, attributes.get("class", ""), attributes.get("id", ""))
    matched = match_rules(rules, element, ancestors)
    if matched:
        inlined = "".join([f"{name}:{value};" for name, value in matched.items()])
        attributes["style"] = inlined + attributes.get("style", "")

    ancestors.append(element)
    for child in node.children:
        _inline_style_sheets(child, rules, ancestors)
    ancestors.pop()


def _keep_allowed_attributes(node: Node) -> None:
    """Remove attributes that are not allowed, and values that refer outside the document."""
    raw = node.attributes
    if "style" in raw:
        _convert_style_attribute(raw)

    attributes: dict[str, str] = {}
    node.attributes = attributes
    for name, value in raw.items():
        if name in _PLAIN_ATTRIBUTES:
            if len(value) < MAX_CACHED_VALUE:
                value, reference = _sanitise_cached(value)
            else:
                value, reference = _sanitise(value)
            if reference:
                node.references += (reference,)
            if value:
                attributes[name] = value
        elif name in OUTLINES:
            if value:
                attributes[name] = value
        elif name in _SPECIAL_ATTRIBUTES:
            _keep_special_attribute(node, name, value, raw)


def _keep_special_attribute(node: Node, name: str, value: str, raw: dict[str, str]) -> None:
    if name == XML_SPACE:
        if value == "preserve" and node.tag in TEXTS:
            node.attributes["xml:space"] = value
    elif name == "id" or name == "style":
        if value:
            node.attributes[name] = value
    elif (href := _get_href(raw))[:1] == "#" and node.tag != "g":
        node.attributes["href"] = href
        node.references += (href[1:],)


def _convert_style_attribute(raw: dict[str, str]) -> None:
    """Turn declarations into attributes; keep those without an attribute in `style`."""
    declared = parse_declarations(raw["style"])
    raw.update((name, value) for name, value in declared.items() if name in PRESENTATION)
    kept = {name: _sanitise(declared[name])[0] for name in STYLE_ONLY if name in declared}
    raw["style"] = ";".join(f"{name}:{value}" for name, value in kept.items() if value)


def _sanitise(value: str) -> tuple[str, str]:
    """Return the value on one line, with its reference as `url(#id)`, and that id.

    Both are empty if the value refers outside the document.
    """
    value = " ".join(value.split())
    if not _UNSAFE.search(value):
        return value, ""

    local = _LOCAL_URL.fullmatch(value)
    if local is None or "url" in local[3].lower():
        return "", ""
    value = f"url(#{local[2]}) {local[3]}".rstrip()
    return value, value[5 : value.index(")")]


_sanitise_cached = lru_cache(maxsize=4096)(_sanitise)
