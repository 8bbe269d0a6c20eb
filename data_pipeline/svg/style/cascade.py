"""Cascade: give each element the declarations that apply to it, and put them in its attributes."""

from collections.abc import Callable

from data_pipeline.svg.errors import StyleError
from data_pipeline.svg.style.css import Declaration, Rule, parse_sheets, parse_style
from data_pipeline.svg.style.elements import Element, Steps
from data_pipeline.svg.style.properties import put_properties
from data_pipeline.svg.style.variables import VARIABLE, compute_variables, substitute_variables
from data_pipeline.svg.tree import Node


def apply_styles(
    nodes: list[Node], sheets: list[tuple[str, str]], read_elements: Callable[[], list[Element]]
) -> None:
    """Turn the style sheets and style attributes of a drawing into attributes of its nodes.

    `sheets` holds the media queries and the text of each sheet. `read_elements` returns the element
    of each node; it is called only if there are rules.

    Raises StyleError, and SVGRefused: `too_many_elements`.
    """
    if not sheets and not any("--" in node.attributes.get("style", "") for node in nodes):
        for node in nodes:
            if "style" in node.attributes:
                properties = _sort_by_precedence([parse_style(node.attributes["style"])])
                put_properties(node.tag, node.attributes, properties, is_root=node is nodes[0])
        return

    rules = parse_sheets(sheets)
    elements = read_elements() if rules else []
    element_of_node = {id(node): element for node, element in zip(nodes, elements, strict=False)}
    _Cascade(rules, element_of_node, nodes[0]).apply(nodes[0], {})


def _sort_by_precedence(blocks: list[tuple[Declaration, ...]]) -> dict[str, str]:
    """Return the winning values, the last declared one last.

    A later declaration wins, and an important one wins over all that are not.
    """
    properties: dict[str, str] = {}
    for is_important in (False, True):
        for block in blocks:
            for declaration in block:
                if declaration.is_important == is_important:
                    properties.pop(declaration.name, None)
                    properties[declaration.name] = declaration.value
    return properties


class _Cascade:
    """Recursive pass over the tree of one drawing, with the variables that apply at each node."""

    def __init__(self, rules: list[Rule], elements: dict[int, Element], root: Node) -> None:
        self.rules: dict[str, list[tuple[int, Rule]]] = {}
        for position, rule in enumerate(rules):
            self.rules.setdefault(rule.key, []).append((position, rule))
        self.elements = elements
        self.steps = Steps()
        self.root = root
        self.root_variables: dict[str, str] = {}
        self.is_variable_read = False
        self.is_variable_set_for_use = False

    def apply(self, node: Node, inherited: dict[str, str]) -> None:
        """Put the declarations of the node and its descendants in place."""
        attributes = node.attributes
        blocks = self._match(self.elements[id(node)]) if self.rules else []
        blocks.append(parse_style(attributes.get("style", "")))
        properties = _sort_by_precedence(blocks)

        variables = self._compute_variables(node, properties, inherited)
        self._substitute(attributes, variables, "")
        self._substitute(properties, variables, "unset")
        if self.is_variable_read and self.is_variable_set_for_use:
            raise StyleError("a variable that is set for a use element")

        if properties or "style" in attributes:
            put_properties(node.tag, attributes, properties, is_root=node is self.root)
        for child in node.children:
            self.apply(child, variables)

    def _match(self, element: Element) -> list[tuple[Declaration, ...]]:
        """Return the declarations of the rules that match, in ascending precedence."""
        keys = ["", element.local_name, f"#{element.id}", *[f".{n}" for n in element.classes]]
        found = []
        for key in keys:
            rules = self.rules.get(key, ())
            element.steps.spend(len(rules))
            found += [entry for entry in rules if entry[1].matches(element)]
        return [rule.declarations for _, rule in sorted(found, key=lambda entry: entry[0])]

    def _compute_variables(
        self, node: Node, properties: dict[str, str], inherited: dict[str, str]
    ) -> dict[str, str]:
        """Return the variables of the node, and remove them from its properties."""
        own = {name: properties.pop(name) for name in [*properties] if name[:2] == "--"}
        variables = inherited
        if own:
            self.steps.spend(len(inherited) + sum(map(len, own.values())))
            variables = compute_variables(own, inherited)

        if node is self.root:
            self.root_variables = variables
        self.is_variable_set_for_use |= node.tag == "use" and variables != self.root_variables
        return variables

    def _substitute(self, values: dict[str, str], variables: dict[str, str], missing: str) -> None:
        """Replace each `var()` in the values; a value without its variable becomes `missing`."""
        for name, value in values.items():
            if name != "style" and "(" in value and VARIABLE.search(value):
                self.is_variable_read = True
                self.steps.spend(len(value))
                values[name] = substitute_variables(value, variables) or missing
