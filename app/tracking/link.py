"""Links into MLflow's web pages."""

import json
import shlex
from collections.abc import Sequence
from urllib.parse import quote, urlsplit

from app.tracking.config import TrackingConfig, resolve_uri
from app.tracking.mlflow_store import SERVERS
from data_pipeline.masking import mask_secrets

MAX_COMPARED = 100
"""Runs on one comparison page: a browser accepts the link, and the page stays readable."""
_LOCAL = "http://127.0.0.1:5000"


def build_comparison_link(
    config: TrackingConfig, experiment_id: str, run_ids: Sequence[str]
) -> str:
    """Return the address of MLflow's page that compares the runs, without credentials.

    It has the first MAX_COMPARED of them. For a database it is the address at the default port of
    `ui`.
    """
    parts = urlsplit(str(config.uri))
    is_server = parts.scheme in SERVERS
    server = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
    runs, experiments = (
        quote(json.dumps(list(ids), separators=(",", ":")))
        for ids in (run_ids[:MAX_COMPARED], [experiment_id])
    )
    page = f"#/compare-runs?runs={runs}&experiments={experiments}"
    return f"{server if is_server else _LOCAL}/{page}"


def describe_ui_command(config: TrackingConfig, config_file: str) -> str | None:
    """Return the command that serves the link of a database; None for a tracking server."""
    uri = str(resolve_uri(config).uri)
    if urlsplit(uri).scheme in SERVERS:
        return None
    command = ["python", "-m", "app", "ui", config_file, f"tracking.uri={mask_secrets(uri)}"]
    return shlex.join(command)
