"""Load of this machine: CPU, memory, disk, network and GPUs, as MLflow measures it."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor

EVERY_SECONDS = 10.0


class SystemMetrics:
    """MLflow's system metrics, sampled by the training loop.

    MLflow's own thread would stop for good when the tracking server is down, and would number its
    samples anew in a job that continues. Samples of the loop belong to an optimizer step, and
    `Tracker.log_metrics` keeps them like other metrics.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next_at = clock()
        self._monitors = _open_monitors()
        self._collect()  # psutil measures the load since the call before

    def sample(self) -> dict[str, float]:
        """Return the metrics `system/…`, or nothing if the last ones are newer than 10 s."""
        now = self._clock()
        if now < self._next_at:
            return {}
        self._next_at = now + EVERY_SECONDS
        return {f"system/{name}": value for name, value in self._collect().items()}

    def _collect(self) -> dict[str, float]:
        measured: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            measured |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        return measured


def _open_monitors() -> "list[BaseMetricsMonitor]":
    """Return the monitors of this machine, with GPUs if NVIDIA's or AMD's library finds any.

    `SystemMetricsMonitor` would open a tracking store.
    """
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
    from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

    monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    for kind in (GPUMonitor, ROCMMonitor):
        try:
            monitors.append(kind())
        except Exception:  # no GPU, or its library is not installed
            continue
    return monitors
