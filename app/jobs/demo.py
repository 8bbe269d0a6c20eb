"""`make demo`: prepare, search, train and evaluate on real icons, in minutes."""

import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import permutations
from pathlib import Path
from typing import Any

from app.config import Config, override_config
from app.errors import UserError
from app.evaluation.score_table import format_scores
from app.jobs.evaluate import evaluate_job
from app.jobs.job import connect_workers
from app.jobs.job_dir import find_adapter, get_job_dir, read_job_file
from app.jobs.lease import hold_lease
from app.jobs.promote import IsChampionError, promote
from app.jobs.report import write_report
from app.jobs.train import TrainResult, train_job
from app.jobs.trained_model import find_model
from app.jobs.tune import TuneResult, tune_job
from app.storage import write_json
from app.tracking import check_tracking, find_champion
from data_pipeline.config import PrepareConfig
from data_pipeline.prepare.dataset import prepare_dataset
from data_pipeline.shards import Shards, open_shards
from data_pipeline.sources.phosphor import list_categories

SPLIT_SEED = 5
"""Seed whose held-out concepts are balanced: with seed 0, a third of the icons would be letters."""

MADE = "demo-made.json"
"""File in `train.output_dir` that lists the folders which `demo` made, and may replace."""

SEARCH = {
    "train.run_name": "search",
    "train.eval_steps": 10,
    "train.save_steps": 10,
    "data.max_validation_records": 40,
}
"""Settings of the search: frequent evaluations for ASHA, and few examples to keep them short."""

SECONDS = {"prepare": 10, "connect": 8, "search": 130, "train": 250, "evaluate": 70, "promote": 20}
"""Seconds of each phase on 2 cores, for the printed estimate only."""


def run_demo(config: Config) -> int:
    """Run all phases into `train.output_dir`, replacing an earlier demo. Return 0.

    Raises UserError if a folder that it would replace was not made by `demo`.
    """
    started = time.monotonic()
    folder = Path(config.train.output_dir)
    remove_earlier_demo(config)
    phases = _Phases()

    with phases("prepare", "convert real icons to shards of canonical SVG, split by concept"):
        check_tracking(config.tracking)
        prepared = prepare_dataset(
            ["phosphor"], PrepareConfig(out=config.data.shards, seed=SPLIT_SEED)
        )
        categories = [f"the {name} category" for name in list_categories()]
        config = override_config(config, {"evaluate.fields.category": categories})
    shards = open_shards(config.data.shards)

    with phases("connect", "start a private Ray on this machine"):
        connection = ExitStack()
        num_workers = max(config.scaling.num_workers, config.search.max_concurrent or 1)
        connection.enter_context(connect_workers(config, num_workers))

    with connection:
        num_trials = config.search.num_trials
        with phases("search", f"run {num_trials} trials; ASHA stops bad ones early"):
            searched = tune_job(override_config(config, SEARCH), shards)

        best = override_config(config, searched.result.best.overrides)
        workers, steps = best.scaling.num_workers, best.train.max_steps
        with phases("train", f"{workers} workers, {steps} steps with the best trial's values"):
            trained = train_job(best, shards)

        with phases("evaluate", "compare base and tuned model on icons of held-out concepts"):
            figures = evaluate_job(best, shards, find_adapter(best))
            del figures["drawings"]  # evaluation.json has them

    with phases("promote", "make the model the champion of the registry, if it is better"):
        champion = _promote(best, shards)

    report = {
        "seconds": round(time.monotonic() - started, 1),
        "num_train_examples": prepared.num_train,
        "num_validation_examples": prepared.num_validation,
        "num_test_examples": prepared.num_test,
        **figures,
        **_report_runs(config, searched, trained),
        "champion": champion,
        "phases": phases.seconds,
    }
    write_json(str(folder / "report.json"), report)
    write_report([get_job_dir(best)], folder / "report.html")
    print(_format_summary(report, folder), flush=True)
    return 0


