"""Drops what no drawn element reaches, and the names that may tell what is drawn. Knows no numbers."""

from dataclasses import dataclass

from data_pipeline.svg_names import DEFINITIONS, GROUPS
from data_pipeline.svg_tree import Node, append_text

_UNDRAWN = DEFINITIONS | {"defs"}


@dataclass(frozen=True, slots=True)
class Drawing:
    """A tree whose elements are all needed: in document order, their tags, and the names of all attributes."""

    root: Node
    nodes: list[Node]
    tags: set[str]
    names: set[str]


def prune(root: Node) -> Drawing:
    """In place: unused definitions, dangling references, empty groups and groups without attributes go."""
    for _ in range(4):  # what was dropped may have held the last reference to something else
        nodes = root.walk()
        if not _drop_unused(root, nodes):
            break
    else:
        nodes = root.walk()
    _rename_ids(nodes)
    tags = {node.tag for node in nodes}
    if "filter" in tags:
        for node in nodes:
            if node.tag == "filter":
                _rename_results(node)
    if "clipPath" not in tags:  # then clip-rule is there by habit, beside fill-rule
        for node in nodes:
            node.attributes.pop("clip-rule", "")
    if "g" in tags and any(node.tag == "g" and not node.attributes for node in nodes):
        _splice_groups(root)
        nodes = root.walk()
    return Drawing(root, nodes, tags, set().union(*[node.attributes for node in nodes]))


def _drop_unused(root: Node, nodes: list[Node]) -> bool:
    """Drop definitions that nothing drawn reaches, `use` of what is not there, and empty groups."""
    by_id: dict[str, Node] = {}
    for node in nodes:
        if "id" in node.attributes:
            by_id.setdefault(node.attributes["id"], node)
    if _UNDRAWN.isdisjoint([node.tag for node in nodes]):
        return _sweep(root, None, by_id)
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
    return _sweep(root, reached, by_id)


def _sweep(node: Node, reached: set[int] | None, by_id: dict[str, Node]) -> bool:
    """Drops what is empty or not `reached` (None: all is); was there any?"""
    dropped = False
    kept: list[Node] = []
    for child in node.children:
        if child.children:
            dropped |= _sweep(child, reached, by_id)
        if child.tag == "path":
            useless = child.attributes.get("d", "none").strip() in ("", "none")
        else:
            useless = child.tag == "use" and child.attributes.get("href", "#")[1:] not in by_id
        if not child.children:
            useless |= child.tag in GROUPS or (reached is not None and id(child) not in reached)
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
        if "id" in node.attributes:
            name = node.attributes.pop("id")
            if name in used and name not in names:
                names[name] = node.attributes["id"] = _letters(len(names))
    if used:
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
                node.attributes[name] = rest.lstrip() or ("none" if name in ("fill", "stroke") else "")
    node.attributes = {name: value for name, value in node.attributes.items() if value}


def _rename_results(filter_: Node) -> None:
    """What primitives of one filter call their results, likewise."""
    nodes = filter_.walk()
    used = {node.attributes[name] for node in nodes for name in ("in", "in2") if name in node.attributes}
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
