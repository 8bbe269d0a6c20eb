"""Checkpoints in safetensors and JSON, the same for every sharding strategy.

`adapter_model.safetensors` and `adapter_config.json`: the adapter in PEFT's own format.
`optimizer.safetensors`: AdamW moments by parameter name.
`state.json`: step, position in the stream, early stopping, the pins of the job (jobs/resume.py),
and the base model's name, quantization and hash. Random numbers are a pure function of seed and
step (see step.accumulate_gradients), so no generator state is saved.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from app.errors import UserError
from app.gemma.base_model import BaseModelPin
from app.training.optim import get_moments, restore_moments

K = TypeVar("K")
STATE_FILE = "state.json"


def save_checkpoint(
    folder: Path | None, model: PeftModel, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Write weights, moments and state into an existing folder.

    With sharded weights every rank calls this function, and only one rank passes a folder.
    """
    trained = _get_trained(model)
    keep = folder is not None

    # gather weights
    weights = _gather_tensors({parameter: parameter for parameter in trained.values()}, keep=keep)

    # gather moments
    local_moments = {
        f"{name}/{key}": value
        for name, parameter in trained.items()
        for key, value in get_moments(optimizer, parameter).items()
    }
    moments = _gather_tensors(local_moments, keep=keep)

    # write
    if folder is not None:
        by_name = _get_trained(model, tied=True)
        named_weights = {name: weights[parameter] for name, parameter in by_name.items()}
        model.save_pretrained(str(folder), state_dict=named_weights)
        save_file(moments, folder / "optimizer.safetensors")
        (folder / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n")


def restore_checkpoint(
    folder: Path, model: PeftModel, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Load weights and moments in place, and return the saved state.

    Every worker reads the whole file; a sharded model keeps its shards.
    """
    restore_weights(folder, model)

    saved = load_file(folder / "optimizer.safetensors")
    for name, parameter in _get_trained(model).items():
        moments = {}
        for key, value in saved.items():
            owner, _, moment = key.rpartition("/")
            if owner == name:
                is_scalar = value.ndim == 0
                moments[moment] = (
                    value.to(parameter.device) if is_scalar else _shard_like(value, parameter)
                )
        restore_moments(optimizer, parameter, moments)

    state: dict[str, Any] = json.loads((folder / STATE_FILE).read_text())
    return state


def restore_weights(folder: Path, model: PeftModel) -> None:
    """Load the adapter (and trained embeddings) in place, bit for bit as trained."""
    load_weights(load_file(folder / "adapter_model.safetensors"), model)


def load_weights(saved: Mapping[str, Tensor], model: PeftModel) -> None:
    """Set the adapter (and trained embeddings) in place to weights by PEFT's names."""
    # With the parameters as `state_dict`, PEFT returns them under their names in the file.
    parameters = get_peft_model_state_dict(
        model, state_dict=_get_trained(model, tied=True), save_embedding_layers=False
    )
    assert parameters.keys() == saved.keys(), parameters.keys() ^ saved.keys()

    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(_shard_like(saved[name], parameter))


def require_same_base_model(folder: Path, pin: BaseModelPin) -> None:
    """Raise UserError if the checkpoint was trained on another base model."""
    state_file = folder / STATE_FILE
    saved_pin: BaseModelPin | None = None
    if state_file.is_file():
        saved_pin = json.loads(state_file.read_text()).get("base")
    require_same_pin(saved_pin, pin)


def require_same_pin(saved_pin: BaseModelPin | None, pin: BaseModelPin) -> None:
    """Raise UserError if an adapter was trained on another base model than that of `pin`.

    An adapter on another base model would generate noise. The name may differ (a folder may move);
    the weights and their quantization may not. An adapter that was not trained by this application
    names no base model: then print a warning and accept it.
    """
    if saved_pin is None:
        print(
            "the adapter does not name its base model; it is used with "
            f"{_describe_base_model(pin)}",
            file=sys.stderr,
        )
    elif any(saved_pin[key] != pin[key] for key in ("sha256", "quantization")):
        raise UserError(
            f"the checkpoint was trained on the base model {_describe_base_model(saved_pin)}, "
            f"not on {_describe_base_model(pin)}: "
            "set model.name and quantization to that base model, or use another adapter"
        )


def _describe_base_model(pin: BaseModelPin) -> str:
    return f"{pin['name']} ({pin['quantization']}; sha256 {pin['sha256'][:16]}…)"


def _get_trained(model: nn.Module, *, tied: bool = False) -> dict[str, nn.Parameter]:
    """Return the trained parameters by name.

    A tied weight is listed under each of its names if `tied`, otherwise under the first.
    """
    named = model.named_parameters(remove_duplicate=not tied)
    return {name: parameter for name, parameter in named if parameter.requires_grad}


def _gather_tensors(tensors: Mapping[K, Tensor], *, keep: bool) -> dict[K, Tensor]:
    """Return whole tensors on the host; an empty dict on a rank that keeps none.

    All ranks gather one tensor after another.
    """
    gathered = {}
    for key, tensor in tensors.items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            gathered[key] = whole.detach().cpu().contiguous()
    return gathered


def _shard_like(whole: Tensor, like: Tensor) -> Tensor:
    """Return this worker's shard of a tensor that every worker has read.

    The shard has the device and the placements of `like`.
    """
    whole = whole.to(like.device)
    if isinstance(like, DTensor):
        return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
    return whole
