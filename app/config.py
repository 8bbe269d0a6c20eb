"""The one configuration object: its owners' sections, loaded from YAML, overridden by dotted paths, explained.

Imports neither torch nor Ray, so that every wrong key or value is named in well under two seconds.
"""

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from app.errors import UserError
from app.evaluation.config import EvaluateConfig
from app.gemma.config import LoraConfig, MemoryConfig, ModelConfig, QuantizationConfig
from app.tracking import TrackingConfig, resolve
from app.training.config import OptimConfig, ParallelConfig, ScalingConfig, TrainConfig
from data_pipeline.config import DataConfig
from tune.config import Choice, LogUniform, SearchConfig

M = TypeVar("M", bound=BaseModel)
CONFIGS = Path(__file__).parent / "configs"


class Config(BaseModel):
    """Everything that one job is told. Frozen: what was validated is what runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelConfig = Field(default_factory=ModelConfig)
    quantization: QuantizationConfig = Field(default_factory=QuantizationConfig)
    lora: LoraConfig = Field(default_factory=LoraConfig)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    memory: MemoryConfig = Field(default_factory=MemoryConfig)
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    scaling: ScalingConfig = Field(default_factory=ScalingConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    search: SearchConfig = Field(default_factory=SearchConfig)

    @model_validator(mode="after")
    def _moments_can_be_cut(self) -> Self:
        if self.optim.kind != "adamw" and self.parallel.strategy != "ddp":
            raise ValueError(
                f"optim.kind={self.optim.kind} cannot cut its moments over the workers: "
                f"set parallel.strategy=ddp instead of {self.parallel.strategy}, or optim.kind=adamw"
            )
        return self

    @model_validator(mode="after")
    def _search_is_possible(self) -> Self:
        base = self.model_dump(exclude={"search"})
        steps = self.search.trial_steps or self.train.max_steps
        if self.search.space and steps is None:
            raise ValueError(
                "search.trial_steps and train.max_steps are both null: say how long a trial is (steps)"
            )
        for path, domain in self.search.space.items():
            if isinstance(domain, Choice):
                ends: Sequence[Any] = domain.choice
            else:
                ends = domain.loguniform if isinstance(domain, LogUniform) else domain.uniform
            for value in ends:
                if path.startswith("search."):
                    raise ValueError(
                        f"search.space.{path}: a search cannot search over its own settings"
                    )
                try:
                    Config.model_validate(_with(base, path, value))
                except ValidationError as error:
                    raise ValueError(f"search.space: {_explain(error)}") from None
        return self


def load(source: str | Path | None, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Config:
    """The resolved config: `source` (a YAML file, the name of a shipped one, or None for the defaults) with
    overrides on top, either `["optim.learning_rate=3e-4"]` from a shell or `{"optim.learning_rate": 3e-4}` from
    a search. A file that says `extends: NAME` changes only what it names. Raises UserError in one sentence.
    """
    return _resolve({} if source is None else _read(source), overrides)


def override(config: Config, overrides: Sequence[str] | Mapping[str, Any]) -> Config:
    """A new config with the dotted paths replaced; the same rules and errors as `load`."""
    return _resolve(config.model_dump(), overrides)


def validated(kind: type[M], values: Mapping[str, Any]) -> M:
    """A pydantic object from plain values. Raises UserError in one sentence for the first that is wrong."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(error, kind)) from None


def absolute(config: Config) -> Config:
    """Relative paths made absolute: Ray's workers run in other folders."""
    name = config.model.name
    paths = {
        "model.name": os.path.abspath(name) if os.path.isdir(name) else name,
        "data.shards": _absolute(config.data.shards),
        "data.cache": config.data.cache and _absolute(config.data.cache),
        "train.output_dir": _absolute(config.train.output_dir),
        "tracking.uri": resolve(config.tracking).uri,
    }
    return override(config, paths)


