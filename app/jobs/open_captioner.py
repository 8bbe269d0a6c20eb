"""Open a trained model for captions on this machine, without Ray."""

import sys
from pathlib import Path

import torch

from app.config import Config
from app.errors import UserError
from app.evaluation.captioner import Captioner, load_captioner
from app.gemma.base_model import pin_base_model
from app.jobs.precision import can_multiply_bf16
from app.training.checkpoint import require_same_base_model
from data_pipeline.fetch import fetch_folder


def open_captioner(config: Config, adapter: str | None) -> Captioner:
    """Load the base model of a config, with the adapter in a folder or at a URI; None: without.

    The model runs on the GPU of this machine, if it has one, or on `scaling.threads_per_worker`
    threads. A CPU without bf16 products computes in fp32, whatever `train.precision` is: bf16 would
    be up to 80 times slower.

    Raises UserError if the adapter was trained on another base model, or if a model is missing.
    """
    if "***" in config.model.name:
        raise UserError(
            f"model.name={config.model.name!r} was saved without its credentials: "
            "give the whole value as an override"
        )
    folder = None if adapter is None else find_adapter_folder(adapter)
    if folder is not None:  # before the base model is loaded
        require_same_base_model(folder, pin_base_model(config.model, config.quantization))

    torch.set_num_threads(config.scaling.threads_per_worker)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = config.train.precision
    if device.type == "cpu":
        precision = "bf16" if can_multiply_bf16() and precision != "fp32" else "fp32"
    elif precision == "auto":
        precision = "bf16"

    print(f"captions: on {device.type} in {precision}", file=sys.stderr)
    return load_captioner(
        folder,
        model=config.model,
        quantization=config.quantization,
        memory=config.memory,
        data=config.data,
        evaluate=config.evaluate,
        precision=precision,
        device=device,
    )


def find_adapter_folder(adapter: str) -> Path:
    """Return the local folder of an adapter; a URI is copied to this machine once."""
    return Path(fetch_folder(adapter) if "://" in adapter else adapter)
