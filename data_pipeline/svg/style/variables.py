"""CSS variables: custom properties such as `--accent`, and their uses `var(--accent, red)`."""

import re
from typing import Any

import tinycss2

from data_pipeline.svg.errors import StyleError

MAX_VALUE = 10_000  # characters of a value, before and after its variables are replaced
MAX_CHAIN = 50  # variables of one element that refer to each other

VARIABLE = re.compile(r"\bvar\s*\(", re.IGNORECASE)
_NAME = re.compile(r"--[\w-]+")


def compute_variables(own: dict[str, str], inherited: dict[str, str]) -> dict[str, str]:
    """Return the inherited variables and those of an element, which may refer to each other.

    Variables in a circle have no value. Raises StyleError.
    """
    variables = {name: value for name, value in inherited.items() if name not in own}
    pending = dict(own)

    def compute(name: str, depth: int) -> None:
        if depth > MAX_CHAIN:
            raise StyleError(f"more than {MAX_CHAIN} variables that refer to each other")
        text = pending.pop(name)
        for other in _NAME.findall(text):
            if other in pending:
                compute(other, depth + 1)
        value = substitute_variables(text, variables)
        if value is not None:
            variables[name] = value

    while pending:
        compute(next(iter(pending)), 1)
    return variables


def substitute_variables(value: str, variables: dict[str, str]) -> str | None:
    """Return the value with each `var()` replaced, or None if a variable has no value.

    >>> substitute_variables("rgb(var(--red), 0, var(--blue, 9))", {"--red": "255"})
    'rgb(255, 0, 9)'

    Raises StyleError for more than MAX_VALUE characters.
    """
    if not VARIABLE.search(value):
        return value
    if len(value) > MAX_VALUE:
        raise StyleError(f"a value of {len(value):,} characters with variables")
    text = _substitute(tinycss2.parse_component_value_list(value, skip_comments=True), variables)
    return None if text is None else text.strip()


def _substitute(tokens: list[Any], variables: dict[str, str]) -> str | None:
    parts: list[str] = []
    num_characters = 0
    for token in tokens:
        part: str | None
        if token.type != "function":
            part = tinycss2.serialize([token])
        elif token.lower_name == "var":
            part = _find_variable(token.arguments, variables)
        else:
            inner = _substitute(token.arguments, variables)
            part = None if inner is None else f"{token.name}({inner})"

        if part is None:
            return None
        num_characters += len(part)
        if num_characters > MAX_VALUE:
            raise StyleError(f"variables make a value longer than {MAX_VALUE:,} characters")
        parts.append(part)
    return "".join(parts)


def _find_variable(arguments: list[Any], variables: dict[str, str]) -> str | None:
    """Return the value of `--name`, or the fallback of `--name, fallback`."""
    words = [token for token in arguments if token.type != "whitespace"]
    name = words[0].value if words and words[0].type == "ident" else ""
    if name in variables:
        return variables[name]
    if "," not in arguments:
        return None
    return _substitute(arguments[arguments.index(",") + 1 :], variables)
