"""Pruning: remove elements that no drawn element uses, and names that may describe the picture."""

from data_pipeline.svg.errors import SVGRefused
from data_pipeline.svg.names import DEFINITIONS, GROUPS
from data_pipeline.svg.references import URL
from data_pipeline.svg.tree import Drawing, Node, append_text

# One sweep can leave unused elements for the next. The limit bounds the time for a long chain of
# them in a large drawing.
MAX_SWEPT_NODES = 1_000_000

_NOT_DRAWN = DEFINITIONS | {"defs"}
_TRANSFORM_NAMES = frozenset(("transform", "transform-origin", "transform-box", "vector-effect"))


def prune_tree(nodes: list[Node]) -> Drawing:
    """Return the pruned tree of these nodes, which are in document order, the root first.

    Changes the tree in place: removes unused definitions, dangling references and empty groups,
    collapses groups without attributes, and replaces ids by short ones.
    Raises SVGRefused: `too_many_elements`.
    """
    root = nodes[0]
    nodes, by_id = _remove_all_unused(nodes)
    tags = {node.tag for node in nodes}

    # names
    if by_id or any(node.references for node in nodes):
        _rename_ids(nodes)
    if "filter" in tags:
        for node in nodes:
            if node.tag == "filter":
                _rename_filter_results(node)

    # attributes and groups
    names: set[str] = set().union(*[node.attributes for node in nodes])
    if "clip-rule" in names and "clipPath" not in tags:
        _remove_clip_rules(nodes)
    if not _TRANSFORM_NAMES.isdisjoint(names):
        _remove_idle_transforms(nodes)
    if "g" in tags and not all(node.attributes for node in nodes if node.tag == "g"):
        _collapse_groups(root)
        nodes = root.walk()
    return Drawing(nodes, tags, names)


def _remove_all_unused(nodes: list[Node]) -> tuple[list[Node], dict[str, Node]]:
    """Remove unused elements until none is left; return the nodes that remain, and those with ids.

    A removed element may have held the last reference to another one.
    """
    num_swept = 0
    while True:
        num_swept += len(nodes)
        if num_swept > MAX_SWEPT_NODES:
            raise SVGRefused("too_many_elements", "a chain of unused elements is too long")

        # reversed: the first of equal ids counts
        by_id = {node.attributes["id"]: node for node in reversed(nodes) if "id" in node.attributes}
        is_drawn = _NOT_DRAWN.isdisjoint([node.tag for node in nodes])
        reached = None if is_drawn else _find_reached(nodes[0], by_id)
        if not _remove_unused_elements(nodes[0], reached, by_id):
            return nodes, by_id
        nodes = nodes[0].walk()


def _find_reached(root: Node, by_id: dict[str, Node]) -> set[int]:
    """Return Python's ids of the drawn nodes and of the nodes that these refer to."""
    reached = {id(root)}
    stack = [root]
    while stack:
        node = stack.pop()
        next_nodes = [by_id[name] for name in node.references if name in by_id]
        if node.tag != "defs":
            next_nodes += [child for child in node.children if child.tag not in DEFINITIONS]

        for next_node in next_nodes:
            if id(next_node) not in reached:
                reached.add(id(next_node))
                stack.append(next_node)
    return reached


def _remove_unused_elements(node: Node, reached: set[int] | None, by_id: dict[str, Node]) -> bool:
    """Remove empty elements, dangling `use` and nodes not in `reached`; return whether any was."""
    removed_any = False
    kept: list[Node] = []
    for child in node.children:
        # shapes
        tag = child.tag
        if tag == "path":
            is_unused = child.attributes.get("d", "").lstrip()[:1] not in ("M", "m")
        else:
            is_unused = tag == "use" and child.attributes.get("href", "#")[1:] not in by_id

        # containers
        if child.children:
            removed_any |= _remove_unused_elements(child, reached, by_id)
        if not child.children:
            is_unused |= (tag in GROUPS and not _has_drawing_filter(child, by_id)) or (
                reached is not None and id(child) not in reached
            )

        if not is_unused:
            kept.append(child)
        elif child.tail:
            append_text(node, kept, child.tail)

    removed_any |= len(kept) < len(node.children)
    node.children = kept
    return removed_any


