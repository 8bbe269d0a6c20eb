"""One MLflow run, recorded so that nothing is lost, doubled or waited for. Only `tracking.py` uses it, and it
knows no config. MLflow takes 3 s to import, so that is done where it is used."""

import json
import os
import re
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.errors import UserError
from app.storage import join_uri, mask_secrets, read_json, write_json

if TYPE_CHECKING:
    from mlflow import MlflowClient

MAX_PARAM_CHARACTERS = 6000  # this and the next three: mlflow.utils.validation
MAX_TAG_CHARACTERS = 8000
MAX_DIGEST_CHARACTERS = 36
MAX_METRICS_PER_REQUEST = 1000
UPLOAD_TIMEOUT_SECONDS = (
    600  # a proxying server answers only when it has itself stored the whole file
)
_TIMEOUT_VARIABLE = "MLFLOW_HTTP_REQUEST_TIMEOUT"

Point = list[Any]  # metric name, value, time (ms since 1970), step; a list, as JSON gives it back


def make_client(uri: str, timeout_seconds: int) -> "MlflowClient":
    """A client that gives up a request after `timeout_seconds`, where MLflow's own retries take 247 s."""
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ[_TIMEOUT_VARIABLE] = str(timeout_seconds)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def describe_error(error: BaseException) -> str:
    """The first line of what an error began with: MLflow wraps a refused connection four times."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return mask_secrets(f"{type(error).__name__}: {error}".partition("\n")[0])[:300]


class MlflowRun:
    """`app.tracking.Tracker` on an MLflow run: an ordered queue of operations, each of which may be repeated.

    No step is doubled: the server is asked once for the last step of each metric, and only points beyond it
    are sent. The rule is per metric name, so the evaluation at a step passes although training has logged
    that step. A request whose answer was lost is repeated with the same times, and MLflow keeps one row per
    (name, step, time, value). No step is missing: points leave in order, so there is no gap below the last
    step, and what is unsent at a checkpoint is kept in the job's folder for whoever resumes from it.
    """

    def __init__(
        self, uri: str, run_id: str, *, timeout_seconds: int, job_dir: str | None, is_driver: bool
    ) -> None:
        self.run_id = run_id
        self._uri = uri
        self._timeout_seconds = timeout_seconds
        self._client = make_client(uri, timeout_seconds)
        self._unsent_file = None if job_dir is None else join_uri(job_dir, "mlflow_unsent.json")
        self._unsent: deque[list[Any]] = deque()  # [operation, arguments], in JSON's types
        self._is_kept = False
        self._is_down = False
        self._retry_at = 0.0
        self._is_driver = is_driver
        self._experiment_id = ""  # this and the next three: empty until the server was asked
        self._last: dict[str, Point] = {}
        self._params: dict[str, str] = {}
        self._tags: dict[str, str] = {}
        self._take_kept()

    def log_params(self, params: Mapping[str, Any]) -> None:
        self._do("params", _texts(params, MAX_PARAM_CHARACTERS))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._do("tags", _texts(tags, MAX_TAG_CHARACTERS))

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        points = _points(step, metrics)
        operation, arguments = self._unsent[-1] if self._unsent else ("", [[]])
        if operation == "metrics" and len(arguments[0]) + len(points) <= MAX_METRICS_PER_REQUEST:
            arguments[0] += points  # a long outage is caught up in few requests
            self._send()
        else:
            self._do("metrics", points)

    def log_dataset(
        self, name: str, *, digest: str, num_rows: int, context: str, source: str
    ) -> None:
        self._do("dataset", name, digest, num_rows, context, mask_secrets(source))

    def log_checkpoint(
        self, step: int, folder: Path, *, name: str, metrics: Mapping[str, float], files: bool
    ) -> None:
        self._do("checkpoint", step, str(folder), name, _points(step, metrics), files)
        if self._unsent:
            self._keep()

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        self._do("artifact", str(path), folder)

    def log_text(self, text: str, file: str) -> None:
        self._do("text", mask_secrets(text), file)

    def flush(self) -> None:
        deadline = time.monotonic() + self._timeout_seconds
        self._send(at_once=True)
        while self._unsent and time.monotonic() < deadline:
            time.sleep(0.2)
            self._send(at_once=True)
        if self._unsent:
            if self._unsent_file is None:
                raise self._not_taken("are lost")
            self._keep()

    def finish(self, status: str) -> None:
        self._take_kept()
        self._do("status", status, _now_ms())
        self.flush()
        if self._unsent:
            raise self._not_taken(f"are kept in {self._unsent_file}, for when the job is run again")

    def _not_taken(self, fate: str) -> UserError:
        return UserError(
            f"{mask_secrets(self._uri)} did not take all of run {self.run_id} within {self._timeout_seconds} s: "
            f"{len(self._unsent)} records {fate}; start the tracking server"
        )

    # The queue

    def _do(self, operation: str, *arguments: Any) -> None:
        self._unsent.append([operation, list(arguments)])
        self._send()

    def _send(self, *, at_once: bool = False) -> None:
        """Send in order until one fails, for whatever reason: tracking never ends a training."""
        started = time.monotonic()
        if started < self._retry_at and not at_once:
            return
        try:
            self._read_run()
            while self._unsent:
                operation, arguments = self._unsent[0]
                getattr(self, f"_send_{operation}")(*arguments)
                self._unsent.popleft()
        except Exception as error:
            # a refusal costs a millisecond, silence costs the timeout: at most a tenth of the time is waited
            self._retry_at = time.monotonic() + 9 * (time.monotonic() - started)
            if not self._is_down:
                _say(
                    f"{mask_secrets(self._uri)} takes nothing now ({describe_error(error)}); what it misses is sent later"
                )
            self._is_down = True
            return
        if self._is_down:
            _say(f"{mask_secrets(self._uri)} has now taken everything that it missed")
        self._is_down = False
        if self._is_kept and self._unsent_file:
            write_json(self._unsent_file, {})
            self._is_kept = False

    def _keep(self) -> None:
        if self._unsent_file is None:
            return
        unsent = [
            entry for entry in self._unsent if entry[0] != "status"
        ]  # a job that goes on has not ended
        write_json(self._unsent_file, {"run_id": self.run_id, "unsent": unsent})
        self._is_kept = True

    def _take_kept(self) -> None:
        """Put what an earlier process of the job could not send before what this one has to send."""
        kept = (read_json(self._unsent_file) if self._unsent_file else None) or {}
        if kept.get("run_id") == self.run_id:
            self._unsent.extendleft(
                entry for entry in reversed(kept["unsent"]) if entry not in self._unsent
            )
            self._is_kept = True

    def _read_run(self) -> None:
        if (
            self._is_driver or not self._experiment_id
        ):  # a driver calls seldom, after a worker wrote
            run = self._client.get_run(self.run_id)
            self._last = {
                metric.key: [metric.key, metric.value, metric.timestamp, metric.step]
                for metric in run.data.to_proto().metrics
            }
            self._params, self._tags = dict(run.data.params), dict(run.data.tags)
            self._experiment_id = run.info.experiment_id

    # The operations. Each may be sent twice: its answer can get lost.

    def _send_params(self, params: dict[str, str]) -> None:
        from mlflow.entities import Param

        new = {key: value for key, value in params.items() if key not in self._params}
        self._client.log_batch(
            self.run_id, params=[Param(*item) for item in new.items()], synchronous=True
        )
        self._params |= new
        resumed = {f"resumed.{key}": (value, self._params[key]) for key, value in params.items()}
        self._send_tags(
            {key: new for key, (new, old) in resumed.items() if new != old or key in self._tags}
        )

    def _send_tags(self, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(
            self.run_id, tags=[RunTag(*item) for item in tags.items()], synchronous=True
        )
        self._tags |= tags

    def _send_metrics(self, points: list[Point]) -> None:
        from mlflow.entities import Metric

        last, new = dict(self._last), []
        for name, value, time_ms, step in points:
            if name not in last or step > last[name][3]:
                last[name] = [name, value, time_ms, step]
                new.append(Metric(name, value, time_ms, step))
        self._client.log_batch(self.run_id, metrics=new, synchronous=True)
        self._last = last

    def _send_dataset(
        self, name: str, digest: str, num_rows: int, context: str, source: str
    ) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=name,
            digest=digest[:MAX_DIGEST_CHARACTERS],
            source_type="local",
            source=json.dumps({"uri": source}),
            profile=json.dumps({"num_rows": num_rows, "digest": digest}),
        )
        inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])]
        self._client.log_inputs(self.run_id, datasets=inputs)

    def _send_checkpoint(
        self, step: int, folder: str, name: str, points: list[Point], files: bool
    ) -> None:
        from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric

        same = f"name = '{name}' AND source_run_id = '{self.run_id}' AND tags.step = '{step}'"
        found = self._client.search_logged_models([self._experiment_id], filter_string=same)
        if found and found[0].status == LoggedModelStatus.READY:
            return
        new = (self._experiment_id, name, self.run_id, {"step": str(step)})
        model = found[0] if found else self._client.create_logged_model(*new)
        # MLflow gives a model's metrics to its run as well, where only the very same point is not a double
        known = {
            name: [name, point.value, point.timestamp, step]
            for name, *_ in points
            for point in self._client.get_metric_history(self.run_id, name)
            if point.step == step
        }
        self._send_metrics([point for point in points if point[0] not in known])
        own = [known.get(point[0], point) for point in points]
        metrics = [Metric(key, value, at, of, model.model_id) for key, value, at, of in own]
        self._client.log_batch(self.run_id, metrics=metrics, synchronous=True)
        if files and Path(folder).is_dir():
            with _upload_timeout():
                self._client.log_model_artifacts(model.model_id, folder)
        elif files:
            _say(
                f"the files of {name} were removed before {mask_secrets(self._uri)} could take them"
            )
        outputs = self._client.get_run(self.run_id).outputs
        if outputs is None or all(
            output.model_id != model.model_id for output in outputs.model_outputs
        ):
            self._client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, step)])
        self._client.finalize_logged_model(model.model_id, "READY")

    def _send_artifact(self, path: str, folder: str | None) -> None:
        with _upload_timeout():
            self._client.log_artifact(self.run_id, path, folder)

    def _send_text(self, text: str, file: str) -> None:
        with _upload_timeout():
            self._client.log_text(self.run_id, text, file)

    def _send_status(self, status: str, end_time_ms: int) -> None:
        self._client.set_terminated(self.run_id, status, end_time_ms)


@contextmanager
def _upload_timeout() -> Iterator[None]:
    before = os.environ[_TIMEOUT_VARIABLE]
    os.environ[_TIMEOUT_VARIABLE] = str(UPLOAD_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        os.environ[_TIMEOUT_VARIABLE] = before


def _points(step: int, metrics: Mapping[str, float]) -> list[Point]:
    now_ms = _now_ms()
    return [[_name(key), float(value), now_ms, step] for key, value in metrics.items()]


def _texts(values: Mapping[str, Any], max_characters: int) -> dict[str, str]:
    """Values without credentials, and no longer than MLflow takes; a cut shows."""
    texts = {_name(key): mask_secrets(str(value)) for key, value in values.items()}
    return {
        key: text if len(text) <= max_characters else text[: max_characters - 7] + "… (cut)"
        for key, text in texts.items()
    }


def _name(name: str) -> str:
    return re.sub(r"[^\w\-./: ]", "_", name)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _say(text: str) -> None:
    print(f"tracking: {text}", file=sys.stderr, flush=True)
