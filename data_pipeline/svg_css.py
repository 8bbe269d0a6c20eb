"""The little CSS that drawings use: style sheets and style attributes → presentation attributes.

Selectors of one element (`path`, `.st0`, `#a`, `path.st0`, `*`) are understood; a sheet that needs more is
refused by name, because leaving a rule out would change the drawing in silence.
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


class Rule(NamedTuple):
    """One selector with its declarations; rules are applied in ascending order of specificity."""

    specificity: tuple[int, int, int]
    tag: str
    names: frozenset[str]  # `.class` and `#id` that the element must have
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
            match = _SIMPLE.fullmatch(selector)
            if match is None or not selector:
                raise StyleError(f"selector {selector[:40]!r}")
            tag, names = match[1] or "*", match[2]
            specificity = (names.count("#"), names.count("."), int(tag != "*"))
            yield Rule(specificity, tag, frozenset(re.findall(r"[.#][\w-]+", names)), declarations(body))


def matching(rules: list[Rule], tag: str, classes: str, id_: str) -> dict[str, str]:
    """What the rules say of one element."""
    names = {f".{name}" for name in classes.split()} | {f"#{id_}"}
    found: dict[str, str] = {}
    for rule in rules:
        if rule.tag in ("*", tag) and rule.names <= names:
            found.update(rule.declarations)
    return found
