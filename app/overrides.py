"""Overrides of a shell: `section.field=value`, whose text is read by the type of the field.

Every function takes the root model as an argument, so that this file imports no section.
"""

import json
from collections.abc import Iterator
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel

from app.errors import UserError
from app.yaml_text import parse_yaml


def is_override(text: str, root: type[BaseModel]) -> bool:
    """Return whether the text is `section.field=value`, and not the path of a file."""
    path, equals, _ = text.partition("=")
    section, dot, _ = path.partition(".")
    return bool(equals and dot) and section in root.model_fields


def parse_override(text: str, root: type[BaseModel]) -> tuple[str, Any]:
    """Return (path, value) of `section.field=value`.

    The value of a text setting is the text as it is; `null` is None if the setting allows it. Other
    single values are JSON, such as 3e-4, true or null. Lists, mappings and sections are YAML. The
    validation of the root model refuses a value of the wrong type.
    """
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise UserError(f"override {text!r} has no value: write section.field=value")

    kinds = set(_list_kinds(_find_type(path.split("."), root)))
    if value == "null" and NoneType in kinds:
        return path, None
    if kinds & {tuple, dict}:
        # Items of a list of texts stay texts. search.space also holds numbers.
        return path, _parse_yaml(text, value, is_text=kinds <= {tuple, dict, str})
    if str in kinds:
        return path, value
    try:
        return path, json.loads(value)
    except ValueError:
        return path, value


def require_no_boolean(raw: Any, root: type[BaseModel]) -> None:
    """Raise ValueError if a number is given as true or false, which pydantic takes for 1 and 0."""
    for section, values in raw.items() if isinstance(raw, dict) else ():
        for name, value in values.items() if isinstance(values, dict) else ():
            if not isinstance(value, bool):
                continue
            kinds = set(_list_kinds(_find_type([section, name], root)))
            if kinds & {int, float} and bool not in kinds:
                raise ValueError(
                    f"{section}.{name}={str(value).lower()}: this is no number (YAML reads yes and "
                    "on as true, no and off as false); write a number"
                )


def _find_type(parts: list[str], owner: Any) -> Any:
    """Return the type of the setting at a path; a model for a section; None if there is none."""
    for part in parts:
        if not (isinstance(owner, type) and issubclass(owner, BaseModel)):
            # the keys of a mapping are free names, which may contain dots
            return get_args(owner)[1] if get_origin(owner) is dict else None
        info = owner.model_fields.get(part)
        if info is None:
            return None
        owner = info.annotation
    return owner


def _list_kinds(annotation: Any) -> Iterator[type]:
    """Yield the classes in a type: tuple and str for `tuple[str, ...]`, dict for a model."""
    origin = get_origin(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from (dict, NoneType)
    elif origin is Literal:
        yield from map(type, get_args(annotation))
    elif origin is not None:
        if origin in (tuple, dict):
            yield origin
        for inner in get_args(annotation):
            yield from _list_kinds(inner)
    elif isinstance(annotation, type):
        yield annotation


def _parse_yaml(text: str, value: str, *, is_text: bool) -> Any:
    """Return a list or mapping; with `is_text` its items stay text. Raises UserError for others."""
    parsed = parse_yaml(value, f"override {text!r}", is_text=is_text)
    end = max(
        token.end_mark.index
        for token in yaml.scan(value)
        if not isinstance(token, yaml.StreamEndToken)
    )
    if value[end:].strip():
        raise UserError(
            f"override {text!r} has a comment: YAML ignores {value[end:].strip()!r}; quote the #"
        )
    return parsed
