"""The end of a job: the progress towards its horizon, and the gains that early stopping counts."""

from app.training.config import TrainConfig


def compute_progress(step: int, data_share: float, config: TrainConfig) -> float:
    """Return the share of the job that is done after `step` optimizer steps, in [0, 1].

    The job's horizon is `max_steps` or the end of the data, whichever comes first. `data_share` is
    the finished share of the data of all epochs. The value depends on nothing that an earlier part
    of the job has stored: a job that continues with another horizon follows the schedule of that
    horizon from its next step on, as transformers does.

    >>> compute_progress(10, 0.5, TrainConfig(max_steps=100))
    0.5
    """
    if config.max_steps is None:
        return data_share
    return min(1.0, max(step / config.max_steps, data_share))


def is_gain(loss: float, best_loss: float, config: TrainConfig) -> bool:
    """Return True if an evaluation loss is a gain over `best_loss`, the last one that was a gain.

    Smaller drops add up until they exceed the threshold together. transformers compares with the
    lowest loss instead, so that a loss that falls slowly stops the job there.
    """
    return loss < best_loss - config.early_stopping_threshold


def is_finished(step: int, num_stale_evaluations: int, config: TrainConfig) -> bool:
    """Return True after `max_steps`, or after too many evaluations without a gain."""
    if config.max_steps is not None and step >= config.max_steps:
        return True
    patience = config.early_stopping_patience
    return patience is not None and num_stale_evaluations >= patience