def _has_drawing_filter(group: Node, by_id: dict[str, Node]) -> bool:
    """Return whether a filter has a region, and may therefore draw, if the group is empty."""
    filters = map(by_id.get, URL.findall(group.attributes.get("filter", "")))
    return any(node and node.attributes.get("filterUnits") == "userSpaceOnUse" for node in filters)


def _rename_ids(nodes: list[Node]) -> None:
    """Rename referenced ids to a, b, … in document order, and remove the others.

    An id may describe the picture.
    """
    used = {name for node in nodes if node.references for name in node.references}
    new_names: dict[str, str] = {}
    for node in nodes:
        name = node.attributes.pop("id", "")
        if name in used and name not in new_names:
            new_names[name] = node.attributes["id"] = _short_name(len(new_names))

    for node in nodes:
        if node.references:
            _rename_references(node, new_names)
        if node.tag == "feImage" and "href" not in node.attributes:
            _make_transparent(node)


def _rename_references(node: Node, new_names: dict[str, str]) -> None:
    """Rename the ids in references, and remove dangling references."""
    for name, value in node.attributes.items():
        if name == "href":
            target = value[1:]
            node.attributes[name] = f"#{new_names[target]}" if target in new_names else ""
        elif "url(#" in value:
            targets = URL.findall(value)
            if all(target in new_names for target in targets):
                value = URL.sub(lambda match: f"url(#{new_names[match[1]]})", value)
            else:
                default = "none" if name in ("fill", "stroke") else ""
                value = URL.sub("", value).strip() or default if len(targets) == 1 else default
            node.attributes[name] = value
    node.attributes = {name: value for name, value in node.attributes.items() if value}


def _make_transparent(image: Node) -> None:
    """Replace a filter's image that is not in the drawing by nothing, under the same name."""
    image.tag = "feFlood"
    kept = {name: value for name, value in image.attributes.items() if name == "result"}
    image.attributes = {**kept, "flood-opacity": "0"}


def _rename_filter_results(filter_: Node) -> None:
    """Rename the used results of one filter's primitives to a, b, …, and remove the others."""
    nodes = filter_.walk()
    used = {
        node.attributes[name] for node in nodes for name in ("in", "in2") if name in node.attributes
    }
    new_names: dict[str, str] = {}
    for node in nodes:
        result = node.attributes.pop("result", "")
        if result in used:
            node.attributes["result"] = new_names.setdefault(result, _short_name(len(new_names)))

    for node in nodes:
        for name in ("in", "in2"):
            if node.attributes.get(name) in new_names:
                node.attributes[name] = new_names[node.attributes[name]]


def _short_name(index: int) -> str:
    """Return a for 0, z for 25, aa for 26."""
    name = ""
    index += 1
    while index:
        index, letter = divmod(index - 1, 26)
        name = chr(ord("a") + letter) + name
    return name


def _remove_clip_rules(nodes: list[Node]) -> None:
    """Remove `clip-rule`, which editors write beside `fill-rule`: only a clip path uses it."""
    for node in nodes:
        node.attributes.pop("clip-rule", "")


def _remove_idle_transforms(nodes: list[Node]) -> None:
    """Remove transforms that are `none`, and from groups the attributes that act only elsewhere."""
    for node in nodes:
        attributes = node.attributes
        if attributes.get("transform") == "none":
            del attributes["transform"]
        if node.tag in GROUPS:
            attributes.pop("vector-effect", "")
            if "transform" not in attributes:
                attributes.pop("transform-origin", "")
                attributes.pop("transform-box", "")


def _collapse_groups(node: Node) -> None:
    """Replace each group without attributes by its children, if its parent is a group or `svg`."""
    children: list[Node] = []
    for child in node.children:
        if child.children:
            _collapse_groups(child)
        if child.tag == "g" and not child.attributes and node.tag in ("svg", "g"):
            children += child.children
        else:
            children.append(child)
    node.children = children
