"""A search with warm trials against Tune over Train, and a search whose driver is killed.

`python -m benchmarks.campaign --json PATH` runs the same trials of the tiny model twice on two
logical CPUs, each as a command of its own. Then it kills the driver of a third search, and
continues it, `--kills` times. The figures of ASHA are those of `benchmarks/asha.py`.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from mlflow import MlflowClient

from app.config import Config, load_config, make_paths_absolute, override_config
from app.jobs.cluster import connect_ray
from app.jobs.precision import resolve_precision
from app.tracking import check_tracking
from data_pipeline.config import PrepareConfig
from data_pipeline.prepare.dataset import prepare_dataset
from data_pipeline.shards import open_shards

SLOTS = 2
STEPS, EVAL_STEPS = 8, 4
RAY_DATA_ACTORS = ("_StatsActor", "_AutoscalingCoordinatorActor")
"""Ray Data starts one of each at its first use, and keeps it until the driver ends."""


class Child(NamedTuple):
    """The MLflow run of a trial."""

    status: str
    evaluations: list[tuple[int, int]]
    """(step, time in ms) of each point of eval/loss."""


def main() -> None:
    """Run the benchmark and write its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--without-asha", action="store_true")
    parser.add_argument("--search", nargs=3, help=argparse.SUPPRESS)  # one search, in a process
    arguments = parser.parse_args()
    if arguments.search:
        folder, name, out = arguments.search
        _run_one(make_config(Path(folder), arguments.trials), name, Path(out))
        return

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = PrepareConfig(out=str(folder / "shards"), validation_share=0.1, test_share=0)
        prepare_dataset(["scenes:200:7:list"], shards, progress=False)
        config = make_config(folder, arguments.trials)
        check_tracking(config.tracking)
        plain = _search(folder, "plain", arguments.trials)
        warm = _search(folder, "warm", arguments.trials)
        figures = compare(config, warm, plain)
        figures |= _kill_and_continue(folder, arguments.trials, arguments.kills)
        if not arguments.without_asha:
            figures |= _measure_asha(folder / "asha.json")

    report = {"trials": arguments.trials, "slots": SLOTS, "figures": figures}
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


def make_config(folder: Path, num_trials: int) -> Config:
    """Return the search: every trial runs to its last step, so that both have the same trials."""
    changes: dict[str, Any] = {
        "data.shards": str(folder / "shards"),
        "data.sequence_tokens": 128,
        "data.shuffle_block_examples": 32,
        "data.max_validation_records": 4,
        "train.output_dir": str(folder),
        "train.eval_steps": EVAL_STEPS,
        "scaling.num_workers": 1,
        "tracking.uri": f"sqlite:///{folder}/mlflow.db",
        "search.num_trials": num_trials,
        "search.max_concurrent": SLOTS,
        "search.scheduler": "none",
        "search.trial_steps": STEPS,
    }
    return resolve_precision(make_paths_absolute(load_config("demo", changes)))


def compare(config: Config, warm: dict[str, Any], plain: dict[str, Any]) -> dict[str, float]:
    """Return the ratio of the makespans, the seconds between trials, and the largest difference."""
    losses = {
        name: {trial["trial_id"]: trial["best_eval_loss"] for trial in search["trials"]}
        for name, search in (("warm", warm), ("plain", plain))
    }
    assert losses["warm"].keys() == losses["plain"].keys()
    differences = [abs(losses["warm"][key] - loss) for key, loss in losses["plain"].items()]
    return {
        "makespan_ratio": warm["seconds"] / plain["seconds"],
        "warm_makespan_seconds": warm["seconds"],
        "plain_makespan_seconds": plain["seconds"],
        "warm_start_seconds": measure_start(config, warm["parent_run_id"]),
        "plain_start_seconds": measure_start(config, plain["parent_run_id"]),
        "max_loss_difference": max(differences),
        "leaked_actors": len(warm["leaked"] + plain["leaked"]),
    }


