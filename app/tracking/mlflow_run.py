"""Tracker on one MLflow run: a queue that keeps records and sends them in order.

No record is lost or doubled, and training does not wait for the server.
"""

import json
import re
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.errors import UserError
from app.storage import join_uri, read_json, read_value, write_json
from app.tracking.mlflow_client import describe_error, is_refusal, print_notice
from app.tracking.mlflow_operations import MlflowOperations, Point
from data_pipeline.masking import mask_secrets

# Limits of MLflow (mlflow.utils.validation).
MAX_PARAM_CHARACTERS = 6000
MAX_TAG_CHARACTERS = 8000
MAX_METRICS_PER_REQUEST = 1000


class MlflowRun:
    """`app.tracking.Tracker` on an MLflow run: an ordered queue of repeatable operations.

    No step is doubled. The tracker reads the last step of each metric from the server once, and
    sends only later points. The rule is per metric name, so the evaluation of a step is accepted
    although training has already logged that step. A request whose answer was lost is repeated with
    the same times, and MLflow stores one row per (name, step, time, value).

    No step is missing. Points are sent in order, so there is no gap below the last step. At a
    checkpoint the unsent records are written to the job's folder, for the process that resumes.
    A record that MLflow refuses is skipped and named, so that it does not block the later ones.
    """

    def __init__(
        self, uri: str, run_id: str, *, timeout_seconds: int, job_dir: str | None, is_driver: bool
    ) -> None:
        self.run_id = run_id
        self._server = f"MLflow at {mask_secrets(uri)}"
        self._timeout_seconds = timeout_seconds
        self._operations = MlflowOperations(uri, run_id, timeout_seconds=timeout_seconds)
        self._is_driver = is_driver

        self._unsent: deque[list[Any]] = deque()  # [operation, arguments], as JSON types
        self._unsent_file = None if job_dir is None else join_uri(job_dir, "mlflow_unsent.json")
        self._is_kept = False  # True: the file holds unsent records
        self._is_down = False
        self._retry_at = 0.0
        self._load_kept()

    def log_params(self, params: Mapping[str, Any]) -> None:
        self._enqueue("params", to_params(params))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._enqueue("tags", _to_texts(tags, MAX_TAG_CHARACTERS))

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        points = _make_points(step, metrics)
        operation, arguments = self._unsent[-1] if self._unsent else ("", [[]])

        # Merge requests, so that few are needed after a long outage.
        if operation == "metrics" and len(arguments[0]) + len(points) <= MAX_METRICS_PER_REQUEST:
            arguments[0] += points
            self._send_unsent()
        else:
            self._enqueue("metrics", points)

    def log_scores(self, step: int, metrics: Mapping[str, float]) -> None:
        self._enqueue("scores", step, _make_points(step, metrics))

    def log_dataset(
        self, name: str, *, digest: str, num_records: int, context: str, source: str
    ) -> None:
        self._enqueue("dataset", name, digest, num_records, context, mask_secrets(source))

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
        points, params = _make_points(step, metrics), to_params(materials)
        self._enqueue("checkpoint", step, str(folder), name, points, files, params)
        if self._unsent:
            self._keep_unsent()

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        self._enqueue("artifact", str(path), folder)

    def log_text(self, text: str, file: str) -> None:
        self._enqueue("text", mask_secrets(text), file)

    def flush(self) -> None:
        # send
        deadline = time.monotonic() + self._timeout_seconds
        self._send_unsent(at_once=True)
        while self._unsent and time.monotonic() < deadline:
            time.sleep(0.2)
            self._send_unsent(at_once=True)

        # keep the rest
        if self._unsent:
            if self._unsent_file is None:
                raise self._make_error("are lost")
            self._keep_unsent()

    def finish(self, status: str) -> None:
        self._load_kept()
        self._enqueue("status", status, _now_ms())
        self.flush()
        if self._unsent:
            raise self._make_error(
                f"are kept in {self._unsent_file} and sent when the job is run again"
            )

    def _make_error(self, consequence: str) -> UserError:
        return UserError(
            f"{self._server} did not accept all records of run {self.run_id} within "
            f"{self._timeout_seconds} s: {len(self._unsent)} records {consequence}; "
            "start the tracking server"
        )

    def _enqueue(self, operation: str, *arguments: Any) -> None:
        self._unsent.append([operation, list(arguments)])
        self._send_unsent()

    def _send_unsent(self, *, at_once: bool = False) -> None:
        """Send in order until one operation fails.

        Any error is printed and not raised, because tracking must not end a training.
        """
        started = time.monotonic()
        if started < self._retry_at and not at_once:
            return

        # send
        try:
            # A driver reads the run every time: it sends rarely, and workers write in between.
            if self._is_driver or not self._operations.has_read_run:
                self._operations.read_run()
            while self._unsent:
                self._send_first()
        except Exception as error:
            # A refused connection takes 1 ms, no answer takes the timeout: wait 9 times as long
            # before the next try, so that at most a tenth of the time is spent on waiting.
            self._retry_at = time.monotonic() + 9 * (time.monotonic() - started)
            if not self._is_down:
                print_notice(
                    f"{self._server} accepts no requests ({describe_error(error)}); "
                    "unsent records are kept and sent later"
                )
            self._is_down = True
            return

        # after an outage
        if self._is_down:
            print_notice(f"{self._server} accepts requests again; all kept records were sent")
        self._is_down = False
        if self._is_kept and self._unsent_file:
            write_json(self._unsent_file, {})
            self._is_kept = False

    def _send_first(self) -> None:
        """Send the first record. If MLflow refuses it, halve it, or skip it and print its name."""
        operation, arguments = self._unsent[0]
        try:
            self._operations.send(operation, arguments)
        except Exception as error:
            if not is_refusal(error):
                raise
            halves = _halve(operation, arguments)
            if not halves:
                name = json.dumps([operation, *arguments])[:200]
                print_notice(
                    f"{self._server} refused the record {mask_secrets(name)} of run {self.run_id} "
                    f"({describe_error(error)}); it is skipped, and the others are sent"
                )
            self._unsent.popleft()
            self._unsent.extendleft(reversed(halves))
        else:
            self._unsent.popleft()

    def _keep_unsent(self) -> None:
        """Write the unsent records to the job's folder, if there is one."""
        if self._unsent_file is None:
            return
        # Without the status: a job that is resumed has not ended.
        unsent = [entry for entry in self._unsent if entry[0] != "status"]
        write_json(self._unsent_file, {"run_id": self.run_id, "unsent": unsent})
        self._is_kept = True

    def _load_kept(self) -> None:
        """Put the unsent records of an earlier process of the job at the front of the queue."""
        kept = (read_json(self._unsent_file) if self._unsent_file else None) or {}
        if kept.get("run_id") != self.run_id:
            return
        assert self._unsent_file is not None
        unsent = read_value(self._unsent_file, kept, "unsent", list)
        self._unsent.extendleft(entry for entry in reversed(unsent) if entry not in self._unsent)
        self._is_kept = True


