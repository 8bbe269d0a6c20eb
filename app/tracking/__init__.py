"""Tracking of a job as one MLflow run. Other packages import these names and nothing else."""

from app.tracking.config import TrackingConfig, resolve_uri
from app.tracking.earlier_trials import read_completed_trials
from app.tracking.mlflow_store import (
    attach_run,
    build_ui_command,
    check_tracking,
    get_final_status,
    kill_running_children,
    open_run,
    reopen_run,
    run_ui,
)
from app.tracking.registry import (
    REGISTRY_SCHEME,
    ModelNotRegistered,
    find_champion,
    find_registered_checkpoint,
    register_model,
    set_champion,
)
from app.tracking.tracker import NullTracker, Status, Tracker

__all__ = [
    "REGISTRY_SCHEME",
    "ModelNotRegistered",
    "NullTracker",
    "Status",
    "Tracker",
    "TrackingConfig",
    "attach_run",
    "build_ui_command",
    "check_tracking",
    "find_champion",
    "find_registered_checkpoint",
    "get_final_status",
    "kill_running_children",
    "open_run",
    "read_completed_trials",
    "register_model",
    "reopen_run",
    "resolve_uri",
    "run_ui",
    "set_champion",
]
