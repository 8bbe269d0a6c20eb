"""The one configuration object: its owners' sections, loaded from YAML, overridden by dotted paths, explained.

Imports neither torch nor Ray, so that every wrong key or value is named in well under two seconds.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.config_reference import explain_error
from app.errors import UserError
from app.evaluation.config import EvaluateConfig
from app.gemma.config import LoraConfig, MemoryConfig, ModelConfig, QuantizationConfig
from app.tracking import TrackingConfig, resolve_uri
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
                    raise ValueError(f"search.space: {explain_error(error, Config)}") from None
        return self


def load_config(
    source: str | Path | None, overrides: Sequence[str] | Mapping[str, Any] = ()
) -> Config:
    """The resolved config: `source` (a YAML file, the name of a shipped one, or None for the defaults) with
    overrides on top, either `["optim.learning_rate=3e-4"]` from a shell or `{"optim.learning_rate": 3e-4}` from
    a search. A file that says `extends: NAME` changes only what it names. Raises UserError in one sentence.
    """
    return _resolve({} if source is None else _read(source), overrides)


def override_config(config: Config, overrides: Sequence[str] | Mapping[str, Any]) -> Config:
    """A new config with the dotted paths replaced; the same rules and errors as `load`."""
    return _resolve(config.model_dump(), overrides)


def validate_values(kind: type[M], values: Mapping[str, Any]) -> M:
    """A pydantic object from plain values. Raises UserError in one sentence for the first that is wrong."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError(explain_error(error, kind)) from None


def make_paths_absolute(config: Config) -> Config:
    """Relative paths made absolute: Ray's workers run in other folders."""
    name = config.model.name
    paths = {
        "model.name": os.path.abspath(name) if os.path.isdir(name) else name,
        "data.shards": _absolute(config.data.shards),
        "data.cache_dir": config.data.cache_dir and _absolute(config.data.cache_dir),
        "train.output_dir": _absolute(config.train.output_dir),
        "tracking.uri": resolve_uri(config.tracking).uri,
    }
    return override_config(config, paths)


def config_to_yaml(config: Config) -> str:
    """The resolved config as YAML that `load` reads back to an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def flatten_config(config: Config) -> dict[str, Any]:
    """`{"optim.learning_rate": 0.0001, …}` for every leaf."""
    return dict(_leaves(config.model_dump(mode="json"), ""))


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(path)


def _resolve(raw: dict[str, Any], overrides: Sequence[str] | Mapping[str, Any]) -> Config:
    pairs = overrides.items() if isinstance(overrides, Mapping) else map(_parse_override, overrides)
    for path, value in pairs:
        raw = _with(raw, path, value)
    return validate_values(Config, raw)


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
