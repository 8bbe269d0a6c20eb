"""Compute the speed of a step: tokens, operations, and the share of the card's measured peak."""

from dataclasses import dataclass

from transformers import Gemma2Config

from app.gemma.config import LoraConfig
from app.gemma.flops import Workload, count_step_flops
from app.training.step import StepTotals


@dataclass(frozen=True)
class SpeedMeter:
    """The parts of a job that turn counted tokens into operations a second."""

    model: Gemma2Config
    lora: LoraConfig
    num_workers: int
    peak_flops: float | None
    """Measured speed of matrix products on one worker's device (operations a second).

    None if it was not measured.
    """

    @property
    def window(self) -> int | None:
        """Sliding window of the model (tokens)."""
        return self.model.sliding_window

    def count_flops(self, totals: StepTotals) -> int:
        """Return the useful operations of a step of all workers.

        Padding and recomputation are not useful.
        """
        work = Workload(
            totals.num_tokens, totals.num_targets, totals.num_pairs, totals.num_window_pairs
        )
        return count_step_flops(self.model, self.lora, work).total


def measure_speed(
    meter: SpeedMeter | None, totals: StepTotals, *, wait_seconds: float, step_seconds: float
) -> dict[str, float]:
    """Return the metrics of a step's speed, over all workers.

    `speed/mfu` is the model FLOPs utilisation (Chowdhery et al. 2022, arXiv:2204.02311, app. B)
    against the measured peak of the devices. It is left out if no peak is known.
    """
    seconds = step_seconds + wait_seconds
    metrics = {
        "speed/tokens_per_second": totals.num_tokens / seconds,
        "speed/step_seconds": step_seconds,
        "speed/data_wait_seconds": wait_seconds,
    }
    if meter is not None:
        flops_per_second = meter.count_flops(totals) / seconds
        metrics["speed/tflops"] = flops_per_second / 1e12
        if meter.peak_flops is not None:
            metrics["speed/mfu"] = flops_per_second / (meter.peak_flops * meter.num_workers)
    return metrics
