"""Measure the optimizer steps that ASHA saves, on recorded learning curves of 27 trials.

    python -m benchmarks.asha --json outputs/bench/asha.json

Every trial is trained to the end once, without a scheduler. Ray Tune then runs the same trials with
each scheduler; a trial reports its recorded losses. The schedulers differ in steps and in the best
loss, by nothing else. Both depend on the order in which the trials start, so each scheduler gets
the same five orders.

- `SCHEDULER_step_share`: steps of all trials over those without a scheduler, median of the orders.
- `SCHEDULER_loss_gap`: best loss over that of all curves, minus 1, median of the orders.
- `SCHEDULER_worst_loss_gap`: the largest of these gaps.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray.tune

from app.config import Config, load_config, override_config
from app.jobs.cluster import connect_ray
from benchmarks.curves import build_task, record_curve
from benchmarks.measure import one_thread
from tune.keys import FINISHED_KEY, METRIC_KEY, OVERRIDES_KEY, STEP_KEY
from tune.schedule import build_scheduler
from tune.search_algorithm import draw_trials

NUM_TRIALS = 27
NUM_STEPS = 27
EVAL_STEPS = 3
NUM_ORDERS = 5
SLOTS = 2
"""Number of trials that run at the same time."""
SEARCH = {
    "search.space": {
        "optim.learning_rate": {"loguniform": [3e-4, 3e-2]},
        "lora.rank": {"choice": [4, 8, 16]},
        "lora.alpha": {"equals": "2 * lora.rank"},
    },
    "search.num_trials": NUM_TRIALS,
    "search.trial_steps": NUM_STEPS,
    "search.grace_steps": EVAL_STEPS,
    "search.reduction_factor": 3,
    "search.seed": 5,
    "optim.warmup_ratio": 0.1,
}
Curve = list[tuple[int, float]]


class ReplayTrial(ray.tune.Trainable):
    """A trial that reports a recorded curve. Its checkpoint is its place in the curve."""

    def setup(self, config: dict[str, Any], curves: list[Curve] | None = None) -> None:
        """Keep all curves, and start the first trial."""
        assert curves is not None
        self.curves = curves
        self.reset_config(config)

    def step(self) -> dict[str, Any]:
        """Return the next report."""
        step, loss = self.curve[self.place]
        self.place += 1
        is_last = self.place == len(self.curve)
        return {STEP_KEY: step, METRIC_KEY: loss, FINISHED_KEY: is_last, "done": is_last}

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, int]:
        """Return the place in the curve."""
        return {"place": self.place}

    def load_checkpoint(self, checkpoint: dict[str, int]) -> None:
        """Continue at the place of a checkpoint."""
        self.place = checkpoint["place"]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start a trial at its first report."""
        self.curve = self.curves[new_config[OVERRIDES_KEY]["trial"]]
        self.place = 0
        return True


def record_curves(config: Config) -> list[Curve]:
    """Train each trial of the search to its end; return (step, validation loss) of each."""
    with tempfile.TemporaryDirectory() as folder:
        task = build_task(Path(folder), num_steps=NUM_STEPS, num_validation=4)
    curves = []
    for overrides in draw_trials(config.search):
        trial = override_config(config, overrides)
        curves.append(record_curve(task, trial.lora, trial.optim, eval_steps=EVAL_STEPS))
        print(f"trial {len(curves)} of {NUM_TRIALS}: {curves[-1][-1][1]:.4f} ({overrides})")
    return curves


def replay(config: Config, curves: list[Curve], order: Sequence[int]) -> tuple[float, float]:
    """Run the trials in an order with the scheduler of the config on a connected Ray.

    Return the share of all steps that the trials took, and the gap between the best loss that they
    reported and the best of all curves (0.01: 1 %).
    """
    num_cpus = ray.cluster_resources()["CPU"]
    with tempfile.TemporaryDirectory() as folder:
        results = ray.tune.Tuner(
            ray.tune.with_resources(
                ray.tune.with_parameters(ReplayTrial, curves=curves), {"CPU": num_cpus / SLOTS}
            ),
            param_space={OVERRIDES_KEY: ray.tune.grid_search([{"trial": i} for i in order])},
            tune_config=ray.tune.TuneConfig(
                scheduler=build_scheduler(config.search, NUM_STEPS), reuse_actors=True
            ),
            run_config=ray.tune.RunConfig(storage_path=folder, verbose=0),
        ).fit()

    assert not results.errors, results.errors
    steps = {result.config[OVERRIDES_KEY]["trial"]: result.metrics[STEP_KEY] for result in results}
    best = min(
        loss for trial, last in steps.items() for step, loss in curves[trial] if step <= last
    )
    best_of_all = min(loss for curve in curves for _, loss in curve)
    return sum(steps.values()) / (NUM_STEPS * len(curves)), best / best_of_all - 1


def measure_asha() -> dict[str, float]:
    """Return the figures of each scheduler. Needs a connected Ray."""
    config = load_config("demo", SEARCH)
    curves = record_curves(config)
    drawn = list(range(NUM_TRIALS))
    orders = [drawn, *(random.Random(i).sample(drawn, NUM_TRIALS) for i in range(1, NUM_ORDERS))]

    figures = {}
    for scheduler in ("asha", "asha_pause", "median"):
        searched = override_config(config, {"search.scheduler": scheduler})
        shares, gaps = zip(*(replay(searched, curves, order) for order in orders), strict=True)
        figures[f"{scheduler}_step_share"] = statistics.median(shares)
        figures[f"{scheduler}_loss_gap"] = statistics.median(gaps)
        figures[f"{scheduler}_worst_loss_gap"] = max(gaps)
    return figures


def main() -> None:
    """Run the benchmark and write its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()

    one_thread()
    started = time.monotonic()
    with connect_ray(num_cpus=SLOTS):
        figures = measure_asha()
    report = {"figures": figures, "seconds": round(time.monotonic() - started, 1)}
    arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
