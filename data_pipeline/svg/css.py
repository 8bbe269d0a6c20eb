"""CSS subset of drawings: turn style sheets and style attributes into presentation attributes.

Supported selectors match one element (`path`, `.st0`, `#a`, `path.st0`, `*`), also as a descendant
of others (`#a .st0`). A sheet with any other selector is refused by name, because ignoring a rule
would silently change the drawing.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from data_pipeline.svg.errors import StyleError

MAX_RULES = 500  # in one sheet: every element is compared with every rule

_COMMENT = re.compile(r"/\*.*?(?:\*/|$)|<!--|-->", re.DOTALL)
_STATEMENT = re.compile(r"@(?:charset|import|namespace)\b[^;{]*;?")
_BLOCK = re.compile(r"@(?:-\w+-)?(?:font-face|keyframes)\b[^{}@;]*+\{(?:[^{}]++|\{[^{}]*+\})*+\}")
_COMPOUND = re.compile(r"(\*|[A-Za-z][\w-]*)?((?:[.#][\w-]+)*)")
_INTERACTIVE = re.compile(r":(?:hover|active|focus|visited|link|target)\b")


class Compound(NamedTuple):
    """Compound selector: a tag or `*`, with `.class` and `#id` names. Also describes an element."""

    tag: str
    names: frozenset[str]


class Rule(NamedTuple):
    """One selector with its declarations; rules apply in ascending order of specificity."""

    specificity: tuple[int, int, int]
    subject: Compound
    ancestors: tuple[Compound, ...]
    """Required ancestors, the innermost first."""
    declarations: dict[str, str]


def parse_declarations(text: str) -> dict[str, str]:
    """Return `{"fill": "#F00", "stroke": "none"}` for `fill:#F00; stroke : none`.

    The shorthand `marker` becomes its three properties.
    """
    found = {}
    for declaration in _COMMENT.sub(" ", text).split(";"):
        name, colon, value = declaration.partition(":")
        name, value = name.strip().lower(), value.replace("!important", "").strip()
        if colon and value:
            names = ("marker-start", "marker-mid", "marker-end") if name == "marker" else (name,)
            found.update(dict.fromkeys(names, value))
    return found


def parse_rules(sheet: str) -> Iterator[Rule]:
    """Yield the rules of one sheet, in order.

    Fonts, keyframes, imports and `:hover` are skipped: they do not affect a still drawing.
    Raises StyleError for any other unsupported rule, and for more than MAX_RULES rules.
    """
    sheet = _COMMENT.sub(" ", sheet)
    sheet = _BLOCK.sub(" ", _STATEMENT.sub(" ", sheet))
    blocks = sheet.split("}")
    if len(blocks) > MAX_RULES:
        raise StyleError(f"{len(blocks)} rules, more than {MAX_RULES}")

    for block in blocks:
        selectors, brace, body = block.partition("{")
        if ("{" in body) or (not brace and selectors.strip()):
            raise StyleError(f"style sheet near {block.strip()[:40]!r}")

        for selector in map(str.strip, selectors.split(",") if brace else ()):
            if not _INTERACTIVE.search(selector):
                yield _parse_rule(selector, body)


def _parse_rule(selector: str, body: str) -> Rule:
    compounds = [_parse_compound(text) for text in selector.split()]
    if not compounds:
        raise StyleError("an empty selector")

    names = "".join("".join(compound.names) for compound in compounds)
    num_tags = sum(compound.tag != "*" for compound in compounds)
    specificity = (names.count("#"), names.count("."), num_tags)
    return Rule(specificity, compounds[-1], tuple(compounds[-2::-1]), parse_declarations(body))


def _parse_compound(text: str) -> Compound:
    match = _COMPOUND.fullmatch(text)
    if match is None:
        raise StyleError(f"selector {text[:40]!r}")
    return Compound(match[1] or "*", frozenset(re.findall(r"[.#][\w-]+", match[2])))


def describe_element(tag: str, classes: str, id_: str) -> Compound:
    """Return the tag and names of an element, for comparison with selectors."""
    return Compound(tag, frozenset([*(f".{name}" for name in classes.split()), f"#{id_}"]))


def match_rules(rules: list[Rule], element: Compound, ancestors: list[Compound]) -> dict[str, str]:
    """Return the declarations that apply to an element.

    `ancestors` begins with the outermost one.
    """
    found: dict[str, str] = {}
    for rule in rules:
        if _matches(rule.subject, element) and _has_ancestors(rule.ancestors, ancestors):
            found.update(rule.declarations)
    return found


def _matches(selector: Compound, element: Compound) -> bool:
    return selector.tag in ("*", element.tag) and selector.names <= element.names


def _has_ancestors(selectors: tuple[Compound, ...], ancestors: list[Compound]) -> bool:
    outwards = reversed(ancestors)  # shared by all selectors: each continues where the last matched
    return all(any(_matches(selector, element) for element in outwards) for selector in selectors)
