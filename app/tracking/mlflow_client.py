"""MLflow's client with short timeouts, and its messages.

MLflow takes 3 s to import, so functions import it where they use it.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from app.storage import join_uri, read_json, read_value
from data_pipeline.masking import mask_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient

UPLOAD_TIMEOUT_SECONDS = 600
"""A proxying server answers an upload only after it has stored the whole file itself."""
_TIMEOUT_VARIABLE = "MLFLOW_HTTP_REQUEST_TIMEOUT"


def make_client(uri: str, timeout_seconds: int) -> "MlflowClient":
    """Return a client whose requests fail after `timeout_seconds`.

    MLflow's own retries would take 247 s.
    """
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ[_TIMEOUT_VARIABLE] = str(timeout_seconds)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def extend_timeout_for_upload() -> Iterator[None]:
    """Let requests take UPLOAD_TIMEOUT_SECONDS inside the context."""
    before = os.environ[_TIMEOUT_VARIABLE]
    os.environ[_TIMEOUT_VARIABLE] = str(UPLOAD_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        os.environ[_TIMEOUT_VARIABLE] = before


def describe_error(error: BaseException) -> str:
    """Return the first line of the original error.

    MLflow wraps a refused connection four times.
    """
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return mask_secrets(f"{type(error).__name__}: {error}".partition("\n")[0])[:300]


def is_refusal(error: Exception) -> bool:
    """Return True if MLflow answered that it will never accept this request.

    Other errors may pass: no connection, a wrong password, too many requests, a busy database.
    """
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
    return isinstance(error, FileNotFoundError | IsADirectoryError | UnicodeError)


def print_notice(text: str) -> None:
    """Print a line about tracking to stderr."""
    print(f"tracking: {text}", file=sys.stderr, flush=True)


def read_run_id(job_dir: str) -> str | None:
    """Return the id of the job's run, None if it has none. Raises UserError for a damaged file."""
    run_file = join_uri(job_dir, "mlflow_run.json")
    saved = read_json(run_file)
    return None if saved is None else read_value(run_file, saved, "run_id", str)
