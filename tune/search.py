"""Ray Tune over a callable that runs one trial. Knows no model, no trainer and no tracker."""

import logging
import math
import os
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray.tune
from ray.tune.experiment import Trial
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher

from tune.config import SearchConfig
from tune.errors import SearchError
from tune.space import build_optuna_distributions, sample_space

METRIC = "eval_loss"
TIME = "step"
# The one key of a trial's Tune config, so that dots in config paths mean nothing to Tune.
_OVERRIDES = "overrides"
_FINISHED = "finished"

Status = Literal["completed", "pruned", "interrupted", "failed"]
RunTrial = Callable[[dict[str, Any], str], dict[str, Any]]


@dataclass(frozen=True)
class TrialOutcome:
    """How one trial ended.

    `step`: last reported optimizer step; `eval_loss`: lowest reported (nats per token), None when
    there was none; `error`: one line, of a failed trial only.
    """

    trial_id: str
    overrides: dict[str, Any]
    status: Status
    step: int
    eval_loss: float | None
    error: str | None


@dataclass(frozen=True)
class SearchResult:
    """All trials in the order in which they ended; `best` has the lowest eval_loss of those not failed."""

    trials: tuple[TrialOutcome, ...]
    best: TrialOutcome


def run_search(
    config: SearchConfig,
    run_trial: RunTrial,
    *,
    name: str,
    storage_path: str,
    trial_steps: int,
    on_trial_end: Callable[[TrialOutcome], None] | None = None,
) -> SearchResult:
    """Run `config.num_trials` trials, `config.max_concurrent` side by side, and stop bad ones early.

    `run_trial(overrides, trial_id)` runs in a Tune trial: `overrides` is {config path: plain value}. It
    fits a TorchTrainer whose `RunConfig` holds a `TuneReportCallback`, and whose rank 0 reports `step`
    and `eval_loss` as they come; it returns the last of them, and must be picklable. A trial that raises
    is a failed trial; the others go on. `on_trial_end` is called here, in the caller's process, when a
    trial's outcome is known; a pruned trial's workers may live for some seconds more.

    Raises SearchError for a search that cannot start or of which no trial gave a loss, and
    KeyboardInterrupt, after the trials have been stopped, when the user interrupts it.
    """
    if not config.space:
        raise SearchError(
            "search.space is empty: name a config path, e.g. optim.learning_rate: {loguniform: [1e-5, 1e-3]}"
        )

    _quiet()
    searcher, param_space = _strategy(config)
    progress = _Progress(config.num_trials, on_trial_end)
    tuner = ray.tune.Tuner(
        # Next to nothing: the nested trainer reserves for its workers. Ray refuses 0, and a whole CPU
        # for each trial would starve the workers.
        ray.tune.with_resources(_trainable(run_trial), {"CPU": 0.01}),
        param_space=param_space,
        tune_config=ray.tune.TuneConfig(
            num_samples=config.num_trials if searcher else 1,
            max_concurrent_trials=config.max_concurrent,
            search_alg=searcher,
            scheduler=_scheduler(config, trial_steps),
            trial_dirname_creator=lambda trial: f"trial_{trial.trial_id}",
        ),
        run_config=ray.tune.RunConfig(
            name=name, storage_path=storage_path, verbose=0, callbacks=[progress]
        ),
    )
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        tuner.fit()
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, interrupt)  # Tune leaves its own handler behind
    outcomes = tuple(progress.outcomes)
    if len(outcomes) < config.num_trials:
        progress.interrupted()
        raise KeyboardInterrupt  # Tune catches it and stops the trials
    return SearchResult(outcomes, _best(outcomes))


def _trainable(run_trial: RunTrial) -> Callable[[dict[str, Any]], None]:
    def trainable(trial_config: dict[str, Any]) -> None:
        final = run_trial(trial_config[_OVERRIDES], ray.tune.get_context().get_trial_id())
        # Through the queue of the intermediate reports: `ray.tune.report` beside it deadlocks when the
        # last of them has not been fetched yet. `done` makes Tune stop this trial, so wait for that.
        last = {TIME: final[TIME], METRIC: final[METRIC], _FINISHED: True, "done": True}
        callback: Any = TuneReportCallback()
        callback.after_report(None, [last], None)
        threading.Event().wait()

    return trainable


