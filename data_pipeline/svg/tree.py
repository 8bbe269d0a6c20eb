"""Tree of a drawing: its types, and its text in a fixed form."""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from data_pipeline.svg.names import ATTRIBUTE_ORDER, OUTLINES

SVG = "http://www.w3.org/2000/svg"
MAX_CACHED_VALUE = 48  # characters of a cached value: a hostile corpus must not fill the memory


@dataclass(slots=True)
class Node:
    """One element."""

    tag: str
    attributes: dict[str, str]
    children: list["Node"] = field(default_factory=list)
    text: str = ""
    """Text before the first child."""
    tail: str = ""
    """Text behind the end tag."""
    references: tuple[str, ...] = ()
    """Ids that the attributes refer to, encoded as those of all nodes."""
    scale: float = 1.0
    """Factor by which its own and its ancestors' transforms enlarge its coordinates."""

    def walk(self) -> list["Node"]:
        """Return the node and all its descendants, in document order."""
        nodes: list[Node] = []
        stack = [self]
        while stack:
            node = stack.pop()
            nodes.append(node)
            if node.children:
                stack += node.children[::-1]
        return nodes


class Drawing(NamedTuple):
    """Tree without unused elements."""

    nodes: list[Node]
    """All elements in document order, the root first."""
    tags: set[str]
    """Tags of these elements."""
    names: set[str]
    """Names of their attributes; the set may hold further names."""


def append_text(node: Node, children: list[Node], text: str) -> None:
    """Append text behind `children`, which are or will become the first children of the node."""
    if children:
        children[-1].tail += text
    else:
        node.text += text


def serialise_tree(root: Node) -> str:
    """Return the XML text of the tree, with attributes in a fixed order."""
    parts: list[str] = []
    _append_parts(root, f' xmlns="{SVG}"', parts)
    return "".join(parts)


def _append_parts(node: Node, xmlns: str, parts: list[str]) -> None:
    # start tag
    attributes = node.attributes
    parts.append(f"<{node.tag}{xmlns}")
    for name in _sort_names(tuple(attributes)) if len(attributes) > 1 else attributes:
        value = attributes[name]
        if name not in OUTLINES:
            value = _escape_cached(value) if len(value) < MAX_CACHED_VALUE else _escape(value)
        parts.append(f' {name}="{value}"')

    # content
    if node.children or node.text:
        parts.append(f">{_escape(node.text)}" if node.text else ">")
        for child in node.children:
            _append_parts(child, "", parts)
        parts.append(f"</{node.tag}>")
    else:
        parts.append("/>")

    if node.tail:
        parts.append(_escape(node.tail))


@lru_cache(maxsize=4096)
def _sort_names(names: tuple[str, ...]) -> list[str]:
    return sorted(names, key=ATTRIBUTE_ORDER.__getitem__)


def _escape(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace('"', "&quot;").replace("\r", " ")


_escape_cached = lru_cache(maxsize=4096)(_escape)
