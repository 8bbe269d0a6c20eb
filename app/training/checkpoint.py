"""A checkpoint: safetensors and JSON only.

`adapter_model.safetensors`, `adapter_config.json` (PEFT's own format: any PEFT can load it),
`optimizer.safetensors` (AdamW moments by parameter name), `state.json` (step, position in the stream, early
stopping, seed; random numbers are a pure function of seed and step, see loop.train_step).
"""

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from app.training.optim import moments, restore_moments

STATE = "state.json"


def save(folder: Path, model: PeftModel, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Write all of it into an existing folder."""
    model.save_pretrained(str(folder))
    tensors: dict[str, Tensor] = {}
    for name, parameter in _trained(model):
        for key, value in moments(optimizer, parameter).items():
            tensors[f"{name}/{key}"] = value.contiguous()
    save_file(tensors, folder / "optimizer.safetensors")
    (folder / STATE).write_text(json.dumps(state, indent=2) + "\n")


def restore(folder: Path, model: PeftModel, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load weights and moments in place; returns the saved state."""
    restore_weights(folder, model)
    saved = load_file(folder / "optimizer.safetensors")
    for name, parameter in _trained(model):
        own = {key.rpartition("/")[2]: value for key, value in saved.items() if key.rpartition("/")[0] == name}
        restore_moments(optimizer, parameter, own)
    state: dict[str, Any] = json.loads((folder / STATE).read_text())
    return state


def restore_weights(folder: Path, model: PeftModel) -> None:
    """Load the adapter (and trained embeddings) in place, exactly as they were trained."""
    weights = load_file(folder / "adapter_model.safetensors")
    unexpected = set_peft_model_state_dict(model, weights).unexpected_keys  # type: ignore[attr-defined]
    assert not unexpected, unexpected


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
