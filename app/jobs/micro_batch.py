"""Half the micro-batch for a trial of a search that has run out of memory."""

from dataclasses import replace

from app.config import override_config
from app.jobs.failures import find_out_of_memory
from app.jobs.worker_job import WorkerJob
from app.tracking import attach_run


def halve_micro_batch(job: WorkerJob, error: Exception) -> WorkerJob:
    """Return the trial with half the micro-batch and twice the accumulation, after `error`.

    An odd micro-batch becomes one sequence, so that the global batch stays. The MLflow run has the
    reason as the tag `retry`. Raises the error again if it is not a lack of memory, if the
    micro-batch cannot be smaller, or if `search.retry_out_of_memory` is off.
    """
    config = job.config
    size = config.train.micro_batch_size
    is_retried = size > 1 and config.search.retry_out_of_memory
    if not is_retried or find_out_of_memory(error) is None:
        raise error

    factor = size if size % 2 else 2
    reason = f"out of memory with train.micro_batch_size={size}, retried with {size // factor}"
    print(f"{config.train.run_name}: {reason}", flush=True)
    changes = {
        "train.micro_batch_size": size // factor,
        "train.gradient_accumulation_steps": factor * config.train.gradient_accumulation_steps,
        "evaluate.micro_batch_size": max(1, config.evaluate.micro_batch_size // factor),
    }

    tracker = attach_run(config.tracking, job.run_id, job_dir=job.job_dir)
    tracker.set_tags({"retry": reason})
    tracker.log_params(changes)
    tracker.flush()
    return replace(job, config=override_config(config, changes))
