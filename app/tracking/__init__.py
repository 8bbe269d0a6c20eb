"""Record a job as one MLflow run. Other packages import the names below and nothing else."""

from app.tracking.mlflow_store import NullTracker as NullTracker
from app.tracking.mlflow_store import Status as Status
from app.tracking.mlflow_store import Tracker as Tracker
from app.tracking.mlflow_store import TrackingConfig as TrackingConfig
from app.tracking.mlflow_store import attach as attach
from app.tracking.mlflow_store import check as check
from app.tracking.mlflow_store import final_status as final_status
from app.tracking.mlflow_store import open_run as open_run
from app.tracking.mlflow_store import resolve as resolve
from app.tracking.mlflow_store import ui_command as ui_command
