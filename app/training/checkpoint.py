"""A checkpoint: safetensors and JSON only.

`adapter_model.safetensors`, `adapter_config.json` (PEFT's own format: any PEFT can load it),
`optimizer.safetensors` (AdamW moments by parameter name), `state.json` (step, position in the stream, early
stopping, seed; random numbers are a pure function of seed and step, see loop.train_step; name, quantization and
hash of the base).
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from app.errors import UserError
from app.gemma.base import Base

STATE = "state.json"


def save(folder: Path, model: PeftModel, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Write all of it into an existing folder."""
    model.save_pretrained(str(folder))
    tensors: dict[str, Tensor] = {}
    for name, parameter in _trained(model):
        for key, value in optimizer.state[parameter].items():
            tensors[f"{name}/{key}"] = torch.as_tensor(value).detach().cpu().contiguous()
    save_file(tensors, folder / "optimizer.safetensors")
    (folder / STATE).write_text(json.dumps(state, indent=2) + "\n")


def restore(folder: Path, model: PeftModel, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load weights and moments in place; returns the saved state."""
    restore_weights(folder, model)
    moments = load_file(folder / "optimizer.safetensors")
    for name, parameter in _trained(model):
        optimizer.state[parameter] = {
            key.rpartition("/")[2]: value.to(parameter.device) if value.ndim else value
            for key, value in moments.items()
            if key.rpartition("/")[0] == name
        }
    state: dict[str, Any] = json.loads((folder / STATE).read_text())
    return state


def restore_weights(folder: Path, model: PeftModel) -> None:
    """Load the adapter (and trained embeddings) in place, exactly as they were trained."""
    weights = load_file(folder / "adapter_model.safetensors")
    unexpected = set_peft_model_state_dict(model, weights).unexpected_keys  # type: ignore[attr-defined]
    assert not unexpected, unexpected


def require_base(folder: Path, base: Base) -> None:
    """Raises UserError if the checkpoint was trained on another base: an adapter on it would be noise.

    A name may change (a folder may move), the bits and how they are quantised may not. An adapter that was not
    trained here says no base; then this is said.
    """
    state = folder / STATE
    pinned: Base | None = json.loads(state.read_text()).get("base") if state.is_file() else None
    if pinned is None:
        print(f"the adapter does not say its base; it is taken for one of {_in_words(base)}", file=sys.stderr)
    elif any(pinned[key] != base[key] for key in ("sha256", "quantization")):
        raise UserError(
            f"the checkpoint was trained on the base {_in_words(pinned)}, not on {_in_words(base)}: "
            "set model.name and quantization to that base, or train.run_name to a new job"
        )


def _in_words(base: Base) -> str:
    return f"{base['name']} ({base['quantization']}; sha256 {base['sha256'][:16]}…)"


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
