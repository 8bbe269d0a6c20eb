"""A drawn search: its space, and trials with curves, without Ray."""

import math

import numpy as np

from tune.campaign import Range, State, Trial
from tune.domain import Choice, LogUniform, Uniform

LR, RANK, WARMUP = "optim.learning_rate", "lora.rank", "optim.warmup_ratio"
SPACE = {
    LR: LogUniform(loguniform=(1e-5, 1e-3)),
    RANK: Choice(choice=(8, 16, 32)),
    WARMUP: Uniform(uniform=(0.0, 0.1)),
}
RANGES = {LR: Range(1e-5, 1e-3, is_log=True), RANK: Range(8, 32, is_choice=True)}


def draw_campaign(num_trials: int = 24) -> list[Trial]:
    """Return trials whose loss depends on the learning rate alone; every third one is pruned."""
    random = np.random.default_rng(0)
    trials = []
    for number in range(num_trials):
        lr = float(10 ** random.uniform(-5, -3))
        end = 1 + abs(math.log10(lr) + 3.5) + 0.001 * float(random.random())
        state: State = "pruned" if number % 3 == 2 else "finished"
        steps = range(0, 21 if state == "pruned" else 61, 10)
        curve = tuple((float(step), end + 2 * math.exp(-step / 10)) for step in steps)
        params = {
            LR: lr, RANK: int(random.choice([8, 16, 32])), WARMUP: float(random.uniform(0, 0.1))
        }  # fmt: skip
        trials.append(Trial(f"trial-{number:02d}", state, params, curve[-1][1], int(curve[-1][0]),
                            curve=curve))  # fmt: skip
    return trials