def to_yaml(config: Config) -> str:
    """The resolved config as YAML that `load` reads back to an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def flat(config: Config) -> dict[str, Any]:
    """`{"optim.learning_rate": 0.0001, …}` for every leaf."""
    return dict(_leaves(config.model_dump(mode="json"), ""))


def reference() -> str:
    """Markdown reference of every field: default, allowed values, meaning with its unit."""
    lines = []
    for section, info in Config.model_fields.items():
        owner = info.annotation
        assert isinstance(owner, type)
        assert issubclass(owner, BaseModel)
        lines += [f"## {section}", "", (owner.__doc__ or "").strip(), ""]
        lines += ["| field | default | allowed | meaning |", "| --- | --- | --- | --- |"]
        for name, field in owner.model_fields.items():
            default = field.get_default(call_default_factory=True)
            shown = yaml.safe_dump(
                list(default) if isinstance(default, tuple) else default, default_flow_style=True
            )
            shown = shown.removesuffix("\n").removesuffix("\n...").replace("\n", " ")
            meaning = field.description or ""
            lines.append(
                f"| `{section}.{name}` | `{shown}` | {_allowed(owner, name)} | {meaning} |"
            )
        lines.append("")
    return "\n".join(lines)


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(path)


def _resolve(raw: dict[str, Any], overrides: Sequence[str] | Mapping[str, Any]) -> Config:
    pairs = overrides.items() if isinstance(overrides, Mapping) else map(_parse_override, overrides)
    for path, value in pairs:
        raw = _with(raw, path, value)
    return validated(Config, raw)


def _read(source: str | Path) -> dict[str, Any]:
    path = Path(source)
    shipped = CONFIGS / f"{source}.yaml"
    if not path.is_file() and shipped.is_file():
        path = shipped
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.yaml")))
        raise UserError(
            f"config {str(source)!r} not found: give a YAML file or one of the shipped {names}"
        )
    try:
        raw = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict | None):
        raise UserError(
            f"{path} holds a {type(raw).__name__}, not sections: write `optim:` and so on"
        )
    raw = raw or {}
    parent = raw.pop("extends", None)
    return raw if parent is None else _merged(_read(parent), raw)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {key: _merged(below[key], above[key]) for key in below.keys() & above.keys()
            if isinstance(below[key], dict) and isinstance(above[key], dict)}  # fmt: skip
    return {**below, **above, **both}


def _parse_override(text: str) -> tuple[str, Any]:
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise UserError(f"override {text!r} has no value: write section.field=value")
    try:
        return path, yaml.safe_load(value)
    except yaml.YAMLError:
        return path, value


def _with(raw: Any, path: str, value: Any) -> dict[str, Any]:
    """A copy of nested dicts with the value at a dotted path replaced."""
    head, _, rest = path.partition(".")
    inner = raw.get(head) if isinstance(raw, dict) else None
    # Below a mapping of free names (search.space, evaluate.fields) the rest of the path is one key.
    whole = head in {"space", "fields"}
    if rest and whole:
        return {**raw, head: {**(inner or {}), rest: value}}
    return {**(raw or {}), head: _with(inner or {}, rest, value) if rest else value}


def _leaves(value: Any, path: str, depth: int = 3) -> Iterator[tuple[str, Any]]:
    """Section, field, and the names of a mapping: below these, a value is a value."""
    if isinstance(value, dict) and value and depth:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else key, depth - 1)
    else:
        yield path, value


def _explain(error: ValidationError, kind: type[BaseModel] = Config) -> str:
    """One sentence for the first thing that is wrong: path, value, what is allowed, nearest valid name."""
    first = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in first["loc"])
    if first["loc"][:2] == ("search", "space") and first["type"] != "value_error":
        forms = _allowed(SearchConfig, "space").removeprefix("mapping of ")
        return f"search.space.{first['loc'][2]} is not a range of values; allowed: {forms}"
    if first["type"] == "extra_forbidden":
        return f"{path} is not a setting{_nearest(path)}"
    if first["type"] == "value_error":
        message = str(first["ctx"]["error"])
        named = ".".join(str(part) for part in first["loc"] if "function-after" not in str(part))
        return f"{named}: {message}" if named else message
    owner, name = _locate([str(part) for part in first["loc"]], kind)
    allowed = f"; allowed: {_allowed(owner, name).replace('`', '')}" if owner and name else ""
    return f"{path}={first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}{allowed}"


def _nearest(path: str) -> str:
    names = [*Config.model_fields]
    for section, info in Config.model_fields.items():
        owner: Any = info.annotation
        names += [f"{section}.{name}" for name in owner.model_fields]
    same_name = [name for name in names if name.split(".")[-1] == path.split(".")[-1]]
    return f"; did you mean {(same_name or difflib.get_close_matches(path, names, n=1, cutoff=0.0))[0]}?"


def _locate(parts: list[str], kind: type[BaseModel]) -> tuple[type[BaseModel] | None, str | None]:
    """The section and field that an error's location lies in."""
    owner: Any = kind
    for part in parts:
        info: FieldInfo | None = owner.model_fields.get(part)
        if info is None:
            return None, None
        if not (isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)):
            return owner, part
        owner = info.annotation
    return None, None


def _allowed(owner: type[BaseModel], name: str) -> str:
    """Human-readable domain of a field, from its JSON schema."""
    schema = owner.model_json_schema()
    return _domain(schema["properties"][name], schema.get("$defs", {}))


def _domain(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "$ref" in schema:
        return _domain(definitions[schema["$ref"].split("/")[-1]], definitions)
    if "anyOf" in schema:
        return " or ".join(_domain(option, definitions) for option in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = schema.get("type", "value")
    if kind == "array":
        return f"list of {_domain(schema.get('items') or schema['prefixItems'][0], definitions)}"
    if kind == "object" and "properties" in schema:
        return " ".join(
            f"{{{key}: {_domain(value, definitions)}}}"
            for key, value in schema["properties"].items()
        )
    if kind == "object":
        return f"mapping of {_domain(schema['additionalProperties'], definitions)}"
    names = {
        "null": "null",
        "string": "text",
        "boolean": "true, false",
        "integer": "whole number",
        "object": "mapping",
    }
    bounds = [
        f"{symbol} {schema[key]}"
        for key, symbol in (
            ("exclusiveMinimum", ">"), ("minimum", "≥"), ("exclusiveMaximum", "<"), ("maximum", "≤")
        )
        if key in schema
    ]  # fmt: skip
    return " ".join([names.get(kind, kind), ", ".join(bounds)]).strip()
