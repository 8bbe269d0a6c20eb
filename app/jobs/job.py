"""Parts of every job: its token stream, its MLflow run, its resources on Ray."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from app.config import Config
from app.errors import UserError
from app.gemma.base_model import get_tokenizer_source
from app.jobs.run_tags import NOTE, add_result, describe_end
from app.tracking import Tracker, get_final_status, open_run
from data_pipeline.shards import Shards
from data_pipeline.stream.token_stream import Stream


def build_stream(config: Config, shards: Shards) -> Stream:
    """Return the token stream of a config over its opened shards.

    The tokenizer is that of the model, in the revision of the model.
    """
    tokenizer = get_tokenizer_source(config.model)
    return Stream(shards, config.data, tokenizer, config.train.num_epochs)


@contextmanager
def connect_workers(
    config: Config,
    num_workers: int,
    *,
    workers_per_trial: int | None = None,
    with_data_task: bool = True,
) -> Iterator[None]:
    """Join or start Ray, and wait until it has room for the workers and one data task.

    `workers_per_trial` is set if the workers are those of a search. Raises UserError if there is no
    room after `scaling.wait_seconds`. A private Ray has no autoscaler, so a machine that is too
    small is refused before Ray starts.
    """
    # ray takes a second, and other parts of a job need none of it
    from app.jobs.cluster import connect_ray, is_ray_private
    from app.jobs.resources import describe_shortage, get_machine_resources, require_resources

    scaling = config.scaling
    needs = (
        num_workers,
        scaling.cpus_per_worker,
        scaling.reserved_gpus,
        config.data.cpus_per_task if with_data_task else 0.0,
    )
    if is_ray_private():
        shortage = describe_shortage([get_machine_resources()], *needs, workers_per_trial)
        if shortage:
            raise UserError(f"this machine has no room: {shortage}")

    with connect_ray() as cluster:
        wait_seconds = 0 if cluster.private else scaling.wait_seconds
        require_resources(*needs, wait_seconds, workers_per_trial)
        yield


@contextmanager
def track_run(
    config: Config, job_dir: str, tags: Mapping[str, str] | None = None
) -> Iterator[Tracker]:
    """Open or continue the job's one MLflow run, and close it with its true status.

    The tags are set at its start. An error is added to the description among them.
    """
    tags = tags or {}
    tracker = open_run(config.tracking, run_name=config.train.run_name, job_dir=job_dir, tags=tags)
    error: BaseException | None = None
    try:
        yield tracker
    except BaseException as caught:
        error = caught
        if NOTE in tags:
            tracker.set_tags({NOTE: add_result(tags[NOTE], describe_end(caught))})
        raise
    finally:
        tracker.finish(get_final_status(error))