def remove_earlier_demo(config: Config) -> None:
    """Remove the folders of an earlier demo, and write the list of those that this one makes.

    Raises UserError, and removes nothing, if one of the folders exists but `demo` did not make it,
    if a job runs in it, or if one lies in another or holds the tracking database.
    """
    output, shards = config.train.output_dir, config.data.shards
    if "://" in output or "://" in shards:
        raise UserError(
            f"demo writes to this machine only: set train.output_dir={output} and "
            f"data.shards={shards} to local folders"
        )

    # check the folders
    folders = [Path(output, config.train.run_name), Path(output, "search"), Path(shards)]
    database = Path(str(config.tracking.uri).removeprefix("sqlite:///"))
    for inner, outer in [*permutations(folders, 2), *((database, each) for each in folders)]:
        if inner.resolve().is_relative_to(outer.resolve()):
            raise UserError(
                f"demo replaces {outer}, which holds {inner}: give another train.run_name, "
                "train.output_dir, data.shards or tracking.uri"
            )
    made = set((read_job_file(output, MADE) or {}).get("folders", ()))
    foreign = [str(each) for each in folders if each.exists() and str(each) not in made]
    if foreign:
        raise UserError(
            f"demo did not make {', '.join(foreign)}: remove it, or give demo a new folder with "
            "train.output_dir=NEW data.shards=NEW/shards"
        )

    for each in folders:
        if each.exists() and not each.is_symlink():
            with hold_lease(str(each)):  # refuses a folder in which a job runs
                pass

    # replace them
    try:
        for each in filter(Path.exists, folders):
            shutil.rmtree(each)
        write_json(str(Path(output, MADE)), {"folders": sorted(made | set(map(str, folders)))})
    except OSError as error:
        raise UserError(f"demo cannot replace its earlier results: {error}") from error


class _Phases:
    """Print the name of each phase and the time left, and measure the seconds of each phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str, text: str) -> Iterator[None]:
        number = list(SECONDS).index(name)
        left = sum(list(SECONDS.values())[number:]) / 60
        print(
            f"\n[{number + 1}/{len(SECONDS)}] {name}: {text} (about {left:.1f} min left)",
            flush=True,
        )
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)


def _promote(config: Config, shards: Shards) -> str:
    """Compare the job's model with the champion; return the version of the champion."""
    challenger = find_model(get_job_dir(config), config.tracking)
    with suppress(IsChampionError):  # a repeated demo trains the same weights
        promote(challenger, shards, config.tracking)
    return str(find_champion(config.tracking))


def _report_runs(config: Config, searched: TuneResult, trained: TrainResult) -> dict[str, Any]:
    """Return the part of the report about the search and the MLflow runs."""
    trials, best = searched.result.trials, searched.result.best
    return {
        "search": {
            "trials": len(trials),
            "pruned": sum(trial.state == "pruned" for trial in trials),
            "best": {**best.overrides, "eval_loss": best.eval_loss},
        },
        "mlflow": {
            "tracking_uri": config.tracking.uri,
            "experiment": config.tracking.experiment,
            "parent_run_id": searched.run_id,
            "run_ids": [*searched.trial_run_ids, trained.run_id],
        },
    }


def _format_summary(report: dict[str, Any], folder: Path) -> str:
    """Return a table of the figures, and the places of all results."""
    search = report["search"]
    lines = [
        f"\n{report['num_captions']} icons of held-out concepts",
        format_scores(report),
        f"\n{search['trials']} trials, {search['pruned']} stopped early; "
        f"{report['seconds']:.0f} s in total",
        f"page:      {folder / 'report.html'}",
        f"captions:  {report['gallery']}",
        f"report:    {folder / 'report.json'}",
        f"champion:  models:/svgscribe@champion is {report['champion']}",
        "runs:      make ui   (MLflow on http://127.0.0.1:5000)",
    ]
    return "\n".join(lines)
