"""Drops what no drawn element reaches, and the names that may tell what is drawn. Knows no numbers."""

from typing import NamedTuple

from data_pipeline.svg.names import DEFINITIONS, GROUPS
from data_pipeline.svg.tree import Node, append_text

_UNDRAWN = DEFINITIONS | {"defs"}


class Drawing(NamedTuple):
    """A tree whose elements are all needed: these in document order, the root first, their tags, and the names of
    their attributes (there may be more)."""

    nodes: list[Node]
    tags: set[str]
    names: set[str]


def prune(nodes: list[Node]) -> Drawing:
    """The tree of these nodes (in document order, the root first), in place: unused definitions, dangling references,
    empty groups and groups without attributes go."""
    root = nodes[0]
    tags = {node.tag for node in nodes}
    for _ in range(4):  # what was dropped may have held the last reference to something else
        by_id = {
            node.attributes["id"]: node for node in reversed(nodes) if "id" in node.attributes
        }  # the first counts
        if not _sweep(root, None if _UNDRAWN.isdisjoint(tags) else _reached(root, by_id), by_id):
            break
        nodes = root.walk()
        tags = {node.tag for node in nodes}
    if by_id or any(node.references for node in nodes):
        _rename_ids(nodes)
    if "filter" in tags:
        for node in nodes:
            if node.tag == "filter":
                _rename_results(node)
    names: set[str] = set().union(*[node.attributes for node in nodes])
    if (
        "clip-rule" in names and "clipPath" not in tags
    ):  # then it is there by habit, beside fill-rule
        for node in nodes:
            node.attributes.pop("clip-rule", "")
    if "g" in tags and not all(node.attributes for node in nodes if node.tag == "g"):
        _splice_groups(root)
        nodes = root.walk()
    return Drawing(nodes, tags, names)


def _reached(root: Node, by_id: dict[str, Node]) -> set[int]:
    """Python's ids of what is drawn, or referred to by what is."""
    reached = {id(root)}
    stack = [root]
    while stack:
        node = stack.pop()
        next_nodes = [by_id[name] for name in node.references if name in by_id]
        if node.tag != "defs":
            next_nodes += [child for child in node.children if child.tag not in DEFINITIONS]
        for found in next_nodes:
            if id(found) not in reached:
                reached.add(id(found))
                stack.append(found)
    return reached


def _sweep(node: Node, reached: set[int] | None, by_id: dict[str, Node]) -> bool:
    """Drops what is empty, refers to nothing or is not reached; was there any?"""
    dropped = False
    kept: list[Node] = []
    for child in node.children:
        tag = child.tag
        if tag == "path":
            useless = child.attributes.get("d", "none").strip() in ("", "none")
        else:
            useless = tag == "use" and child.attributes.get("href", "#")[1:] not in by_id
        if child.children:
            dropped |= _sweep(child, reached, by_id)
        if not child.children:
            useless |= tag in GROUPS or (reached is not None and id(child) not in reached)
        if not useless:
            kept.append(child)
        elif child.tail:
            append_text(node, kept, child.tail)
    dropped |= len(kept) < len(node.children)
    node.children = kept
    return dropped


def _rename_ids(nodes: list[Node]) -> None:
    """Referenced ids become a, b, … in document order (an id may name what is drawn); the others go."""
    used = {name for node in nodes if node.references for name in node.references}
    names: dict[str, str] = {}
    for node in nodes:
        name = node.attributes.pop("id", "")
        if name in used and name not in names:
            names[name] = node.attributes["id"] = _letters(len(names))
    for node in nodes:
        if node.references:
            _rename_references(node, names)


def _rename_references(node: Node, names: dict[str, str]) -> None:
    for name, value in node.attributes.items():
        if name == "href":
            node.attributes[name] = f"#{names[value[1:]]}" if value[1:] in names else ""
        elif value[:5] == "url(#":
            target = value[5 : value.index(")")]
            rest = value[value.index(")") + 1 :]
            if target in names:
                node.attributes[name] = f"url(#{names[target]}){rest}"
            else:
                node.attributes[name] = rest.lstrip() or (
                    "none" if name in ("fill", "stroke") else ""
                )
    node.attributes = {name: value for name, value in node.attributes.items() if value}


def _rename_results(filter_: Node) -> None:
    """What primitives of one filter call their results, likewise."""
    nodes = filter_.walk()
    used = {
        node.attributes[name] for node in nodes for name in ("in", "in2") if name in node.attributes
    }
    names: dict[str, str] = {}
    for node in nodes:
        result = node.attributes.pop("result", "")
        if result in used:
            node.attributes["result"] = names.setdefault(result, _letters(len(names)))
    for node in nodes:
        for name in ("in", "in2"):
            if node.attributes.get(name) in names:
                node.attributes[name] = names[node.attributes[name]]


def _letters(number: int) -> str:
    """0 → a, 25 → z, 26 → aa."""
    text = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        text = chr(ord("a") + rest) + text
    return text


def _splice_groups(node: Node) -> None:
    """A group without attributes gives its children to the group around it."""
    children: list[Node] = []
    for child in node.children:
        if child.children:
            _splice_groups(child)
        if child.tag == "g" and not child.attributes and node.tag in ("svg", "g"):
            children += child.children
        else:
            children.append(child)
    node.children = children
