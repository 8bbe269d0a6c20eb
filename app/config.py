"""Root configuration: sections of all packages, loaded from YAML, overridden by dotted paths.

Imports neither torch nor Ray, so that a wrong key or value is reported in less than two seconds.
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.config_files import read_config_file
from app.config_reference import explain_error
from app.errors import UserError
from app.evaluation.config import EvaluateConfig
from app.gemma.config import LoraConfig, MemoryConfig, ModelConfig, QuantizationConfig
from app.overrides import parse_override, require_no_boolean
from app.storage import require_text
from app.tracking import REGISTRY_SCHEME, TrackingConfig, resolve_uri
from app.training.config import OptimConfig, ParallelConfig, ScalingConfig, TrainConfig
from app.yaml_text import parse_yaml
from data_pipeline.config import DataConfig
from data_pipeline.home import expand_home
from data_pipeline.masking import mask_secrets
from tune.config import SearchConfig
from tune.space import list_corners

M = TypeVar("M", bound=BaseModel)


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

    @model_validator(mode="before")
    @classmethod
    def _check_no_number_is_boolean(cls, raw: Any) -> Any:
        require_no_boolean(raw, cls)
        return raw

    @model_validator(mode="after")
    def _check_numbers_are_finite(self) -> Self:
        for path, value in flatten_config(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{path}={value} is not finite: write a finite number")
        return self

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
    def _check_watched_model_is_whole(self) -> Self:
        watch_captions, strategy = self.evaluate.watch_captions, self.parallel.strategy
        if watch_captions and strategy != "ddp":
            raise ValueError(
                f"evaluate.watch_captions={watch_captions} needs a whole model on a worker: "
                f"set it to 0, or parallel.strategy=ddp instead of {strategy}"
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
        """Check that the corners of the space make valid configs, also together."""
        steps = self.search.trial_steps or self.train.max_steps
        if self.search.space and steps is None:
            raise ValueError(
                "search.trial_steps and train.max_steps are both null: "
                "set one to the length of a trial (steps)"
            )

        for path in self.search.space:
            if path.startswith("search."):
                raise ValueError(
                    f"search.space.{path}: a search cannot search over its own settings; "
                    "name a path of another section"
                )
        without_search = self.model_dump(exclude={"search"})
        for corner in list_corners(self.search.space):
            if corner.get("train.precision") == "auto":
                raise ValueError("search.space.train.precision: name the precisions, without auto")
            raw = without_search
            for path, value in corner.items():
                raw = _set_path(raw, path, value)
            try:
                Config.model_validate(raw)
            except ValidationError as error:
                reason = explain_error(error, Config)
                values = ", ".join(f"{path}={value}" for path, value in corner.items())
                raise ValueError(f"search.space: {reason} (with {values})") from None
        return self


def load_config(
    source: str | Path | None, overrides: Sequence[str] | Mapping[str, Any] = ()
) -> Config:
    """Return the resolved config of a file and its overrides.

    `source` is a YAML file, the URI of one without `extends`, the name of a shipped one, or None
    for the defaults. A file with `extends: NAME` changes only the settings that it names; NAME is a
    file, relative to the folder of the file that names it, or a shipped one. `overrides` are
    `["optim.learning_rate=3e-4"]` from a shell or `{"optim.learning_rate": 3e-4}` from a search.
    Raises UserError in one sentence.
    """
    if "://" in str(source):
        config = config_from_yaml(require_text(str(source)), str(source))
        return override_config(config, overrides)
    return _resolve({} if source is None else read_config_file(source), overrides)


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
    """Make relative paths absolute, because Ray's workers run in other folders; expand `~`."""
    paths = {
        "model.name": make_absolute(config.model.name, only_folder=True),
        "lora.init_from": config.lora.init_from and make_absolute(config.lora.init_from),
        "data.shards": make_absolute(config.data.shards),
        "data.cache_dir": config.data.cache_dir and make_absolute(config.data.cache_dir),
        "train.output_dir": make_absolute(config.train.output_dir),
        "tracking.uri": resolve_uri(config.tracking).uri,
        "evaluate.clip_model": config.evaluate.clip_model
        and make_absolute(config.evaluate.clip_model, only_folder=True),
    }
    for path, value in paths.items():
        if "***" in str(value):
            raise UserError(
                f"{path}={value!r} was printed without its credentials: "
                "give the whole value as an override"
            )
    return override_config(config, paths)


def make_absolute(path: str, *, only_folder: bool = False) -> str:
    """Return the absolute path, with `~` expanded; a URI as it is.

    With `only_folder`, a relative path that is no folder is a name. Raises DataError if `~user`
    names no user.
    """
    expanded = expand_home(path)
    is_uri = "://" in path or path.startswith(REGISTRY_SCHEME)
    if is_uri or (only_folder and expanded == path and not os.path.isdir(path)):
        return path
    return os.path.abspath(expanded)


def config_to_yaml(config: Config) -> str:
    """Return the resolved config as YAML, from which `load_config` makes an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def config_from_yaml(text: str, name: str) -> Config:
    """Return the config of `config_to_yaml`. Raises UserError, which calls the text `name`."""
    return validate_values(Config, parse_yaml(text, name))


def mask_config(config: Config) -> Config:
    """Return the config without credentials."""
    return Config.model_validate_json(mask_secrets(config.model_dump_json()))


def flatten_config(config: Config) -> dict[str, Any]:
    """Return all settings by dotted path: `{"optim.learning_rate": 0.0001, …}`."""
    return dict(_iterate_leaves(config.model_dump(mode="json"), ""))


def _resolve(raw: dict[str, Any], overrides: Sequence[str] | Mapping[str, Any]) -> Config:
    pairs: Iterable[tuple[str, Any]]
    if isinstance(overrides, Mapping):
        pairs = overrides.items()
    else:
        pairs = [parse_override(text, Config) for text in overrides]
    for path, value in pairs:
        raw = _set_path(raw, path, value)
    return validate_values(Config, raw)


def _set_path(raw: Any, path: str, value: Any) -> dict[str, Any]:
    """Return a copy of nested dicts with the value at a dotted path replaced."""
    if not isinstance(raw, dict | None):
        raise UserError(f"{path} cannot be set in {raw!r}, which has no settings: correct the path")
    values = raw or {}
    head, _, rest = path.partition(".")
    if not rest:
        return {**values, head: value}

    inner = values.get(head)
    # The keys of search.space and evaluate.fields are free names, which may contain dots.
    has_free_names = head in {"space", "fields", "targets"}
    if has_free_names and isinstance(inner, dict | None):
        return {**values, head: {**(inner or {}), rest: value}}
    return {**values, head: _set_path(inner, rest, value)}


def _iterate_leaves(value: Any, path: str, depth: int = 3) -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, value) of nested dicts.

    The three levels are section, field and the names of a mapping; a deeper dict is one value.
    """
    if isinstance(value, dict) and value and depth:
        for key, inner in value.items():
            yield from _iterate_leaves(inner, f"{path}.{key}" if path else key, depth - 1)
    else:
        yield path, value
