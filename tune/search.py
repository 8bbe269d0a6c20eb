"""A search with Ray Tune over a callable that runs one trial."""

import logging
import math
import os
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray.tune
from ray.tune.experiment import Trial
from ray.tune.integration.ray_train import TuneReportCallback

from tune.budget import Budget
from tune.config import SearchConfig
from tune.errors import SearchError
from tune.keys import METRIC_KEY, OVERRIDES_KEY, STEP_KEY
from tune.outcome import SearchResult, Status, TrialOutcome, find_best, format_outcome
from tune.schedule import build_scheduler
from tune.search_algorithm import build_search_algorithm, count_trials
from tune.space import Overrides

_FINISHED = "finished"

RunTrial = Callable[[dict[str, Any], str], dict[str, Any]]


@dataclass(frozen=True)
class TrialFacts:
    """Facts about the trials of a search that only the caller knows."""

    count_warmup_steps: Callable[[Overrides], int] = lambda _overrides: 0
    """Return the warm-up of a trial (optimizer steps), in which no scheduler judges it."""
    pinned_paths: Collection[str] = ()
    """Paths with whose values a checkpoint is bound: a trial cannot continue with others."""
    gpus_per_trial: float = 0.0
    earlier: Sequence[tuple[Overrides, float]] = ()
    """Overrides and losses of trials of earlier searches."""


def run_search(
    config: SearchConfig,
    run_trial: RunTrial,
    *,
    name: str,
    storage_path: str,
    trial_steps: int,
    filesystem: pyarrow.fs.FileSystem | None = None,
    on_trial_end: Callable[[TrialOutcome], None] | None = None,
    facts: TrialFacts = TrialFacts(),
) -> SearchResult:
    """Run `config.num_trials` trials, `config.max_concurrent` at a time, and stop bad ones early.

    Ray Tune calls `run_trial(overrides, trial_id)` in a process of its own, so it must be
    picklable. `overrides` is {config path: plain value}. `run_trial` fits a TorchTrainer whose
    RunConfig has a `TuneReportCallback`. Rank 0 reports `step` and `eval_loss` of every evaluation,
    and `run_trial` returns the last of them. A trial that raises has failed; the others continue.

    `storage_path` is a path of `filesystem`; without one, a local path or a URI without a query.

    `on_trial_end` runs in the caller's process as soon as the outcome of a trial is known. The
    workers of a pruned trial may be alive for some seconds after that.

    A budget that is spent ends the running trials as interrupted.

    Raises SearchError if the search cannot start or no trial reported a loss. A
    KeyboardInterrupt ends the outcomes of the running trials as interrupted; the caller disconnects
    Ray, which stops the trials.
    """
    if not config.space:
        raise SearchError(
            "search.space is empty: name a config path, "
            "e.g. optim.learning_rate: {loguniform: [1e-5, 1e-3]}"
        )

    _silence_tune()
    progress = _Progress(count_trials(config), on_trial_end)
    budget = Budget(config, gpus_per_trial=facts.gpus_per_trial)
    trainable = _make_trainable(run_trial)
    run_config = ray.tune.RunConfig(
        name=name,
        storage_path=storage_path,
        storage_filesystem=filesystem,
        verbose=0,
        callbacks=[progress, budget],
        stop=budget,
    )
    tuner = _build_tuner(config, trainable, run_config, trial_steps, facts)

    # run
    try:
        tuner.fit()
    except KeyboardInterrupt:
        progress.interrupt_running()
        raise
    if budget.spent:
        progress.interrupt_running(budget.spent)
    outcomes = tuple(progress.outcomes)
    ended_by = budget.spent or f"all {len(outcomes)} trials have ended"
    return SearchResult(outcomes, find_best(outcomes), ended_by)


