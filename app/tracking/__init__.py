"""Tracking of a job as one MLflow run. Other packages import these names and nothing else."""

from app.tracking.config import TrackingConfig, resolve_uri
from app.tracking.mlflow_store import (
    attach_run,
    build_ui_command,
    check_tracking,
    get_final_status,
    kill_running_children,
    open_run,
    reopen_run,
)
from app.tracking.tracker import NullTracker, Status, Tracker

__all__ = [
    "NullTracker",
    "Status",
    "Tracker",
    "TrackingConfig",
    "attach_run",
    "build_ui_command",
    "check_tracking",
    "get_final_status",
    "kill_running_children",
    "open_run",
    "reopen_run",
    "resolve_uri",
]