def _halve(operation: str, arguments: list[Any]) -> list[list[Any]]:
    """Return two records with half of the metrics, params or tags each; none if there is one."""
    if operation not in ("metrics", "params", "tags") or len(arguments[0]) < 2:
        return []
    items = list(arguments[0].items() if isinstance(arguments[0], dict) else arguments[0])
    middle = len(items) // 2
    return [[operation, [type(arguments[0])(half)]] for half in (items[:middle], items[middle:])]


def _make_points(step: int, metrics: Mapping[str, float]) -> list[Point]:
    now_ms = _now_ms()
    return [[_to_mlflow_name(key), float(value), now_ms, step] for key, value in metrics.items()]


def to_params(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the values as params of a run or a model: as text without credentials, cut if long."""
    return _to_texts(values, MAX_PARAM_CHARACTERS)


def _to_texts(values: Mapping[str, Any], max_characters: int) -> dict[str, str]:
    """Return the values as text without credentials, cut to MLflow's limit with a mark."""
    texts = {}
    for key, value in values.items():
        text = mask_secrets(str(value))
        if len(text) > max_characters:
            text = text[: max_characters - 7] + "… (cut)"
        texts[_to_mlflow_name(key)] = text
    return texts


def _to_mlflow_name(name: str) -> str:
    return re.sub(r"[^\w\-./: ]", "_", name)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
