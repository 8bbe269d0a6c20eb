"""Parts of every job: its folder, its token stream, its MLflow run, its resources on Ray."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from app.config import Config
from app.gemma.base_model import resolve_model_source
from app.jobs.cluster import require_resources
from app.storage import join_uri
from app.tracking import Tracker, get_final_status, open_run
from data_pipeline.shards import Shards
from data_pipeline.stream.token_stream import Stream


def get_job_dir(config: Config) -> str:
    """Return the folder or URI of the job's files."""
    return join_uri(config.train.output_dir, config.train.run_name)


def build_stream(config: Config, shards: Shards) -> Stream:
    """Return the token stream of a config over its opened shards."""
    # each node makes its own copy of a URI
    name = config.model.name
    tokenizer = name if "://" in name else resolve_model_source(name)
    return Stream(shards, config.data, tokenizer, config.train.num_epochs)


def require_workers(config: Config, num_workers: int) -> None:
    """Wait until the connected Ray has room for the workers and one data task.

    Raises UserError if there is no room after `scaling.wait_seconds`: at once if that is 0 and the
    nodes are too few or too small.
    """
    scaling = config.scaling
    require_resources(
        num_workers,
        scaling.cpus_per_worker,
        scaling.use_gpu,
        config.data.cpus_per_task,
        scaling.wait_seconds,
    )


@contextmanager
def track_run(
    config: Config, job_dir: str, tags: Mapping[str, str] | None = None
) -> Iterator[Tracker]:
    """Open or continue the job's one MLflow run, and close it with its true status."""
    tracker = open_run(
        config.tracking, run_name=config.train.run_name, job_dir=job_dir, tags=tags or {}
    )
    error: BaseException | None = None
    try:
        yield tracker
    except BaseException as caught:
        error = caught
        raise
    finally:
        tracker.finish(get_final_status(error))
