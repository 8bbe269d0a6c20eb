"""Parser of CSS: turn style sheets and style attributes into declarations.

A sheet with a selector or an at-rule that cannot be applied is refused by name, because ignoring it
would silently change the drawing. Invalid declarations are ignored, as browsers do.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import cssselect2
import tinycss2

from data_pipeline.svg.errors import StyleError
from data_pipeline.svg.style.media import matches_screen, split_at_commas
from data_pipeline.svg.style.properties import RELEVANT, find_unsupported_function
from data_pipeline.svg.style.shorthands import expand_shorthand
from data_pipeline.svg.style.values import is_valid

MAX_SHEET = 400_000  # characters of all sheets, without embedded files
MAX_RULES = 1_000  # selectors in all sheets
MAX_NESTING = 32  # brackets inside each other
MAX_SELECTOR = 60  # tokens of one selector
MAX_CACHED_STYLE = 256  # characters of a cached style attribute

_EMBEDDED = re.compile(r"base64,[A-Za-z0-9+/=\s]*+")
_BRACKET = re.compile(r"[(\[{]|[)\]}]")
# Text that needs no tokens: no comment, escape or important declaration, and no semicolon inside
# of quotes or brackets.
_PLAIN = re.compile(
    r"""(?:[^"'()\[\]{}\\!@/]++|/(?!\*)|"[^"'();\\]*+"|'[^"'();\\]*+'|\([^"'()\[\]{};\\!@]*+\))*+"""
)
# At-rules that change nothing in a still drawing on a screen.
_IGNORED = """
    charset import font-face keyframes page counter-style font-feature-values font-palette-values
    color-profile view-transition position-try starting-style viewport