def _build_tuner(
    config: SearchConfig,
    trainable: Callable[[dict[str, Any]], None],
    run_config: ray.tune.RunConfig,
    trial_steps: int,
    facts: TrialFacts,
) -> ray.tune.Tuner:
    search_algorithm, param_space = build_search_algorithm(config, facts.earlier)
    scheduler = build_scheduler(
        config,
        trial_steps,
        count_warmup_steps=facts.count_warmup_steps,
        pinned_paths=facts.pinned_paths,
    )

    return ray.tune.Tuner(
        # The nested trainer reserves the resources of its workers, so the trial itself takes almost
        # none. Ray refuses 0 CPU, and 1 CPU for each trial would leave too few for the workers.
        ray.tune.with_resources(trainable, {"CPU": 0.01}),
        param_space=param_space,
        tune_config=ray.tune.TuneConfig(
            num_samples=config.num_trials if search_algorithm else 1,
            # Tune counts paused trials: none could start while others are paused.
            max_concurrent_trials=None if config.pauses_trials else config.max_concurrent,
            search_alg=search_algorithm,
            scheduler=scheduler,
            trial_dirname_creator=lambda trial: f"trial_{trial.trial_id}",
        ),
        run_config=run_config,
    )


def _make_trainable(run_trial: RunTrial) -> Callable[[dict[str, Any]], None]:
    """Return the function that Tune runs for each trial."""

    def trainable(trial_config: dict[str, Any]) -> None:
        final = run_trial(trial_config[OVERRIDES_KEY], ray.tune.get_context().get_trial_id())

        # Report through the queue of the intermediate reports. `ray.tune.report` would deadlock if
        # Tune has not yet fetched the last of them. `done` makes Tune stop this trial: wait for it.
        last = {
            STEP_KEY: final[STEP_KEY],
            METRIC_KEY: final[METRIC_KEY],
            _FINISHED: True,
            "done": True,
        }
        callback: Any = TuneReportCallback()
        callback.after_report(None, [last], None)
        threading.Event().wait()

    return trainable


class _Progress(ray.tune.Callback):
    """Follow the reports of all trials, and print the outcome of each trial in one line."""

    def __init__(
        self, num_trials: int, on_trial_end: Callable[[TrialOutcome], None] | None
    ) -> None:
        self.outcomes: list[TrialOutcome] = []
        self._num_trials = num_trials
        self._on_trial_end = on_trial_end
        self._losses: dict[str, float] = {}  # lowest loss by trial id
        self._steps: dict[str, int] = {}  # last step by trial id
        self._running: dict[str, Trial] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks to restore a search later. We never restore one, and
        # on_trial_end may hold a tracking client, which cannot be pickled.
        return {**self.__dict__, "_on_trial_end": None}

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._running[trial.trial_id] = trial

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        self._steps[trial.trial_id] = result[STEP_KEY]
        if math.isfinite(result[METRIC_KEY]):
            lowest = self._losses.get(trial.trial_id, math.inf)
            self._losses[trial.trial_id] = min(lowest, result[METRIC_KEY])

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._end(trial, "completed" if trial.last_result.get(_FINISHED) else "pruned")

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._end(trial, "failed", error=_read_last_line(trial.error_file))

    def interrupt_running(self, reason: str | None = None) -> None:
        """End the running trials as interrupted."""
        for trial in list(self._running.values()):
            self._end(trial, "interrupted", error=reason)

    def _end(self, trial: Trial, status: Status, error: str | None = None) -> None:
        self._running.pop(trial.trial_id, None)
        outcome = TrialOutcome(
            trial_id=trial.trial_id,
            overrides=trial.config[OVERRIDES_KEY],
            status=status,
            step=self._steps.get(trial.trial_id, 0),
            eval_loss=self._losses.get(trial.trial_id),
            error=error,
        )
        self.outcomes.append(outcome)
        num_left = self._num_trials - len(self.outcomes)
        print(f"{format_outcome(outcome)}; {num_left} left", flush=True)
        if self._on_trial_end is not None:
            self._on_trial_end(outcome)


def _read_last_line(error_file: str) -> str:
    """Return the last line of a traceback, which names the error."""
    return Path(error_file).read_text(encoding="utf-8").strip().splitlines()[-1].strip()


def _silence_tune() -> None:
    """Disable Tune's tables, tracebacks, result files and its handler of SIGINT.

    `_Progress` prints the outcomes. The handler would wait until Tune has ended every trial.
    """
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
