"""The checks of a job that need neither Ray nor the model's weights, and its length."""

import math

from app.config import Config
from app.errors import UserError
from app.gemma.base_model import load_model_config
from app.jobs.initial_adapter import read_initial_adapter
from app.jobs.job import build_stream
from app.jobs.job_dir import get_job_dir
from app.jobs.lease import hold_lease
from app.jobs.resume import require_same_job
from data_pipeline.shards import Shards
from data_pipeline.stream.token_stream import Stream


def check_job(config: Config, shards: Shards) -> Stream:
    """Return the stream of a job that can start or continue.

    Raises UserError or DataError if the tokenizer is not the model's, if no example of a split fits
    into a sequence, or if the newest checkpoint is of other settings or data.
    """
    stream = _build_stream_of_model(config, shards)
    require_same_job(config, stream, get_job_dir(config))
    for split in ("train", "validation"):
        stream.require_fitting_examples(split)
    return stream


def check_evaluation(config: Config, shards: Shards) -> None:
    """Raise UserError or DataError if a model cannot be evaluated on the validation split.

    The tokenizer is not the model's, no example fits into a sequence, or `evaluate.clip_model` is
    not CLIP.
    """
    _build_stream_of_model(config, shards).require_fitting_examples("validation")
    if config.evaluate.clip_model is not None:
        from app.evaluation.clip import check_clip_model  # `train` does not need it

        check_clip_model(config.evaluate.clip_model)


def _build_stream_of_model(config: Config, shards: Shards) -> Stream:
    """Return the token stream. Raises UserError if its ids are not those of the model."""
    stream = build_stream(config, shards)
    vocabulary = load_model_config(config.model).vocab_size
    if stream.encoder.max_id >= vocabulary:
        raise UserError(
            f"the tokenizer of model.name={config.model.name!r} has ids up to "
            f"{stream.encoder.max_id}, but the model has {vocabulary} embeddings: give the model "
            "its own tokenizer.json"
        )
    return stream


def check_before_ray(config: Config, shards: Shards) -> None:
    """Raise the errors of `check_job` and of the initial adapter, or of a job that runs already.

    Without this check the user would wait for Ray first. The job makes both checks again.
    """
    check_job(config, shards)
    read_initial_adapter(config)
    with hold_lease(get_job_dir(config)):
        pass


def describe_length(config: Config, stream: Stream) -> str:
    """Return the horizon of a job in one sentence, estimated from its first shuffle block."""
    # optimizer steps until the end of the data
    block = stream.pack_shuffle_block(0)
    num_read = int(block["num_examples"].sum() + block["num_dropped"].sum())
    num_examples = stream.num_epochs * stream.num_train_examples
    num_sequences = len(block["index"]) * num_examples / num_read
    train = config.train
    sequences_per_worker = train.micro_batch_size * train.gradient_accumulation_steps
    data_steps = math.ceil(num_sequences / (sequences_per_worker * config.scaling.num_workers))

    if train.max_steps is None:
        return f"horizon: the end of the data, after about {data_steps} optimizer steps"
    if train.max_steps <= data_steps:
        return f"horizon: train.max_steps={train.max_steps} of about {data_steps} optimizer steps"
    return (
        f"horizon: the end of the data, after about {data_steps} optimizer steps; "
        f"train.max_steps={train.max_steps} is beyond it"
    )
