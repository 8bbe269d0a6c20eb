"""Parsing: turn an XML document into a tree of allowed elements and attributes.

No reference in the tree leaves the document, and the tree holds no metadata and no title.
"""

from data_pipeline.svg.errors import StyleError, SVGRefused
from data_pipeline.svg.names import ATTRIBUTE_ORDER, ELEMENTS, OUTLINES, SHAPES, TEXTS
from data_pipeline.svg.read import read_xml
from data_pipeline.svg.references import encode_id, sanitise_value
from data_pipeline.svg.style import apply_styles, preserves_white_space, read_elements
from data_pipeline.svg.tree import SVG, Node, append_text

XLINK_HREF = "http://www.w3.org/1999/xlink href"
XML_SPACE = "http://www.w3.org/XML/1998/namespace space"

LANGUAGE = "en"  # of the reader for whom `switch` and `systemLanguage` choose
MAX_ELEMENTS = 50_000
MAX_ATTRIBUTES = 256  # of one element
MAX_DEPTH = 200  # other passes recurse through the tree

_TAGS = {prefix + tag: tag for tag in {*ELEMENTS, "a", "switch"} for prefix in ("", f"{SVG} ")}
_TEXT_NAMES = (*TEXTS, "style")
_STYLE_NAMES = ("style", f"{SVG} style")
_CONDITIONAL_TAGS = SHAPES | TEXTS | {"svg", "g", "a", "switch"}
_SPECIAL_ATTRIBUTES = frozenset(("id", "href", XLINK_HREF, "style", XML_SPACE))
_PLAIN_ATTRIBUTES = frozenset(ATTRIBUTE_ORDER) - _SPECIAL_ATTRIBUTES - OUTLINES


def parse_tree(svg: str | bytes, *, max_bytes: int) -> list[Node]:
    """Return the nodes of the tree of allowed elements in document order, the root `svg` first.

    CSS becomes attributes. Raises SVGRefused.
    """
    builder = _Builder()
    read_xml(svg, builder, texts=_TEXT_NAMES, max_bytes=max_bytes)
    if not builder.nodes:
        raise SVGRefused("not_svg", f"the root element is {builder.skipped_name[:80]!r}")

    nodes, numbers = builder.nodes, builder.element_numbers
    try:
        apply_styles(nodes, builder.sheets, lambda: read_elements(svg, numbers, max_bytes))
    except StyleError as error:
        raise SVGRefused("unsupported_style", str(error)) from None

    if "switch" in [node.tag for node in nodes]:
        nodes = _choose_children(nodes)
    if builder.has_text:
        _settle_white_space(nodes[0], "default", None)
    for node in nodes:
        _keep_allowed_attributes(node)
    return nodes


class _Builder:
    """Handler of `read_xml` that builds the tree of allowed elements, with all their attributes."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.open_nodes: list[Node] = []
        self.skip_depth = 0  # open elements below `open_nodes`; the outermost is not allowed
        self.skipped_name = ""  # of the last skipped element
        self.num_elements = 0
        self.element_numbers: list[int] = []  # of each node, among all elements
        self.sheets: list[tuple[str, str]] = []  # media queries and text
        self.in_sheet = False
        self.has_text = False

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
            or (_is_hidden_element(tag, attributes) if open_nodes else tag != "svg")
        ):
            self._skip(name, attributes)
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
        self.element_numbers.append(self.num_elements - 1)
        open_nodes.append(node)

    def _skip(self, name: str, attributes: dict[str, str]) -> None:
        self.skip_depth += 1
        self.skipped_name = name
        sheet_type = attributes.get("type", "").strip().lower()
        self.in_sheet = name in _STYLE_NAMES and sheet_type in ("", "text/css")
        if self.in_sheet:
            self.sheets.append((attributes.get("media", ""), ""))

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
            media, sheet = self.sheets[-1]
            self.sheets[-1] = (media, sheet + text)
        elif not self.skip_depth and self.open_nodes[-1].tag in TEXTS:
            self.has_text = True
            append_text(self.open_nodes[-1], self.open_nodes[-1].children, text)


def _is_hidden_element(tag: str, attributes: dict[str, str]) -> bool:
    """Return whether a reader of English does not see it, or it needs a renderer extension."""
    if "systemLanguage" in attributes and tag in _CONDITIONAL_TAGS:
        languages = attributes["systemLanguage"].lower().split(",")
        if all(language.strip().partition("-")[0] != LANGUAGE for language in languages):
            return True
    return bool(attributes.get("requiredExtensions"))


def _get_href(attributes: dict[str, str]) -> str:
    return attributes.get("href", attributes.get(XLINK_HREF, ""))


def _choose_children(nodes: list[Node]) -> list[Node]:
    """Make each `switch` a group of its first drawn child, which may be empty; return the nodes.

    Children that a reader of English does not see are absent already.
    """
    for node in nodes:
        if node.tag == "switch":
            node.tag = "g"
            drawn = [child for child in node.children if child.tag in _CONDITIONAL_TAGS]
            others = [child for child in node.children if child.tag not in _CONDITIONAL_TAGS]
            node.children = others + drawn[:1]
    return nodes[0].walk()


def _settle_white_space(node: Node, inherited: str, is_plain: bool | None) -> None:
    """Write `xml:space` at texts whose white space it changes, and remove it elsewhere.

    The attribute and the property `white-space` are inherited from any ancestor. `is_plain` is None
    outside of text, and True inside of a text whose words are separated by single spaces.
    """
    attributes = node.attributes
    space = attributes.pop(XML_SPACE, inherited)
    if "white-space" in attributes:
        space = "preserve" if preserves_white_space(attributes.pop("white-space")) else "default"

    outer = "default" if is_plain is None else inherited
    if is_plain is None and node.tag == "text":
        content = node.text + "".join([part.text + part.tail for part in node.walk()[1:]])
        content = content.replace("\r", " ")  # as it will be written
        is_plain = " ".join(content.split()) == content
    if is_plain is False and space != outer:
        attributes[XML_SPACE] = space
    for child in node.children:
        _settle_white_space(child, space, is_plain)


def _keep_allowed_attributes(node: Node) -> None:
    """Remove attributes that are not allowed, and values that refer outside the document."""
    raw = node.attributes
    attributes: dict[str, str] = {}
    node.attributes = attributes
    for name, value in raw.items():
        if name in _PLAIN_ATTRIBUTES:
            value, references = sanitise_value(value)
            if references:
                node.references += references
            if value:
                attributes[name] = value
        elif name in OUTLINES:
            if value:
                attributes[name] = value
        elif name in _SPECIAL_ATTRIBUTES:
            _keep_special_attribute(node, name, value, raw)


def _keep_special_attribute(node: Node, name: str, value: str, raw: dict[str, str]) -> None:
    if name == XML_SPACE:
        if node.tag in TEXTS:
            node.attributes["xml:space"] = value
    elif name == "id":
        if value:
            node.attributes[name] = encode_id(value)
    elif name == "style":
        if value:
            node.attributes[name] = value
    elif (href := _get_href(raw).strip())[:1] == "#" and node.tag != "g":
        target = encode_id(href[1:])
        node.attributes["href"] = f"#{target}"
        node.references += (target,)
