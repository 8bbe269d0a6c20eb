"""A trial of Tune's class API that follows a formula, and can pause and continue."""

import json
from pathlib import Path
from typing import Any

import ray.tune

from tune.keys import METRIC_KEY, OVERRIDES_KEY, STEP_KEY


class ToyTrial(ray.tune.Trainable):
    """A trial whose loss falls with a rate of its own: floor + rate / step.

    The state of the model is the list of the rates of all steps so far. A checkpoint has it.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self.history: list[float] = []
        self.set_values(config)

    def set_values(self, config: dict[str, Any]) -> None:
        self.overrides = config[OVERRIDES_KEY]
        self.num_steps = config.get("num_steps", 16)

    def step(self) -> dict[str, Any]:
        self.history.append(self.overrides["x"])
        step = len(self.history)
        if self.overrides["x"] == -1 and step == 3:
            raise ValueError("x is -1")
        loss = sum(self.history) / step + 1 / step
        is_last = step == self.num_steps
        return {
            STEP_KEY: step,
            METRIC_KEY: loss,
            "history": list(self.history),
            "finished": is_last,
            "done": is_last,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        Path(checkpoint_dir, "history.json").write_text(json.dumps(self.history))

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        self.history = json.loads(Path(checkpoint_dir, "history.json").read_text())

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.history = []
        self.set_values(new_config)
        return True
