"""Root configuration: sections of all packages, loaded from YAML, overridden by dotted paths.

Imports neither torch nor Ray, so that a wrong key or value is reported in less than two seconds.
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
from tune.config import Choice, Domain, LogUniform, SearchConfig

M = TypeVar("M", bound=BaseModel)
CONFIGS = Path(__file__).parent / "configs"


class Config(BaseModel):
    """All settings of one job. Frozen, so that the validated values are the ones that run."""

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
    def _check_moments_can_be_sharded(self) -> Self:
        kind, strategy = self.optim.kind, self.parallel.strategy
        if kind != "adamw" and strategy != "ddp":
            raise ValueError(
                f"optim.kind={kind} cannot shard its moments over the workers: "
                f"set parallel.strategy=ddp instead of {strategy}, or optim.kind=adamw"
            )
        return self

    @model_validator(mode="after")
    def _check_model_settings_agree(self) -> Self:
        if self.lora.train_embeddings and self.memory.embedding == "host":
            raise ValueError(
                "memory.embedding=host needs a frozen embedding: set lora.train_embeddings=false, "
                "or memory.embedding=device"
            )
        if self.model.attention == "flash_attention_2" and self.train.precision == "fp32":
            raise ValueError(
                "model.attention=flash_attention_2 computes in 16 bits only, not in "
                "train.precision=fp32: set train.precision=bf16, or model.attention=blockwise"
            )
        return self

    @model_validator(mode="after")
    def _check_search_space(self) -> Self:
        """Check that every choice, and both ends of every range, make a valid config."""
        steps = self.search.trial_steps or self.train.max_steps
        if self.search.space and steps is None:
            raise ValueError(
                "search.trial_steps and train.max_steps are both null: "
                "set one to the length of a trial (steps)"
            )

        without_search = self.model_dump(exclude={"search"})
        for path, domain in self.search.space.items():
            if path.startswith("search."):
                raise ValueError(
                    f"search.space.{path}: a search cannot search over its own settings; "
                    "name a path of another section"
                )
            for value in _list_extremes(domain):
                if (path, value) == ("train.precision", "auto"):
                    raise ValueError(f"search.space.{path}: name the precisions, without auto")
                try:
                    Config.model_validate(_set_path(without_search, path, value))
                except ValidationError as error:
                    raise ValueError(f"search.space: {explain_error(error, Config)}") from None
        return self


def load_config(
    source: str | Path | None, overrides: Sequence[str] | Mapping[str, Any] = ()
) -> Config:
    """Return the resolved config of a file and its overrides.

    `source` is a YAML file, the name of a shipped one, or None for the defaults. A file with
    `extends: NAME` changes only the settings that it names. `overrides` are
    `["optim.learning_rate=3e-4"]` from a shell or `{"optim.learning_rate": 3e-4}` from a search.
    Raises UserError in one sentence.
    """
    return _resolve({} if source is None else _read_yaml(source), overrides)


def override_config(config: Config, overrides: Sequence[str] | Mapping[str, Any]) -> Config:
    """Return a new config with values at dotted paths replaced; errors as in `load_config`."""
    return _resolve(config.model_dump(), overrides)


def validate_values(kind: type[M], values: Mapping[str, Any]) -> M:
    """Return a pydantic object of plain values. Raises UserError for the first wrong value."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError(explain_error(error, kind)) from None


def make_paths_absolute(config: Config) -> Config:
    """Make relative paths absolute, because Ray's workers run in other folders."""
    name = config.model.name
    paths = {
        "model.name": os.path.abspath(name) if os.path.isdir(name) else name,
        "data.shards": make_absolute(config.data.shards),
        "data.cache_dir": config.data.cache_dir and make_absolute(config.data.cache_dir),
        "train.output_dir": make_absolute(config.train.output_dir),
        "tracking.uri": resolve_uri(config.tracking).uri,
    }
    return override_config(config, paths)


def make_absolute(path: str) -> str:
    """Return the absolute path; a URI as it is."""
    return path if "://" in path else os.path.abspath(path)


def config_to_yaml(config: Config) -> str:
    """Return the resolved config as YAML, from which `load_config` makes an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def flatten_config(config: Config) -> dict[str, Any]:
    """Return all settings by dotted path: `{"optim.learning_rate": 0.0001, …}`."""
    return dict(_iterate_leaves(config.model_dump(mode="json"), ""))


def _resolve(raw: dict[str, Any], overrides: Sequence[str] | Mapping[str, Any]) -> Config:
    pairs = overrides.items() if isinstance(overrides, Mapping) else map(_parse_override, overrides)
    for path, value in pairs:
        raw = _set_path(raw, path, value)
    return validate_values(Config, raw)


def _read_yaml(source: str | Path) -> dict[str, Any]:
    """Return the sections of a file, merged over those of the file that it extends."""
    # find the file
    path = Path(source)
    shipped = CONFIGS / f"{source}.yaml"
    if not path.is_file() and shipped.is_file():
        path = shipped
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.yaml")))
        raise UserError(
            f"config {str(source)!r} not found: give a YAML file or one of the shipped {names}"
        )

    # read it
    try:
        raw = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict | None):
        raise UserError(
            f"{path} holds a {type(raw).__name__}, not sections: write them as `optim:`"
        )

    # merge
    raw = raw or {}
    parent = raw.pop("extends", None)
    return raw if parent is None else _merge_dicts(_read_yaml(parent), raw)


def _merge_dicts(parent: dict[str, Any], child: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of nested dicts in which the child's values replace the parent's."""
    merged = {**parent, **child}
    for key in parent.keys() & child.keys():
        if isinstance(parent[key], dict) and isinstance(child[key], dict):
            merged[key] = _merge_dicts(parent[key], child[key])
    return merged


def _list_extremes(domain: Domain) -> Sequence[Any]:
    """Return all choices, or both ends of a range."""
    if isinstance(domain, Choice):
        return domain.choice
    return domain.loguniform if isinstance(domain, LogUniform) else domain.uniform


def _parse_override(text: str) -> tuple[str, Any]:
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise UserError(f"override {text!r} has no value: write section.field=value")
    try:
        return path, yaml.safe_load(value)
    except yaml.YAMLError:
        return path, value


def _set_path(raw: Any, path: str, value: Any) -> dict[str, Any]:
    """Return a copy of nested dicts with the value at a dotted path replaced."""
    head, _, rest = path.partition(".")
    inner = raw.get(head) if isinstance(raw, dict) else None
    # The keys of search.space and evaluate.fields are free names, which may contain dots.
    has_free_names = head in {"space", "fields"}
    if rest and has_free_names:
        return {**raw, head: {**(inner or {}), rest: value}}
    return {**(raw or {}), head: _set_path(inner or {}, rest, value) if rest else value}


def _iterate_leaves(value: Any, path: str, depth: int = 3) -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, value) of nested dicts.

    The three levels are section, field and the names of a mapping; a deeper dict is one value.
    """
    if isinstance(value, dict) and value and depth:
        for key, inner in value.items():
            yield from _iterate_leaves(inner, f"{path}.{key}" if path else key, depth - 1)
    else:
        yield path, value
