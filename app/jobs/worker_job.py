"""Parts of a job that the driver sends to Ray Train.

Ray Train's controller unpickles them, so this file imports neither transformers nor PEFT: they
would take the controller of each job and each trial several seconds.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import ray
import ray.data

from app.config import Config
from app.jobs.job_dir import read_newest_checkpoint
from data_pipeline.stream.ray_dataset import build_dataset
from data_pipeline.stream.token_stream import Position, Stream

if TYPE_CHECKING:
    from app.jobs.initial_adapter import InitialAdapter


@dataclass(frozen=True)
class WorkerJob:
    """Arguments that the driver sends to every worker."""

    config: Config
    stream: Stream
    job_dir: str
    """Folder or URI of the files that outlive a worker."""
    run_id: str | None
    """MLflow run that rank 0 logs to; None if nothing is tracked."""
    code: str = ""
    """Version of the code (see `describe_code`)."""
    initial_adapter: "ray.ObjectRef[InitialAdapter] | None" = None
    """Adapter that a job without a checkpoint starts from; None: a new adapter."""


@dataclass(frozen=True)
class ResumingDataset:
    """Dataset factory that starts the stream at the newest checkpoint.

    Ray Train calls it at each start of the workers.
    """

    stream: Stream
    job_dir: str
    micro_batch_size: int
    num_workers: int

    def __call__(self) -> ray.data.Dataset:
        """Return the dataset from the newest checkpoint's position on."""
        newest = read_newest_checkpoint(self.job_dir)
        start = Position() if newest is None else Position(**newest.metrics["position"])
        return build_dataset(
            self.stream,
            start=start,
            micro_batch_size=self.micro_batch_size,
            num_workers=self.num_workers,
        )
