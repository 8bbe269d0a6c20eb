"""Replace `train.precision=auto` by a dtype, once, before a command reads it."""

import sys

from app.config import Config, override_config
from app.jobs.job_dir import get_job_dir, read_newest_checkpoint


def resolve_precision(config: Config) -> Config:
    """Return the config with a dtype in place of `auto`, and print the choice.

    A job continues with the precision of its newest checkpoint. A new job takes bf16 on GPUs, and
    on a CPU with bf16 products. Without them bf16 is up to 80 times slower than fp32.
    """
    if config.train.precision != "auto":
        return config

    newest = read_newest_checkpoint(get_job_dir(config))
    recorded = None if newest is None else newest.metrics.get("precision")
    if recorded is not None:
        precision, reason = recorded, "the job's newest checkpoint was trained with it"
    elif config.scaling.use_gpu:
        precision, reason = "bf16", "the workers use GPUs"
    elif can_multiply_bf16():
        precision, reason = "bf16", "this CPU multiplies bf16"
    else:
        precision, reason = "fp32", "this CPU does not multiply bf16"
    print(f"train.precision=auto: {precision}, because {reason}", file=sys.stderr)
    return override_config(config, {"train.precision": precision})


def can_multiply_bf16() -> bool:
    """Return whether oneDNN, which torch uses for products, has bf16 kernels for this CPU."""
    import torch  # seconds, not needed for a job on GPUs

    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
