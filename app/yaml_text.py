"""YAML of configs and overrides, read as their author means it.

YAML 1.1 reads `010` as 8, `1:30` as 90 and `2024-01-31` as a date. Here they stay texts, which the
type of a setting reads: a whole number reads `010` as 10 and refuses `1:30`. YAML keeps the last of
two equal keys of one mapping; here they are an error.
"""

import re
from typing import Any

import yaml

from app.errors import UserError

_TAG = "tag:yaml.org,2002:"
_TEXT_NUMBER = re.compile(r"[-+]?0[0-9_]+|.*:.*")  # octal, or with digits of base 60


class _RepeatedKeyError(Exception):
    """Two keys of one mapping are equal; the message has the key and its lines."""


class _UniqueKeys(yaml.composer.Composer):
    """Composer that refuses two equal keys of one mapping. Several merges `<<` are allowed."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        first_lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in first_lines and key.tag != f"{_TAG}merge":
                raise _RepeatedKeyError(
                    f"line {line}: the key {name!r} is already in line {first_lines[name]}, in the "
                    "same mapping: keep one of them"
                )
            first_lines[name] = line
        return node


class _TextLoader(_UniqueKeys, yaml.BaseLoader):
    """Loader that leaves every value a text."""


class _Loader(_UniqueKeys, yaml.SafeLoader):
    """Loader of texts, numbers, booleans and null."""


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int | str:
    is_text = _TEXT_NUMBER.fullmatch(node.value)
    return str(node.value) if is_text else loader.construct_yaml_int(node)


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float | str:
    is_text = _TEXT_NUMBER.fullmatch(node.value)
    return str(node.value) if is_text else loader.construct_yaml_float(node)


def _construct_text(loader: _Loader, node: yaml.ScalarNode) -> str:
    return str(node.value)


_Loader.add_constructor(f"{_TAG}int", _construct_int)
_Loader.add_constructor(f"{_TAG}float", _construct_float)
_Loader.add_constructor(f"{_TAG}timestamp", _construct_text)


def parse_yaml(text: str, name: str, *, is_text: bool = False) -> Any:
    """Return the value of a YAML text; with `is_text` all its scalars are texts.

    Raises UserError, which calls the text `name`, if it is not YAML, or if a mapping has two equal
    keys.
    """
    try:
        return yaml.load(text, _TextLoader if is_text else _Loader)
    except _RepeatedKeyError as error:
        raise UserError(f"{name}, {error}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{name} is not YAML: {' '.join(str(error).split())}") from None
