"""Tracking of a job as one MLflow run. Other packages import these names and nothing else."""

from app.tracking.config import TrackingConfig, resolve_uri
from app.tracking.earlier_trials import read_finished_trials
from app.tracking.history import ChildRun, read_children, read_scores
from app.tracking.link import build_comparison_link, describe_ui_command
from app.tracking.mlflow_client import describe_error
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
    find_registered_version,
    register_model,
    set_champion,
)
from app.tracking.system_metrics import SystemMetrics
from app.tracking.tracker import NullTracker, Status, Tracker

__all__ = [
    "REGISTRY_SCHEME",
    "ChildRun",
    "ModelNotRegistered",
    "NullTracker",
    "Status",
    "SystemMetrics",
    "Tracker",
    "TrackingConfig",
    "attach_run",
    "build_comparison_link",
    "build_ui_command",
    "check_tracking",
    "describe_error",
    "describe_ui_command",
    "find_champion",
    "find_registered_checkpoint",
    "find_registered_version",
    "get_final_status",
    "kill_running_children",
    "open_run",
    "read_children",
    "read_finished_trials",
    "read_scores",
    "register_model",
    "reopen_run",
    "resolve_uri",
    "run_ui",
    "set_champion",
]
