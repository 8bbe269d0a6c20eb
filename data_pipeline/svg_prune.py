"""Drops what no drawn element reaches, and the names that may tell what is drawn. Knows no numbers."""

import re
from collections.abc import Iterator

from data_pipeline.svg_names import DEFINITIONS, GROUPS
from data_pipeline.svg_tree import Node

_REFERENCE = re.compile(r"url\(#([^)]*)\) ?")


def prune(root: Node) -> None:
    """In place: unused definitions, dangling references, empty groups and groups without attributes go."""
    for _ in range(4):  # what was dropped may have held the last reference to something else
        if not _drop_unused(root):
            break
    _rename_ids(root)
    _splice_groups(root)


def _references(node: Node) -> Iterator[str]:
    for name, value in node.attributes.items():
        if name == "href":
            yield value[1:]
        elif "url(#" in value:
            yield from _REFERENCE.findall(value)


def _drop_unused(root: Node) -> bool:
    """Drop definitions that nothing drawn reaches, `use` of what is not there, and empty groups."""
    by_id: dict[str, Node] = {}
    for node in root.walk():
        if "id" in node.attributes:
            by_id.setdefault(node.attributes["id"], node)
    reached = {id(root)}
    stack = [root]
    while stack:
        node = stack.pop()
        next_nodes = [by_id[name] for name in _references(node) if name in by_id]
        if node.tag != "defs":
            next_nodes += [child for child in node.elements() if child.tag not in DEFINITIONS]
        for found in next_nodes:
            if id(found) not in reached:
                reached.add(id(found))
                stack.append(found)
    return _sweep(root, reached, by_id)


def _sweep(node: Node, reached: set[int], by_id: dict[str, Node]) -> bool:
    dropped = False
    kept: list[Node | str] = []
    for child in node.children:
        if isinstance(child, Node):
            dropped |= _sweep(child, reached, by_id)
            dangling = child.tag == "use" and child.attributes.get("href", "#")[1:] not in by_id
            if child.tag == "path":
                dangling = child.attributes.get("d", "none").strip() in ("", "none")
            bare = not child.elements() and (child.tag in GROUPS or id(child) not in reached)
            if dangling or bare:
                dropped = True
                continue
        kept.append(child)
    node.children = kept
    return dropped


def _rename_ids(root: Node) -> None:
    """Referenced ids become a, b, … in document order (an id may name what is drawn); the others go."""
    used = {name for node in root.walk() for name in _references(node)}
    names: dict[str, str] = {}
    for node in root.walk():
        name = node.attributes.pop("id", "")
        if name and name in used and name not in names:
            names[name] = node.attributes["id"] = _letters(len(names))
    for node in root.walk():
        for name, value in list(node.attributes.items()):
            if name == "href":
                node.attributes[name] = f"#{names[value[1:]]}" if value[1:] in names else ""
            elif "url(#" in value:
                target = _REFERENCE.match(value)
                if target is None or target[1] not in names:
                    none = "none" if name in ("fill", "stroke") else ""
                    node.attributes[name] = _REFERENCE.sub("", value) or none
                else:
                    node.attributes[name] = value.replace(f"#{target[1]})", f"#{names[target[1]]})", 1)
        node.attributes = {name: value for name, value in node.attributes.items() if value}


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
    children: list[Node | str] = []
    for child in node.children:
        if isinstance(child, Node):
            _splice_groups(child)
            if child.tag == "g" and not child.attributes and node.tag in ("svg", "g"):
                children.extend(child.children)
                continue
        children.append(child)
    node.children = children
