"""A search with Ray Tune over a callable that runs one trial."""

import copy
import logging
import math
import os
import threading
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.fs
import ray.tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.search import Searcher

from tune.budget import Budget
from tune.config import SearchConfig
from tune.errors import SearchError
from tune.keys import FINISHED_KEY, METRIC_KEY, OVERRIDES_KEY, STEP_KEY
from tune.numbered_trials import ListSearcher, NumberedTrials
from tune.outcome import SearchResult, TrialOutcome, find_best
from tune.progress import Progress
from tune.record import CampaignRecord, TrialRecord
from tune.schedule import build_scheduler
from tune.search_algorithm import build_search_algorithm, count_trials
from tune.space import Overrides
from tune.trial_table import TrialTable, show_table
from tune.warm import WarmTrials, build_warm_trainable

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
    trials: RunTrial | WarmTrials,
    *,
    name: str,
    storage_path: str,
    trial_steps: int,
    filesystem: pyarrow.fs.FileSystem | None = None,
    on_trial_end: Callable[[TrialOutcome], None] | None = None,
    facts: TrialFacts = TrialFacts(),
) -> SearchResult:
    """Run or continue `config.num_trials` trials, and stop bad ones early.

    `config.max_concurrent` trials run at a time, or one if it is None. Their ids are 0000, 0001, …
    A trial that fails does not end the others.

    `trials` is a callable or WarmTrials. Ray Tune calls `trials(overrides, trial_id)` in a process
    of its own, so it must be picklable. `overrides` is {config path: plain value}. The callable
    fits a TorchTrainer whose RunConfig has a `TuneReportCallback`. Rank 0 reports `step` and
    `eval_loss` of every evaluation, and the callable returns the last of them.

    `storage_path` is a path of `filesystem`; without one, an absolute local path or a URI without a
    query. Its folder `name` has the record of the search, from which a search continues.

    `on_trial_end` runs in the caller's process as soon as the outcome of a trial is known. The
    workers of a pruned trial may be alive for some seconds after that.

    Raises SearchError if the search cannot start or no trial reported a loss. A KeyboardInterrupt,
    and a budget that is spent, end the outcomes of the running trials as interrupted. After a
    KeyboardInterrupt, the caller disconnects Ray, which stops the trials.
    """
    if not config.space:
        raise SearchError(
            "search.space is empty: name a config path, "
            "e.g. optim.learning_rate: {loguniform: [1e-5, 1e-3]}"
        )
    _silence_tune()
    if filesystem is None:
        filesystem, storage_path = pyarrow.fs.FileSystem.from_uri(storage_path)
    record = CampaignRecord(filesystem, f"{storage_path}/{name}")
    budget = Budget(config, gpus_per_trial=facts.gpus_per_trial)
    table = TrialTable(count_trials(config), trial_steps)
    progress = Progress(config, record, budget, table, on_trial_end)
    tuner = _build_tuner(config, trials, record, [progress, budget], trial_steps, facts)

    # run
    with show_table(table):
        try:
            tuner.fit()
        except KeyboardInterrupt:
            progress.interrupt_running()
            raise
        if budget.spent:
            progress.interrupt_running(budget.spent)

    outcomes = tuple(progress.outcomes)
    ended_by = budget.spent or f"all {len(outcomes)} trials have ended"
    best = find_best(outcomes)
    return SearchResult(outcomes, best, ended_by, record.trials[best.trial_id].best_checkpoint)


def _build_tuner(
    config: SearchConfig,
    trials: RunTrial | WarmTrials,
    record: CampaignRecord,
    callbacks: Sequence[Any],
    trial_steps: int,
    facts: TrialFacts,
) -> ray.tune.Tuner:
    """Return the tuner; the last of the callbacks is the budget that stops all trials."""
    records = copy.deepcopy(record.trials)  # as an earlier driver left them
    trainable: Any
    if isinstance(trials, WarmTrials):
        trainable = build_warm_trainable(trials, records, record)
        resources, max_failures = dict(trials.resources), trials.max_failures
    else:
        # The nested trainer reserves the resources of its workers, so the trial itself takes almost
        # none. Ray refuses 0 CPU, and 1 CPU for each trial would leave too few for the workers.
        trainable = _make_nested_trainable(trials, records)
        resources, max_failures = {"CPU": 0.01}, 0
    # Tune counts paused trials: none could start while others are paused.
    max_concurrent = None if config.pauses_trials else config.max_concurrent or 1
    scheduler = build_scheduler(
        config,
        trial_steps,
        count_warmup_steps=facts.count_warmup_steps,
        pinned_paths=facts.pinned_paths,
    )
    attempt = uuid.uuid4().hex[:6]  # the folders of an earlier driver have its checkpoints

    return ray.tune.Tuner(
        ray.tune.with_resources(trainable, resources),
        tune_config=ray.tune.TuneConfig(
            num_samples=count_trials(config),
            search_alg=NumberedTrials(_build_searcher(config, facts), records, max_concurrent),
            scheduler=scheduler,
            reuse_actors=isinstance(trials, WarmTrials),
            trial_dirname_creator=lambda trial: f"trial_{trial.trial_id}_{attempt}",
        ),
        run_config=_make_run_config(record, callbacks, max_failures),
    )


def _make_run_config(
    record: CampaignRecord, callbacks: Sequence[Any], max_failures: int
) -> ray.tune.RunConfig:
    storage_path, _, name = record.root.rpartition("/")
    return ray.tune.RunConfig(
        name=name,
        storage_path=storage_path,
        storage_filesystem=record.filesystem,
        verbose=0,
        callbacks=list(callbacks),
        stop=callbacks[-1],
        failure_config=ray.tune.FailureConfig(max_failures=max_failures),
    )


def _build_searcher(config: SearchConfig, facts: TrialFacts) -> Searcher:
    """Return the search algorithm. Draws that do not depend on results are a list."""
    algorithm, param_space = build_search_algorithm(config, facts.earlier)
    if algorithm is not None:
        return algorithm
    assert param_space is not None
    return ListSearcher(param_space[OVERRIDES_KEY]["grid_search"])


def _make_nested_trainable(
    run_trial: RunTrial, records: Mapping[str, TrialRecord]
) -> Callable[[dict[str, Any]], None]:
    """Return the function that Tune runs for each trial with a TorchTrainer of its own."""

    def trainable(trial_config: dict[str, Any]) -> None:
        trial_id = ray.tune.get_context().get_trial_id()
        record = records.get(trial_id) or TrialRecord(trial_id, {})
        callback: Any = TuneReportCallback()
        last: dict[str, Any] = {STEP_KEY: 0, METRIC_KEY: math.nan}

        # repeat the recorded reports, for the scheduler
        for step, loss in record.reports:
            last = {STEP_KEY: step, METRIC_KEY: loss}
            callback.after_report(None, [last], None)

        if record.state is None:
            final = run_trial(trial_config[OVERRIDES_KEY], trial_id)
            last = {STEP_KEY: final[STEP_KEY], METRIC_KEY: final[METRIC_KEY], FINISHED_KEY: True}

        # Report through the queue of the intermediate reports. `ray.tune.report` would deadlock if
        # Tune has not yet fetched the last of them. `done` makes Tune stop this trial: wait for it.
        callback.after_report(None, [{**last, "done": True}], None)
        threading.Event().wait()

    return trainable


def _silence_tune() -> None:
    """Disable Tune's tables, tracebacks, result files and its handler of SIGINT.

    `_Progress` prints the outcomes. The handler would wait until Tune has ended every trial.
    """
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