"""
_IGNORED_KEYWORDS = frozenset(_IGNORED.split())


class Declaration(NamedTuple):
    """One property with its value."""

    name: str
    value: str
    is_important: bool


_Found = dict[tuple[str, bool], str]  # (name, is_important) → value


class Rule(NamedTuple):
    """One selector with its declarations."""

    specificity: tuple[int, int, int]
    order: int
    """Position among all rules: a later rule wins among those of equal specificity."""
    key: str
    """`#id`, `.class` or tag that an element must have, or an empty text."""
    matches: Callable[[Any], bool]
    declarations: tuple[Declaration, ...]


def parse_style(text: str) -> tuple[Declaration, ...]:
    """Return the declarations of a style attribute that change a drawing, in order.

    `fill:#F00; marker:none` gives `fill`, and the three properties of the shorthand `marker`.
    """
    return _parse_style_cached(text) if len(text) < MAX_CACHED_STYLE else _parse_style(text)


def _parse_style(text: str) -> tuple[Declaration, ...]:
    found: _Found = {}
    if _PLAIN.fullmatch(text):
        for part in text.split(";"):
            name, _, value = part.partition(":")
            _add_declaration(found, name.strip(), value.strip(), is_important=False)
        return _list_declarations(found)

    _check_nesting(text)
    for node in tinycss2.parse_blocks_contents(text, skip_comments=True, skip_whitespace=True):
        if node.type == "declaration":
            _add_node(found, node)
    return _list_declarations(found)


_parse_style_cached = lru_cache(maxsize=4096)(_parse_style)


def _list_declarations(found: _Found) -> tuple[Declaration, ...]:
    return tuple(Declaration(name, value, mark) for (name, mark), value in found.items())


def _add_node(found: _Found, node: Any) -> None:
    if "!" in [token.value for token in node.value if token.type == "literal"]:
        return  # a misspelled `!important` makes the declaration invalid
    value = tinycss2.serialize([token for token in node.value if token.type != "comment"])
    if "'" not in value:
        value = value.replace('"', "'")  # an attribute would need `&quot;`
    _add_declaration(found, node.name, value.strip(), is_important=node.important)


def _add_declaration(found: _Found, name: str, value: str, *, is_important: bool) -> None:
    """Add the declarations that one declaration stands for, if they change a drawing.

    A value with a function that attributes cannot hold is ignored behind another value of the same
    property, which its author has written for renderers that do not know the function.
    """
    name = name if name.startswith("--") else name.lower()
    for longhand, part in expand_shorthand(name, value):
        is_custom = longhand.startswith("--")
        if not is_custom and not (longhand in RELEVANT and part and is_valid(longhand, part)):
            continue
        has_fallback = (longhand, False) in found or (longhand, True) in found
        if has_fallback and find_unsupported_function(longhand, part):
            continue
        found.pop((longhand, is_important), None)  # the last one counts, at its place
        found[longhand, is_important] = part


def parse_sheets(sheets: list[tuple[str, str]]) -> list[Rule]:
    """Return the rules of all sheets in ascending specificity.

    `sheets` holds the media queries and the text of each sheet. Raises StyleError.
    """
    texts = [_EMBEDDED.sub("base64,", text) for _, text in sheets]
    if sum(map(len, texts)) > MAX_SHEET:
        raise StyleError(f"sheets of {sum(map(len, texts)):,} characters, more than {MAX_SHEET:,}")

    rules: list[Rule] = []
    for (media, _), text in zip(sheets, texts, strict=True):
        _check_nesting(text)
        _check_nesting(media)
        if matches_screen(tinycss2.parse_component_value_list(media)):
            nodes = tinycss2.parse_stylesheet(text, skip_comments=True, skip_whitespace=True)
            _add_rules(rules, nodes, {})
    return sorted(rules, key=lambda rule: (rule.specificity, rule.order))


def _check_nesting(text: str) -> None:
    """Raise StyleError if brackets are nested so deeply that a recursion could fail."""
    depth = 0
    for bracket in _BRACKET.findall(text):
        depth = depth + 1 if bracket in "([{" else max(0, depth - 1)
        if depth > MAX_NESTING:
            raise StyleError(f"more than {MAX_NESTING} brackets inside each other")


def _add_rules(rules: list[Rule], nodes: list[Any], namespaces: dict[str | None, str]) -> None:
    for node in nodes:
        if node.type == "qualified-rule":
            declarations = _parse_block(node.content)
            selectors = split_at_commas(node.prelude) if declarations else ()
            for selector in selectors:
                _add_rule(rules, selector, namespaces, declarations)
        elif node.type == "at-rule":
            keyword = node.lower_at_keyword
            if keyword == "media" and matches_screen(node.prelude):
                content = tinycss2.parse_rule_list(
                    node.content or [], skip_comments=True, skip_whitespace=True
                )
                _add_rules(rules, content, namespaces)
            elif keyword == "namespace":
                _add_namespace(namespaces, node.prelude)
            elif keyword != "media" and keyword not in _IGNORED_KEYWORDS and keyword[:1] != "-":
                raise StyleError(f"@{keyword[:40]}")


def _parse_block(content: list[Any]) -> tuple[Declaration, ...]:
    found: _Found = {}
    nodes = tinycss2.parse_blocks_contents(content, skip_comments=True, skip_whitespace=True)
    for node in nodes:
        if node.type == "declaration":
            _add_node(found, node)
        elif node.type != "error":
            raise StyleError(f"a rule inside of a rule: {tinycss2.serialize([node])[:40]!r}")
    return _list_declarations(found)


def _add_namespace(namespaces: dict[str | None, str], prelude: list[Any]) -> None:
    """Add the prefix, or None for the default namespace, and its URI."""
    prefix = None
    for token in prelude:
        if token.type == "ident":
            prefix = token.value
        elif token.type in ("string", "url"):
            namespaces[prefix] = token.value
        elif token.type == "function" and token.arguments:
            namespaces[prefix] = token.arguments[0].value


def _add_rule(
    rules: list[Rule],
    selector: list[Any],
    namespaces: dict[str | None, str],
    declarations: tuple[Declaration, ...],
) -> None:
    """Add the rule of one selector, unless no element of a still drawing can match.

    Raises StyleError for an unknown selector, and for more than MAX_RULES rules.
    """
    text = tinycss2.serialize(selector).strip()
    if len(rules) >= MAX_RULES:
        raise StyleError(f"more than {MAX_RULES:,} rules")
    if _count_tokens(selector) > MAX_SELECTOR:
        raise StyleError(f"selector {text[:40]!r} of more than {MAX_SELECTOR} parts")
    if "::" in text:
        return  # a pseudo-element is no element

    try:
        (compiled,) = cssselect2.compile_selector_list(selector, namespaces)
    except (ValueError, NotImplementedError, SyntaxError, AttributeError, TypeError):
        raise StyleError(f"selector {text[:40]!r}") from None
    if ":local-link" in text.lower():
        raise StyleError(f"selector {text[:40]!r}")
    if compiled.never_matches or compiled.pseudo_element:
        return

    key = f"#{compiled.id}" if compiled.id else compiled.local_name or ""
    if compiled.class_name and not compiled.id:
        key = f".{compiled.class_name}"
    rules.append(Rule(compiled.specificity, len(rules), key, compiled.test, declarations))


def _count_tokens(tokens: list[Any]) -> int:
    nested = [
        getattr(token, "content", None) or getattr(token, "arguments", None) or []
        for token in tokens
    ]
    return len(tokens) + sum(map(_count_tokens, nested))
