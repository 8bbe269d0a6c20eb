"""Section `search` of the config."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tune.domain import Domain, Scalar
from tune.space import check_space, list_combinations, read_point


class SearchConfig(BaseModel):
    """Search with Ray Tune over any config path; a scheduler stops bad trials early.

    ASHA: Li et al. 2020, arXiv:1810.05934. Median stopping: Golovin et al. 2017, Google Vizier.
    Population-based training: Jaderberg et al. 2017, arXiv:1711.09846.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    space: dict[str, Domain] = Field(
        default_factory=dict,
        description="config path → {loguniform: [low, high]}, {uniform: [low, high]}, "
        "{integer: [low, high]} (log: true for a uniform logarithm), {choice: [...]}, or "
        "{equals: '2 * lora.rank'}, a value tied to other searched paths; a path with "
        "when: {path: value} is searched only if that choice was drawn",
    )
    algorithm: Literal["random", "optuna", "grid"] = Field(
        "random",
        description="algorithm that chooses the next trial: independent draws, TPE of Optuna, or "
        "all combinations of choices and whole numbers",
    )
    points: tuple[dict[str, Scalar], ...] = Field(
        (),
        description="known good values by config path, tried first; the algorithm draws the paths "
        "that a point does not name",
        json_schema_extra={"counterpart": "OptunaSearch.points_to_evaluate"},
    )
    warm_start: tuple[str, ...] = Field(
        (),
        description="earlier searches whose finished trials Optuna knows from the start: ids of "
        "their MLflow runs, or EXPERIMENT/RUN_NAME",
        json_schema_extra={"counterpart": "OptunaSearch.evaluated_rewards"},
    )
    num_trials: Annotated[int, Field(ge=1, le=100_000)] = Field(
        6,
        description="number of trials; a grid may have fewer",
        json_schema_extra={"counterpart": "TuneConfig.num_samples"},
    )
    workers_per_trial: Annotated[int, Field(ge=1, le=4096)] = Field(
        1,
        description="training workers of one trial; gradient accumulation keeps the job's "
        "global batch, its steps rounded down, at least 1",
    )
    max_concurrent: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
        None,
        description="number of trials that run at the same time; null: as many as the free CPUs "
        "and GPUs hold",
        json_schema_extra={"counterpart": "TuneConfig.max_concurrent_trials"},
    )
    retry_out_of_memory: bool = Field(
        True,
        description="start a trial that runs out of memory once more, with half the micro-batch "
        "and twice the accumulation; a trial of several workers continues from its newest "
        "checkpoint",
    )
    scheduler: Literal["asha", "asha_pause", "median", "pbt", "none"] = Field(
        "asha",
        description="rule by which bad trials end early: asha stops them at a rung; asha_pause "
        "pauses every trial at a rung and continues the best from their checkpoints; median stops "
        "a trial whose best loss is worse than the median of the other trials' means; pbt lets the "
        "worst quarter continue from checkpoints of the best, with changed values; none",
        json_schema_extra={"counterpart": "TuneConfig.scheduler"},
    )
    grace_steps: Annotated[int, Field(ge=1)] = Field(
        10,
        description="optimizer steps of every trial before the scheduler may stop it, and interval "
        "of pbt (steps); a trial's own warm-up is added to it if it is longer",
        json_schema_extra={
            "counterpart": "ASHAScheduler.grace_period, "
            "PopulationBasedTraining.perturbation_interval"
        },
    )
    reduction_factor: Annotated[float, Field(gt=1)] = Field(
        2.0,
        description="at each rung of asha the best 1/reduction_factor of the trials continue",
        json_schema_extra={"counterpart": "ASHAScheduler.reduction_factor"},
    )
    on_new_adapter: Literal["refuse", "reinitialise"] = Field(
        "refuse",
        description="if pbt searches a setting with which a trial cannot continue from another's "
        "checkpoint, such as lora.rank: refuse to start, or start a trial whose value changes "
        "again from step 0 with a new adapter",
    )
    trial_steps: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="optimizer steps of a full trial (steps); null: train.max_steps",
        json_schema_extra={"counterpart": "ASHAScheduler.max_t"},
    )
    max_total_steps: Annotated[int, Field(ge=1)] | None = Field(
        None, description="budget of optimizer steps of all trials together (steps); null: no limit"
    )
    max_hours: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="budget of wall-clock time (hours); null: no limit",
        json_schema_extra={"counterpart": "TuneConfig.time_budget_s"},
    )
    max_gpu_hours: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="budget of the GPUs of running trials times their time (hours); null: no limit",
    )
    patience: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="the search ends after this number of ended trials since the lowest loss fell "
        "(trials); null: no early end",
        json_schema_extra={"counterpart": "ExperimentPlateauStopper.patience"},
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="seed of the search")

    @property
    def pauses_trials(self) -> bool:
        """Tell whether the scheduler pauses trials and continues them from checkpoints."""
        return self.scheduler in ("asha_pause", "pbt")

    @model_validator(mode="after")
    def _check_space(self) -> Self:
        check_space(self.space)
        for number, point in enumerate(self.points, start=1):
            try:
                read_point(self.space, point)
            except ValueError as error:
                raise ValueError(f"search.points: point {number}: {error}") from None
        if len(self.points) > self.num_trials:
            raise ValueError(
                f"search.points has {len(self.points)} points, more than search.num_trials="
                f"{self.num_trials}: raise it, or remove points"
            )
        if self.algorithm == "grid":
            list_combinations(self.space, self.num_trials)
        return self

    @model_validator(mode="after")
    def _check_algorithm_and_scheduler_agree(self) -> Self:
        if self.warm_start and self.algorithm != "optuna":
            raise ValueError(
                f"search.warm_start has no use in search.algorithm={self.algorithm}: "
                "set search.algorithm=optuna, or remove it"
            )

        if self.pauses_trials and self.workers_per_trial > 1:
            raise ValueError(
                f"search.scheduler={self.scheduler} pauses trials of one worker only: set "
                f"search.workers_per_trial=1 instead of {self.workers_per_trial}, or "
                "search.scheduler=asha"
            )
        if self.pauses_trials and self.patience is not None:
            raise ValueError(
                f"search.patience counts ended trials, and search.scheduler={self.scheduler} ends "
                "them all at the end: set search.patience=null, or search.scheduler=asha"
            )

        if self.scheduler == "pbt" and self.algorithm == "optuna":
            raise ValueError(
                "search.scheduler=pbt changes the values of running trials, which "
                "search.algorithm=optuna cannot follow: set search.algorithm=random"
            )
        return self
