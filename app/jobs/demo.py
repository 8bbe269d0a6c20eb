"""The whole way on real icons in minutes: prepare → search → train → evaluate → report. `make demo`."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from app.config import Config, override_config
from app.jobs.cluster import connect
from app.jobs.evaluate import evaluate_job
from app.jobs.job import require_workers
from app.jobs.train import train_job
from app.jobs.tune import tune_job
from app.tracking import check_tracking
from data_pipeline.config import PrepareConfig
from data_pipeline.prepare.dataset import prepare_dataset
from data_pipeline.shards import open_shards
from data_pipeline.sources.phosphor import list_categories

SPLIT_SEED = 5
"""Held-out concepts of even size: with seed 0 a third of the icons would be letters."""

SEARCH = {
    "train.run_name": "search", "train.eval_steps": 10, "train.save_steps": 10,
    "data.max_validation_examples": 40,
}  # fmt: skip
"""Of the search: evaluations often enough for ASHA to act, and small enough not to be what it spends its time on."""

SECONDS = {"prepare": 10, "connect": 8, "search": 130, "train": 250, "evaluate": 50}
"""What each phase takes on 2 cores: only to say how long is left."""


def run_demo(config: Config) -> int:
    """Run it all into `train.output_dir`, over what an earlier demo left there; 0 when done."""
    started = time.monotonic()
    folder = Path(config.train.output_dir)
    for job in (config.train.run_name, "search", "shards"):
        shutil.rmtree(folder / job, ignore_errors=True)
    phases = _Phases()
    with phases("prepare", "real icons → canonical SVG → shards split by concept"):
        check_tracking(config.tracking)
        prepared = prepare_dataset(
            ["phosphor"], PrepareConfig(out=config.data.shards, seed=SPLIT_SEED)
        )
        config = override_config(
            config,
            {"evaluate.fields.category": [f"the {name} category" for name in list_categories()]},
        )
    shards = open_shards(config.data.shards)
    with phases("connect", "a private Ray on this machine"):
        stack = ExitStack()
        stack.enter_context(connect())
        require_workers(config, max(config.scaling.num_workers, config.search.max_concurrent))
    with stack:
        with phases("search", f"{config.search.num_trials} trials, bad ones stopped early by ASHA"):
            searched = tune_job(override_config(config, SEARCH), shards)
        best = override_config(config, searched.result.best.overrides)
        with phases(
            "train",
            f"{best.scaling.num_workers} workers, {best.train.max_steps} steps with the best trial's values",
        ):
            trained = train_job(best, shards)
        with phases("evaluate", "base against tuned on icons whose concept was never trained on"):
            judged = evaluate_job(best, shards, trained.adapter)
    report = {
        "seconds": round(time.monotonic() - started, 1),
        "num_train_examples": prepared.num_train,
        "num_validation_examples": prepared.num_validation,
        **judged,
        "search": {
            "trials": len(searched.result.trials),
            "pruned": sum(trial.status == "pruned" for trial in searched.result.trials),
            "best": {**searched.result.best.overrides, "eval_loss": searched.result.best.eval_loss},
        },
        "mlflow": {
            "tracking_uri": config.tracking.uri,
            "experiment": config.tracking.experiment,
            "parent_run_id": searched.run_id,
            "run_ids": [*searched.trial_run_ids, trained.run_id],
        },
        "phases": phases.seconds,
    }
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(_summary(report, folder), flush=True)
    return 0


class _Phases:
    """Says what is happening, for how long it has, and about how long is left."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str, text: str) -> Iterator[None]:
        number = list(SECONDS).index(name)
        left = sum(list(SECONDS.values())[number:])
        print(
            f"\n[{number + 1}/{len(SECONDS)}] {name}: {text} (about {left / 60:.1f} min left)",
            flush=True,
        )
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)


def _summary(report: dict[str, Any], folder: Path) -> str:
    rows = [
        ("evaluation loss", report["eval_loss_before"], report["eval_loss_after"], None),
        ("BLEU-4", report["bleu4_before"], report["bleu4_after"], report["bleu4_constant"]),
    ]
    for field in ("weight", "category"):
        values = (report[f"{field}_{kind}"] for kind in ("accuracy_before", "accuracy", "majority"))
        rows.append((f"names the {field}", *values))
    lines = [f"\n{'on held-out icons':<20} {'base':>8} {'tuned':>8} {'constant caption':>18}"]
    for name, before, after, constant in rows:
        lines.append(
            f"{name:<20} {before:8.3f} {after:8.3f} {'' if constant is None else f'{constant:18.3f}'}"
        )
    search = report["search"]
    lines += [
        f"\n{search['trials']} trials, {search['pruned']} stopped early; {report['seconds']:.0f} s in all",
        f"captions to look at: {report['gallery']}",
        f"report:              {folder / 'report.json'}",
        "runs:                make ui   (MLflow on http://127.0.0.1:5000)",
    ]
    return "\n".join(lines)
