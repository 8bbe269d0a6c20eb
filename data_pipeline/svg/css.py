"""The little CSS that drawings use: style sheets and style attributes → presentation attributes.

Selectors of one element (`path`, `.st0`, `#a`, `path.st0`, `*`), inside of others (`#a .st0`) or not, are understood;
a sheet that needs more is refused by name, because leaving a rule out would change the drawing in silence.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

MAX_RULES = 500  # every element is compared with every rule

_COMMENT = re.compile(r"/\*.*?(?:\*/|$)|<!--|-->", re.DOTALL)
_STATEMENT = re.compile(r"@(?:charset|import|namespace)\b[^;{]*;?")
_BLOCK = re.compile(r"@(?:-\w+-)?(?:font-face|keyframes)\b[^{}@;]*+\{(?:[^{}]++|\{[^{}]*+\})*+\}")
_SIMPLE = re.compile(r"(\*|[A-Za-z][\w-]*)?((?:[.#][\w-]+)*)")
_INTERACTIVE = re.compile(r":(?:hover|active|focus|visited|link|target)\b")


class StyleError(ValueError):
    """A style sheet uses a selector or at-rule that is not understood."""


class Compound(NamedTuple):
    """What one element must be: its tag or `*`, and its `.class` and `#id`."""

    tag: str
    names: frozenset[str]


class Rule(NamedTuple):
    """One selector with its declarations; rules are applied in ascending order of specificity."""

    specificity: tuple[int, int, int]
    element: Compound
    around: tuple[Compound, ...]  # elements that it must be inside of, the innermost first
    declarations: dict[str, str]


def declarations(text: str) -> dict[str, str]:
    """`fill:#F00; stroke : none` → {"fill": "#F00", "stroke": "none"}; `marker` is spelled out."""
    found = {}
    for declaration in _COMMENT.sub(" ", text).split(";"):
        name, colon, value = declaration.partition(":")
        name, value = name.strip().lower(), value.replace("!important", "").strip()
        if colon and value:
            names = ("marker-start", "marker-mid", "marker-end") if name == "marker" else (name,)
            found.update(dict.fromkeys(names, value))
    return found


def parse_rules(sheet: str) -> Iterator[Rule]:
    """The rules of one sheet, in order. Fonts, keyframes, imports and `:hover` do not touch a still drawing.

    Raises StyleError.
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
            if _INTERACTIVE.search(selector):
                continue
            compounds = [_compound(words) for words in selector.split()]
            if not compounds:
                raise StyleError("an empty selector")
            names = "".join("".join(compound.names) for compound in compounds)
            tags = sum(compound.tag != "*" for compound in compounds)
            specificity = (names.count("#"), names.count("."), tags)
            yield Rule(specificity, compounds[-1], tuple(compounds[-2::-1]), declarations(body))


def _compound(text: str) -> Compound:
    match = _SIMPLE.fullmatch(text)
    if match is None:
        raise StyleError(f"selector {text[:40]!r}")
    return Compound(match[1] or "*", frozenset(re.findall(r"[.#][\w-]+", match[2])))


def compound_of(tag: str, classes: str, id_: str) -> Compound:
    """What an element is."""
    return Compound(tag, frozenset([*(f".{name}" for name in classes.split()), f"#{id_}"]))


def matching(rules: list[Rule], element: Compound, around: list[Compound]) -> dict[str, str]:
    """What the rules say of one element inside of others, the outermost first."""
    found: dict[str, str] = {}
    for rule in rules:
        if _is(rule.element, element) and _is_inside(rule.around, around):
            found.update(rule.declarations)
    return found


def _is(wanted: Compound, element: Compound) -> bool:
    return wanted.tag in ("*", element.tag) and wanted.names <= element.names


def _is_inside(wanted: tuple[Compound, ...], around: list[Compound]) -> bool:
    outwards = reversed(around)
    return all(any(_is(compound, element) for element in outwards) for compound in wanted)
