"""Interface that records a job, and an implementation that records nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker(Protocol):
    """Record of one run.

    While the server is down, only `flush` and `finish` raise, and no call waits longer than
    `timeout_seconds`. Unsent records are kept in order, and a later call sends them. A record that
    the server refuses is skipped, and a notice names it.
    """

    @property
    def run_id(self) -> str | None:
        """Id of the run; None if nothing is tracked."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log the resolved config, flat, with dotted keys.

        Credentials in URIs are masked, and long values are cut. A value that differs from the
        run's first value becomes the tag `resumed.<key>`.
        """

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run, masked and cut like params. A tag that is set again is replaced."""

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log metrics of one step in one request.

        The steps of each metric increase: a step that the run already has is skipped.
        """

    def log_scores(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log metrics of the run, and of the models of this step that `log_checkpoint` logged."""

    def log_dataset(
        self, name: str, *, digest: str, num_records: int, context: str, source: str
    ) -> None:
        """Log data that the run reads; `context` is its use: "training" or "validation"."""

    def log_checkpoint(
        self,
        step: int,
        folder: Path,
        *,
        name: str,
        metrics: Mapping[str, float],
        files: bool,
        materials: Mapping[str, Any] = {},
    ) -> None:
        """Log a model of this step; with `files`, also the content of its folder.

        `materials` become the model's params: everything that it was made of.

        Call it before another process can resume from the checkpoint: the tracker writes unsent
        records to the job's folder here. (name, step) is logged once, even if it is called again.
        """

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file into a folder of the run's artifacts."""

    def log_text(self, text: str, file: str) -> None:
        """Log text as a file of the run, with credentials in URIs masked."""

    def flush(self) -> None:
        """Send the unsent records, or leave them in the job's folder for the driver's `finish`.

        It is the last call of a worker. Raises UserError if records are unsent and there is no
        folder.
        """

    def finish(self, status: Status) -> None:
        """Send the unsent records, also those of the workers, and close the run.

        It is the last call of the driver. Raises UserError if the server does not accept all
        records within `timeout_seconds`.
        """


class NullTracker:
    """Tracker that records nothing."""

    run_id: str | None = None

    def log_params(self, params: Mapping[str, Any]) -> None: ...
    def set_tags(self, tags: Mapping[str, str]) -> None: ...
    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def log_scores(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def log_dataset(
        self, name: str, *, digest: str, num_records: int, context: str, source: str
    ) -> None: ...
    def log_checkpoint(
        self,
        step: int,
        folder: Path,
        *,
        name: str,
        metrics: Mapping[str, float],
        files: bool,
        materials: Mapping[str, Any] = {},
    ) -> None: ...
    def log_artifact(self, path: Path, folder: str | None = None) -> None: ...
    def log_text(self, text: str, file: str) -> None: ...
    def flush(self) -> None: ...
    def finish(self, status: Status) -> None: ...
