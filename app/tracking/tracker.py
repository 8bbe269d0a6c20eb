"""The interface of a job's record: a Tracker, and one that records nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker(Protocol):
    """The record of one run. Nothing but `flush` and `finish` raises while the server is away, and nothing
    waits for it longer than `timeout_seconds`: what it misses is kept, in order, and sent by a later call."""

    @property
    def run_id(self) -> str | None:
        """None: nothing is tracked."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """The resolved config, flat, with dotted keys. Credentials in URIs are masked, long values cut; a
        value that differs from the run's first becomes the tag `resumed.<key>`."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Labels of the run, masked and cut like params, and replaced when set again."""

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """One request. The steps of each metric only go up: one that the run has already is skipped."""

    def log_dataset(
        self, name: str, *, digest: str, num_rows: int, context: str, source: str
    ) -> None:
        """Data that the run read; `context` says what for: "training", "validation"."""

    def log_checkpoint(
        self, step: int, folder: Path, *, name: str, metrics: Mapping[str, float], files: bool
    ) -> None:
        """A model that the run made at this step; with `files`, the content of its folder too.

        Call it before anyone can resume from the checkpoint: unsent records are put into the job's folder
        here. (name, step) is logged once, however often it is called.
        """

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """A file, put into a folder of the run's artifacts."""

    def log_text(self, text: str, file: str) -> None:
        """Text as a file of the run, credentials in URIs masked."""

    def flush(self) -> None:
        """A worker's last call: send the rest, or leave it in the job's folder for the driver's `finish`.

        Raises:
            UserError: there is a rest, and no folder.
        """

    def finish(self, status: Status) -> None:
        """The driver's last call: send the rest, and what workers left; close the run.

        Raises:
            UserError: the server did not take it all within `timeout_seconds`.
        """


class NullTracker:
    """Tracks nothing."""

    run_id: str | None = None

    def log_params(self, params: Mapping[str, Any]) -> None: ...
    def set_tags(self, tags: Mapping[str, str]) -> None: ...
    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def log_dataset(
        self, name: str, *, digest: str, num_rows: int, context: str, source: str
    ) -> None: ...
    def log_checkpoint(
        self, step: int, folder: Path, *, name: str, metrics: Mapping[str, float], files: bool
    ) -> None: ...
    def log_artifact(self, path: Path, folder: str | None = None) -> None: ...
    def log_text(self, text: str, file: str) -> None: ...
    def flush(self) -> None: ...
    def finish(self, status: Status) -> None: ...
