"""Operations on one MLflow run. Each may be sent twice, because its answer can get lost."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.tracking.mlflow_client import extend_timeout_for_upload, make_client, print_notice
from data_pipeline.masking import mask_secrets

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

MAX_DIGEST_CHARACTERS = 36
"""Limit of MLflow (mlflow.utils.validation)."""

Point = list[Any]
"""Metric name, value, time (ms since 1970) and step. A list, as JSON returns it."""


class MlflowOperations:
    """Requests that change one run, and a copy of the run that makes them repeatable."""

    def __init__(self, uri: str, run_id: str, *, timeout_seconds: int) -> None:
        self._uri = uri
        self._run_id = run_id
        self._client = make_client(uri, timeout_seconds)
        self._experiment_id = ""  # this and the next three are empty until the run is read
        self._last: dict[str, Point] = {}
        self._params: dict[str, str] = {}
        self._tags: dict[str, str] = {}

    @property
    def has_read_run(self) -> bool:
        return bool(self._experiment_id)

    def read_run(self) -> None:
        """Read the last point of each metric, the params and the tags from the server."""
        run = self._client.get_run(self._run_id)
        self._last = {
            metric.key: [metric.key, metric.value, metric.timestamp, metric.step]
            for metric in run.data.to_proto().metrics
        }
        self._params = dict(run.data.params)
        self._tags = dict(run.data.tags)
        self._experiment_id = run.info.experiment_id

    def send(self, operation: str, arguments: list[Any]) -> None:
        """Send one operation. It raises whatever error MLflow raises."""
        methods: dict[str, Callable[..., None]] = {
            "params": self._send_params,
            "tags": self._send_tags,
            "metrics": self._send_metrics,
            "scores": self._send_scores,
            "dataset": self._send_dataset,
            "checkpoint": self._send_checkpoint,
            "artifact": self._send_artifact,
            "text": self._send_text,
            "status": self._send_status,
        }
        methods[operation](*arguments)

    def _send_params(self, params: dict[str, str]) -> None:
        from mlflow.entities import Param

        # params that the run does not have
        new = {key: value for key, value in params.items() if key not in self._params}
        self._client.log_batch(
            self._run_id, params=[Param(*item) for item in new.items()], synchronous=True
        )
        self._params |= new

        # tags for params that changed, and for those that changed back
        changed = {}
        for key, value in params.items():
            tag = f"resumed.{key}"
            if value != self._params[key] or tag in self._tags:
                changed[tag] = value
        self._send_tags(changed)

    def _send_tags(self, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(
            self._run_id, tags=[RunTag(*item) for item in tags.items()], synchronous=True
        )
        self._tags |= tags

    def _send_metrics(self, points: list[Point]) -> None:
        from mlflow.entities import Metric

        last, new = dict(self._last), []
        for name, value, time_ms, step in points:
            if name not in last or step > last[name][3]:
                last[name] = [name, value, time_ms, step]
                new.append(Metric(name, value, time_ms, step))

        self._client.log_batch(self._run_id, metrics=new, synchronous=True)
        self._last = last

    def _send_scores(self, step: int, points: list[Point]) -> None:
        self._send_metrics(points)
        for model in self._find_models(f"tags.step = '{step}'"):
            self._send_model_metrics(model, step, points)

    def _find_models(self, condition: str) -> list["LoggedModel"]:
        """Return the models of the run that fulfil a condition."""
        of_run = f"source_run_id = '{self._run_id}' AND {condition}"
        return list(self._client.search_logged_models([self._experiment_id], filter_string=of_run))

    def _send_dataset(
        self, name: str, digest: str, num_records: int, context: str, source: str
    ) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=name,
            digest=digest[:MAX_DIGEST_CHARACTERS],
            source_type="local",
            source=json.dumps({"uri": source}),
            profile=json.dumps({"num_rows": num_records, "digest": digest}),  # MLflow's own name
        )
        inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])]
        self._client.log_inputs(self._run_id, datasets=inputs)

    def _send_checkpoint(
        self,
        step: int,
        folder: str,
        name: str,
        points: list[Point],
        files: bool,
        params: dict[str, str] | None = None,  # a record kept by an earlier version has none
    ) -> None:
        from mlflow.entities import LoggedModelStatus

        # find or create the model
        found = self._find_models(f"name = '{name}' AND tags.step = '{step}'")
        if found and found[0].status == LoggedModelStatus.READY:
            return
        new = (self._experiment_id, name, self._run_id, {"step": str(step)}, params)
        model = found[0] if found else self._client.create_logged_model(*new)

        # metrics
        self._send_model_metrics(model, step, points)

        # files
        if files and Path(folder).is_dir():
            with extend_timeout_for_upload():
                self._client.log_model_artifacts(model.model_id, folder)
        elif files:
            print_notice(
                f"the files of {name} were removed before MLflow at {mask_secrets(self._uri)} "
                "accepted them"
            )

        # output of the run
        self._send_output(model, step)
        self._client.finalize_logged_model(model.model_id, "READY")

    def _send_model_metrics(self, model: "LoggedModel", step: int, points: list[Point]) -> None:
        """Log metrics of the run and of the model.

        MLflow adds a model's metrics to its run as well. A point that is equal in value and time to
        the run's own point is stored once.
        """
        from mlflow.entities import Metric

        # points that the run has at this step
        known = {name: point for name, point in self._last.items() if point[3] == step}
        for name in {name for name, *_ in points} - known.keys():
            for stored in self._client.get_metric_history(self._run_id, name):
                if stored.step == step:
                    known[name] = [name, stored.value, stored.timestamp, step]

        # points that it does not have
        self._send_metrics([point for point in points if point[0] not in known])

        # metrics of the model
        metrics = []
        for point in points:
            key, value, time_ms, at_step = known.get(point[0], point)
            metrics.append(Metric(key, value, time_ms, at_step, model.model_id))
        self._client.log_batch(self._run_id, metrics=metrics, synchronous=True)

    def _send_output(self, model: "LoggedModel", step: int) -> None:
        from mlflow.entities import LoggedModelOutput

        outputs = self._client.get_run(self._run_id).outputs
        logged = [] if outputs is None else [output.model_id for output in outputs.model_outputs]
        if model.model_id not in logged:
            self._client.log_outputs(self._run_id, [LoggedModelOutput(model.model_id, step)])

    def _send_artifact(self, path: str, folder: str | None) -> None:
        with extend_timeout_for_upload():
            self._client.log_artifact(self._run_id, path, folder)

    def _send_text(self, text: str, file: str) -> None:
        with extend_timeout_for_upload():
            self._client.log_text(self._run_id, text, file)

    def _send_status(self, status: str, end_time_ms: int) -> None:
        self._client.set_terminated(self._run_id, status, end_time_ms)