def _strategy(config: SearchConfig) -> tuple[Searcher | None, dict[str, Any] | None]:
    """Tune's search algorithm and its parameter space; a random search is a grid of its draws."""
    if config.algorithm == "random":
        draws = sample_space(config.space, config.num_trials, seed=config.seed)
        return None, {_OVERRIDES: ray.tune.grid_search(draws)}
    try:
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        distributions = build_optuna_distributions(config.space)
    except ImportError as error:
        raise SearchError(
            "search.algorithm=optuna needs the package optuna: pip install 'optuna>=5,<6', "
            "or set search.algorithm=random"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {f"{_OVERRIDES}/{path}": distribution for path, distribution in distributions.items()}
    return OptunaSearch(space, metric=METRIC, mode="min", seed=config.seed), None


def _scheduler(config: SearchConfig, trial_steps: int) -> ASHAScheduler | None:
    """ASHA with its last rung before the last step: who comes so far is never cut short. None: no rung."""
    if config.grace_steps >= trial_steps:
        return None
    return ASHAScheduler(
        time_attr=TIME,
        metric=METRIC,
        mode="min",
        max_t=trial_steps - 1,
        grace_period=config.grace_steps,
        reduction_factor=config.reduction_factor,
        stop_last_trials=False,
    )


def _best(outcomes: Sequence[TrialOutcome]) -> TrialOutcome:
    measured = [
        trial for trial in outcomes if trial.status != "failed" and trial.eval_loss is not None
    ]
    if measured:
        return min(measured, key=lambda trial: trial.eval_loss or 0.0)
    first = next(
        (trial.error for trial in outcomes if trial.error), "no trial reported a finite eval_loss"
    )
    raise SearchError(
        f"none of the {len(outcomes)} trials of the search gave a loss; the first: {first}"
    )


class _Progress(ray.tune.Callback):
    """Follows the reports, decides how each trial ended, and says so in one line."""

    def __init__(
        self, num_trials: int, on_trial_end: Callable[[TrialOutcome], None] | None
    ) -> None:
        self.outcomes: list[TrialOutcome] = []
        self._num_trials = num_trials
        self._on_trial_end = on_trial_end
        self._losses: dict[str, float] = {}  # lowest by trial
        self._steps: dict[str, int] = {}
        self._running: dict[str, Trial] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks to restore a search later, which we don't; a tracker cannot be.
        return {**self.__dict__, "_on_trial_end": None}

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._running[trial.trial_id] = trial

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        self._steps[trial.trial_id] = result[TIME]
        if math.isfinite(result[METRIC]):
            lowest = self._losses.get(trial.trial_id, math.inf)
            self._losses[trial.trial_id] = min(lowest, result[METRIC])

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._end(trial, "completed" if trial.last_result.get(_FINISHED) else "pruned")

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._end(trial, "failed", error=_last_line(trial.error_file))

    def interrupted(self) -> None:
        """Tune stops what runs without telling its callbacks."""
        for trial in list(self._running.values()):
            self._end(trial, "interrupted")

    def _end(self, trial: Trial, status: Status, error: str | None = None) -> None:
        self._running.pop(trial.trial_id, None)
        outcome = TrialOutcome(
            trial_id=trial.trial_id,
            overrides=trial.config[_OVERRIDES],
            status=status,
            step=self._steps.get(trial.trial_id, 0),
            eval_loss=self._losses.get(trial.trial_id),
            error=error,
        )
        self.outcomes.append(outcome)
        loss = "no loss" if outcome.eval_loss is None else f"eval_loss {outcome.eval_loss:.4f}"
        values = ", ".join(
            f"{path}={value:.4g}" if isinstance(value, float) else f"{path}={value}"
            for path, value in outcome.overrides.items()
        )
        left = self._num_trials - len(self.outcomes)
        why = f": {error}" if error else ""
        print(
            f"trial {status} at step {outcome.step}, {loss} ({values}){why}; {left} left",
            flush=True,
        )
        if self._on_trial_end is not None:
            self._on_trial_end(outcome)


def _last_line(error_file: str) -> str:
    """The last line of a traceback, which names the error."""
    return Path(error_file).read_text(encoding="utf-8").strip().splitlines()[-1].strip()


def _quiet() -> None:
    """Silence Tune's tables, tracebacks and result files: `_Progress` says what happened."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
