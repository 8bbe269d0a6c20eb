"""Check that a job continues with the settings and the data of its newest checkpoint.

Its position counts packed sequences, and its weights are those of one adapter. Other shards, other
stream settings, another tokenizer or another adapter give both another meaning.
"""

import sys
from typing import Any

from app.config import Config, flatten_config
from app.errors import UserError
from app.jobs.checkpoint_files import RESUMED_FILES, require_whole_checkpoint
from app.jobs.job_dir import read_job_file, read_newest_checkpoint
from app.training.checkpoint import STATE_FILE
from data_pipeline.masking import mask_secrets
from data_pipeline.stream.token_stream import Stream

PINNED = (
    "lora.rank",
    "lora.alpha",
    "lora.use_rslora",
    "lora.dropout",
    "lora.target_modules",
    "lora.train_embeddings",
    "lora.init_from",
    "model.attention_softcap",
    "model.logit_softcap",
    "data.sequence_tokens",
    "data.too_long",
    "data.shuffle_block_examples",
    "data.seed",
    "data.max_train_records",
    "data.max_validation_records",
    "data.system_prompt",
    "train.seed",
)
"""Settings that may not change while a job continues."""


def pin_job(config: Config, stream: Stream) -> dict[str, Any]:
    """Return everything that a checkpoint's position and weights depend on, besides the base model.

    The values are those of JSON.
    """
    values = flatten_config(config)
    pins = {path: values[path] for path in PINNED}
    pins["lora.target_modules"] = sorted(pins["lora.target_modules"])
    pins["lora.init_from"] = mask_secrets(pins["lora.init_from"] or "") or None
    return {
        **pins,
        "the digest of data.shards": stream.shards.digest,
        "the sha256 of the tokenizer": stream.encoder.tokenizer_sha256,
    }


def require_same_job(config: Config, stream: Stream, job_dir: str) -> None:
    """Raise UserError if the job has a checkpoint of other settings, data or tokenizer.

    A checkpoint of an earlier version of this application has no pins: then print a warning.
    """
    newest = read_newest_checkpoint(job_dir)
    if newest is None:
        return

    state = read_job_file(newest.folder, STATE_FILE)
    if state is None:
        raise UserError(
            f"the newest checkpoint of the job, {newest.folder}, is missing: "
            "restore it, or set train.run_name to a new job"
        )
    require_whole_checkpoint(newest.folder, RESUMED_FILES)
    saved = state.get("job")
    if saved is None:
        print(
            "the checkpoint does not name its data and settings: they are not compared",
            file=sys.stderr,
        )
        return

    now = pin_job(config, stream)
    changes = [
        f"{name} was {saved[name]!r} and is {now[name]!r}"
        for name in now
        if name in saved and saved[name] != now[name]
    ]
    if changes:
        raise UserError(
            f"the job {config.train.run_name} cannot continue from step "
            f"{newest.metrics['step']}: {'; '.join(changes)}; restore the old value, or set "
            "train.run_name to a new job"
        )