def measure_start(config: Config, parent_run_id: str) -> float:
    """Return the median seconds from the end of a trial to the first evaluation in its place.

    The end of a trial is its last evaluation. The first evaluation is part of the start.
    """
    times = [
        [time_ms for _, time_ms in child.evaluations]
        for child in read_children(config, parent_run_id)
    ]
    starts, ends = sorted(map(min, times)), sorted(map(max, times))
    gaps = [(start - end) / 1000 for start, end in zip(starts[SLOTS:], ends, strict=False)]
    return statistics.median(gaps)


def read_children(config: Config, parent_run_id: str) -> list[Child]:
    """Return the runs of all trials of a search."""
    client = MlflowClient(str(config.tracking.uri))
    experiment_id = client.get_run(parent_run_id).info.experiment_id
    children = f"tags.mlflow.parentRunId = '{parent_run_id}'"
    return [
        Child(
            run.info.status,
            [
                (point.step, point.timestamp)
                for point in client.get_metric_history(run.info.run_id, "eval/loss")
            ],
        )
        for run in client.search_runs([experiment_id], children)
    ]


def _run_one(config: Config, name: str, out: Path) -> None:
    """Run one search in this process. Write its trials, its seconds and the actors it leaves."""
    from ray.util.state import list_actors, list_placement_groups

    from app.jobs.tune import tune_job

    config = override_config(config, {"train.run_name": name})
    with connect_ray(num_cpus=SLOTS):
        started = time.monotonic()
        result = tune_job(config, open_shards(config.data.shards), is_warm=name != "plain")
        seconds = time.monotonic() - started
        time.sleep(5)  # Ray removes the actors of the last trial
        leaked = [
            actor.class_name
            for actor in list_actors(filters=[("state", "=", "ALIVE")])
            if actor.class_name not in RAY_DATA_ACTORS
        ]
        groups = list_placement_groups(filters=[("state", "=", "CREATED")])
        leaked += ["placement group"] * len(groups)
    out.write_text(json.dumps({**result.list_trials(), "seconds": seconds, "leaked": leaked}))


def _command(folder: Path, name: str, num_trials: int) -> tuple[list[str], Path]:
    out = folder / f"{name}.json"
    command = [sys.executable, "-m", "benchmarks.campaign", "--json", str(out)]
    return [*command, "--trials", str(num_trials), "--search", str(folder), name, str(out)], out


def _search(folder: Path, name: str, num_trials: int) -> dict[str, Any]:
    command, out = _command(folder, name, num_trials)
    subprocess.run(command, check=True, env=_environment())
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def _kill_and_continue(folder: Path, num_trials: int, num_kills: int) -> dict[str, float]:
    """Kill the driver of a search at random moments. Return the counts of what is wrong then."""
    if not num_kills:
        return {}
    config = make_config(folder, num_trials)
    command, out = _command(folder, "killed", num_trials)
    generator = random.Random(0)
    num_fired = 0
    for _ in range(num_kills):
        with subprocess.Popen(
            command, env=_environment(), stdout=subprocess.PIPE, text=True
        ) as driver:
            assert driver.stdout is not None
            # between the first evaluation of this driver and its twelfth
            num_lines = generator.randint(1, 12)
            lines = (line for line in driver.stdout if "evaluation loss" in line)
            num_seen = sum(1 for _, _ in zip(range(num_lines), lines, strict=False))
            num_fired += num_seen == num_lines and driver.poll() is None
            driver.send_signal(signal.SIGKILL)
    subprocess.run(command, check=True, env=_environment())

    search = json.loads(out.read_text())
    children = read_children(config, search["parent_run_id"])
    steps = list(range(0, STEPS + 1, EVAL_STEPS))
    num_wrong = sum([step for step, _ in child.evaluations] != steps for child in children)
    return {
        "kills_fired": num_fired,
        "killed_extra_runs": len(children) - num_trials,
        "killed_wrong_rows": num_wrong,
        "killed_wrong_status": sum(child.status != "FINISHED" for child in children),
    }


def _measure_asha(out: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.asha", "--json", str(out)]
    subprocess.run(command, check=True, env=_environment())
    figures: dict[str, float] = json.loads(out.read_text())["figures"]
    return figures


def _environment() -> dict[str, str]:
    return {**os.environ, "RAY_ADDRESS": "", "OMP_NUM_THREADS": "1", "RAY_DEDUP_LOGS": "0"}


if __name__ == "__main__":
    main()
