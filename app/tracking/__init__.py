"""Tracking of a job as one MLflow run. Other packages import these names and nothing else."""

from app.tracking.config import TrackingConfig, resolve_uri
from app.tracking.mlflow_store import (
    attach_run,
    check_tracking,
    final_status,
    open_run,
    ui_command,
)
from app.tracking.tracker import NullTracker, Status, Tracker

__all__ = [
    "NullTracker",
    "Status",
    "Tracker",
    "TrackingConfig",
    "attach_run",
    "check_tracking",
    "final_status",
    "open_run",
    "resolve_uri",
    "ui_command",
]
