"""Section `search` of the config."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class LogUniform(BaseModel):
    """A positive number on [low, high] whose logarithm is uniform."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    loguniform: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self.loguniform)
        return self


class Uniform(BaseModel):
    """A uniform number on [low, high]."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    uniform: tuple[float, float]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self.uniform)
        return self


class Choice(BaseModel):
    """One of the listed values."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    choice: tuple[bool | int | float | str, ...] = Field(min_length=1)


Domain = LogUniform | Uniform | Choice


def _check_order(bounds: tuple[float, float]) -> None:
    if not bounds[0] < bounds[1]:
        raise ValueError(f"the low end {bounds[0]} must be below the high end {bounds[1]}")


class SearchConfig(BaseModel):
    """Search with Ray Tune over any config path; ASHA stops bad trials early.

    ASHA: Li et al. 2020, arXiv:1810.05934.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    space: dict[str, Domain] = Field(
        default_factory=dict,
        description="config path → {loguniform: [low, high]}, {uniform: [low, high]} "
        "or {choice: [...]}",
    )
    algorithm: Literal["random", "optuna"] = Field(
        "random", description="algorithm that chooses the next trial"
    )
    num_trials: Annotated[int, Field(ge=1, le=100_000)] = Field(
        6,
        description="number of trials",
        json_schema_extra={"counterpart": "TuneConfig.num_samples"},
    )
    workers_per_trial: Annotated[int, Field(ge=1, le=4096)] = Field(
        1,
        description="training workers of one trial; gradient accumulation keeps the job's "
        "global batch, its steps rounded down, at least 1",
    )
    max_concurrent: Annotated[int, Field(ge=1, le=10_000)] = Field(
        1,
        description="number of trials that run at the same time",
        json_schema_extra={"counterpart": "TuneConfig.max_concurrent_trials"},
    )
    grace_steps: Annotated[int, Field(ge=1)] = Field(
        10,
        description="optimizer steps of every trial before ASHA may stop it (steps)",
        json_schema_extra={"counterpart": "ASHAScheduler.grace_period"},
    )
    reduction_factor: Annotated[float, Field(gt=1)] = Field(
        2.0,
        description="at each rung the best 1/reduction_factor of the trials continue",
        json_schema_extra={"counterpart": "ASHAScheduler.reduction_factor"},
    )
    trial_steps: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="optimizer steps of a full trial (steps); null: train.max_steps",
        json_schema_extra={"counterpart": "ASHAScheduler.max_t"},
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="seed of the search")
