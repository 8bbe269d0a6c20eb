"""Open a trained model for captions on this machine, without Ray."""

import sys
from pathlib import Path
from typing import Any, TypeAlias

import torch

from app.config import Config
from app.errors import UserError
from app.evaluation.captioner import Captioner, load_captioner
from app.evaluation.vllm_captioner import VllmCaptioner, build_engine_arguments
from app.gemma.base_model import pin_base_model
from app.jobs.precision import can_multiply_bf16
from app.training.checkpoint import require_same_base_model
from data_pipeline.fetch import fetch_folder

CaptionEngine: TypeAlias = Captioner | VllmCaptioner


def require_engine(config: Config, adapter: str) -> None:
    """Raise UserError if `evaluate.caption_engine` cannot hold the adapter. Loads no model."""
    if config.evaluate.caption_engine == "vllm":
        build_engine_arguments(find_adapter_folder(adapter), **_list_vllm_settings(config))


def open_engine(config: Config, adapter: str) -> CaptionEngine:
    """Load the model as `open_captioner` does, in the program of `evaluate.caption_engine`."""
    if config.evaluate.caption_engine == "own":
        return open_captioner(config, adapter)
    folder = find_adapter_folder(adapter)
    require_same_base_model(folder, pin_base_model(config.model, config.quantization))
    return VllmCaptioner(folder, **_list_vllm_settings(config))


def _list_vllm_settings(config: Config) -> dict[str, Any]:
    precision = config.train.precision
    return {
        "model": config.model,
        "quantization": config.quantization,
        "data": config.data,
        "evaluate": config.evaluate,
        "precision": "bf16" if precision == "auto" else precision,
    }


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
