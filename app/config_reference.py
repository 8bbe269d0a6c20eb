"""Error messages of a configuration, and its reference in Markdown.

Every function takes the root model as an argument, so that this file imports no section.
"""

import difflib
import inspect
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

_TYPE_NAMES = {
    "null": "null",
    "string": "text",
    "boolean": "true, false",
    "integer": "whole number",
    "object": "mapping",
}
_WITHOUT_KEY = {
    "logging_steps": "every step is logged",
    "packing": "examples are always packed into sequences of data.sequence_tokens",
    "resume_from_checkpoint": "a job with the same train.run_name resumes by itself, and "
    "lora.init_from names the adapter that a new job starts from",
    "dataloader_num_workers": "Ray Data runs as many data tasks as data.cpus_per_task allows",
    "load_best_model_at_end": "the best weights are always restored at the end",
}
"""Names of transformers' and TRL's settings that need no key here, each with the reason."""
_MIN_SIMILARITY = 0.6  # of a wrong key and the key that the message suggests, by difflib
_BOUNDS = (
    ("exclusiveMinimum", ">"),
    ("minimum", "≥"),
    ("exclusiveMaximum", "<"),
    ("maximum", "≤"),
)


def render_reference(root: type[BaseModel]) -> str:
    """Return a Markdown table per section: default, allowed values, counterpart, meaning."""
    lines = []
    for section, owner in _sections(root):
        lines += [f"## {section}", "", inspect.cleandoc(owner.__doc__ or ""), ""]
        lines += ["| field | default | allowed | name in other libraries | meaning |"]
        lines += ["| --- | --- | --- | --- | --- |"]
        for name, field in owner.model_fields.items():
            cells = (
                f"`{section}.{name}`",
                f"`{_show_default(field)}`",
                _allowed_values(owner, name),
                ", ".join(f"`{counterpart}`" for counterpart in _counterparts(field)),
                field.description or "",
            )
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def explain_error(error: ValidationError, root: type[BaseModel]) -> str:
    """Return one sentence for the first error: path, value, allowed values, nearest valid name."""
    errors = error.errors(include_url=False)
    first = errors[0]
    if first["loc"][:2] == ("search", "space"):
        # There is an error for each kind of range: the value error is of the kind that was meant.
        first = next((each for each in errors if each["type"] == "value_error"), first)
    parts = [str(part) for part in first["loc"]]
    path = ".".join(parts)

    if parts[:2] == ["search", "space"] and first["type"] != "value_error":
        owner, name = _locate(parts[:2], root)
        forms = _allowed_values(owner, name).removeprefix("mapping of ") if owner and name else ""
        return f"search.space.{parts[2]} is not a range of values; allowed: {forms}"
    if first["type"] == "extra_forbidden":
        # a wrong section holds its keys: name the first of them
        if isinstance(first["input"], dict) and first["input"]:
            path = f"{path}.{next(iter(first['input']))}"
        return f"{path} is not a setting; {_suggest(path, root)}"
    if first["type"] == "model_type":
        return f"{path}={first['input']!r}: {path} is a section; {_suggest(path, root)}"
    if first["type"] == "value_error":
        message = str(first["ctx"]["error"])
        named = ".".join(part for part in parts if "function-after" not in part)
        return f"{named}: {message}" if named else message

    owner, name = _locate(parts, root)
    allowed = ""
    if owner and name:
        allowed = f"; allowed: {_allowed_values(owner, name).replace('`', '')}"
    return f"{path}={first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}{allowed}"


def _sections(root: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    for section, info in root.model_fields.items():
        owner = info.annotation
        if isinstance(owner, type) and issubclass(owner, BaseModel):
            yield section, owner


def _counterparts(field: FieldInfo) -> list[str]:
    """Return the names of a field in other libraries, such as `TrainingArguments.max_steps`."""
    extra = field.json_schema_extra
    names = str(extra.get("counterpart", "")) if isinstance(extra, dict) else ""
    return [name for name in names.split(", ") if name]


def _suggest(path: str, root: type[BaseModel]) -> str:
    """Return the key to use: of a counterpart, of another section, or with the nearest name."""
    name = path.split(".")[-1]
    keys = list(root.model_fields)
    same_name: list[str] = []
    for section, owner in _sections(root):
        for field_name, field in owner.model_fields.items():
            keys.append(f"{section}.{field_name}")
            if field_name == name:
                same_name.append(keys[-1])
            for counterpart in _counterparts(field):
                if counterpart.split(".")[-1] == name and field_name != name:
                    return f"{counterpart} is called {keys[-1]} here"

    if name in _WITHOUT_KEY:
        return _WITHOUT_KEY[name]
    if path in root.model_fields:
        return f"write {path}.KEY=value"
    nearest = same_name or difflib.get_close_matches(path, keys, n=1, cutoff=_MIN_SIMILARITY)
    if not nearest:
        return "`python -m app config docs` lists all settings"
    return f"did you mean {nearest[0]}?"


def _show_default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    value = list(default) if isinstance(default, tuple) else default
    text = yaml.safe_dump(value, default_flow_style=True)
    return text.removesuffix("\n").removesuffix("\n...").replace("\n", " ")


def _locate(
    parts: list[str], root: type[BaseModel]
) -> tuple[type[BaseModel], str] | tuple[None, None]:
    """Return the section and the field in which an error lies."""
    owner: Any = root
    for part in parts:
        info: FieldInfo | None = owner.model_fields.get(part)
        if info is None:
            return None, None
        if not (isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)):
            return owner, part
        owner = info.annotation
    return None, None


def _allowed_values(owner: type[BaseModel], name: str) -> str:
    """Return the domain of a field for a reader, from its JSON schema."""
    schema = owner.model_json_schema()
    return _describe_domain(schema["properties"][name], schema.get("$defs", {}))


def _describe_domain(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "$ref" in schema:
        return _describe_domain(definitions[schema["$ref"].split("/")[-1]], definitions)
    if "anyOf" in schema:
        return " or ".join(_describe_domain(option, definitions) for option in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"

    kind = schema.get("type", "value")
    if kind == "array":
        item = schema.get("items") or schema["prefixItems"][0]
        return f"list of {_describe_domain(item, definitions)}"
    if kind == "object":
        return _describe_mapping(schema, definitions)
    bounds = [f"{symbol} {schema[key]}" for key, symbol in _BOUNDS if key in schema]
    return " ".join([_TYPE_NAMES.get(kind, kind), ", ".join(bounds)]).strip()


def _describe_mapping(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "properties" not in schema:
        return f"mapping of {_describe_domain(schema['additionalProperties'], definitions)}"
    return " ".join(
        f"{{{key}: {_describe_domain(schema['properties'][key], definitions)}}}"
        for key in schema["required"]
    )
