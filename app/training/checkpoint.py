"""A checkpoint: safetensors and JSON only, the same whatever the weights are cut over.

`adapter_model.safetensors`, `adapter_config.json` (PEFT's own format: any PEFT can load it),
`optimizer.safetensors` (AdamW moments by parameter name), `state.json` (step, position in the stream, early
stopping, seed; random numbers are a pure function of seed and step, see step.gradients; name, quantization and
hash of the base).
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
STATE = "state.json"


def save_checkpoint(
    folder: Path | None, model: PeftModel, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Write all of it into an existing folder. Of sharded weights every rank calls this, and one has a folder."""
    trained, keep = _trained(model), folder is not None
    weights = _gathered({parameter: parameter for parameter in trained.values()}, keep=keep)
    kept = {
        f"{name}/{key}": value
        for name, own in trained.items()
        for key, value in get_moments(optimizer, own).items()
    }
    remembered = _gathered(kept, keep=keep)
    if folder is not None:
        named = _trained(model, tied=True)
        model.save_pretrained(
            str(folder), state_dict={name: weights[own] for name, own in named.items()}
        )
        save_file(remembered, folder / "optimizer.safetensors")
        (folder / STATE).write_text(json.dumps(state, indent=2) + "\n")


def restore_checkpoint(
    folder: Path, model: PeftModel, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Load weights and moments in place, of which a sharded model keeps its part; returns the saved state."""
    restore_weights(folder, model)
    saved = load_file(folder / "optimizer.safetensors")
    for name, parameter in _trained(model).items():
        own = {
            key.rpartition("/")[2]: value
            for key, value in saved.items()
            if key.rpartition("/")[0] == name
        }
        parts = {
            key: _part(v, parameter) if v.ndim else v.to(parameter.device) for key, v in own.items()
        }
        restore_moments(optimizer, parameter, parts)
    state: dict[str, Any] = json.loads((folder / STATE).read_text())
    return state


def restore_weights(folder: Path, model: PeftModel) -> None:
    """Load the adapter (and trained embeddings) in place, exactly as they were trained."""
    weights = load_file(folder / "adapter_model.safetensors")
    # Given the parameters themselves as "state", PEFT says under which name each is in the file.
    own = get_peft_model_state_dict(
        model, state_dict=_trained(model, tied=True), save_embedding_layers=False
    )
    assert own.keys() == weights.keys(), own.keys() ^ weights.keys()
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(_part(weights[name], parameter))


def require_same_base_model(folder: Path, base: BaseModelPin) -> None:
    """Raises UserError if the checkpoint was trained on another base: an adapter on it would be noise.

    A name may change (a folder may move), the bits and how they are quantised may not. An adapter that was not
    trained here says no base; then this is said.
    """
    state = folder / STATE
    pinned: BaseModelPin | None = (
        json.loads(state.read_text()).get("base") if state.is_file() else None
    )
    if pinned is None:
        print(
            f"the adapter does not say its base; it is taken for one of {_in_words(base)}",
            file=sys.stderr,
        )
    elif any(pinned[key] != base[key] for key in ("sha256", "quantization")):
        raise UserError(
            f"the checkpoint was trained on the base {_in_words(pinned)}, not on {_in_words(base)}: "
            "set model.name and quantization to that base, or train.run_name to a new job"
        )


def _in_words(base: BaseModelPin) -> str:
    return f"{base['name']} ({base['quantization']}; sha256 {base['sha256'][:16]}…)"


def _trained(model: nn.Module, *, tied: bool = False) -> dict[str, nn.Parameter]:
    """By name; a tied weight under each of its names, or under the first."""
    named = model.named_parameters(remove_duplicate=not tied)
    return {name: parameter for name, parameter in named if parameter.requires_grad}


def _gathered(tensors: Mapping[K, Tensor], *, keep: bool) -> dict[K, Tensor]:
    """Whole tensors on the host, gathered one after another by all ranks; empty for a rank that keeps none."""
    whole = {}
    for key, tensor in tensors.items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            whole[key] = full.detach().cpu().contiguous()
    return whole


def _part(whole: Tensor, like: Tensor) -> Tensor:
    """This worker's part of a tensor that every worker has read, cut and placed as `like`."""
    whole = whole.to(like.device)
    if isinstance(like, DTensor):
        return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
    return whole
