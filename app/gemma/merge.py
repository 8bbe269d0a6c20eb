"""Merge an adapter into the full weights of its base model, one file of weights at a time."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from app.gemma.adapter import EMBEDDING
from app.gemma.base_model import find_weight_files
from app.gemma.config import LoraConfig, ModelConfig

PREFIX = "base_model.model."
"""Prefix of PEFT's names before those of transformers."""


def merge_weights(
    model: ModelConfig, adapter: Mapping[str, Tensor], lora: LoraConfig, out: Path
) -> None:
    """Write the base model's weights with the adapter added into the existing folder `out`.

    The files and dtypes are those of the base model. A sum W + scale · B·A is computed in
    fp32 and rounded once. `adapter` has PEFT's names. The largest file is in memory.
    """
    modules = {name.removesuffix(".lora_A.weight") for name in adapter if ".lora_A." in name}
    num_merged = 0
    for file in find_weight_files(model):
        merged: dict[str, Tensor] = {}
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 — it is no dict
                weight, module = stored.get_tensor(name), PREFIX + name.removesuffix(".weight")
                if module in modules:
                    weight = _add_update(weight, adapter, module, lora.scale)
                    num_merged += 1
                elif name in ("model.embed_tokens.weight", "lm_head.weight"):
                    weight = adapter.get(EMBEDDING, weight).to(weight.dtype)
                merged[name] = weight
        save_file(merged, out / file.name, metadata={"format": "pt"})
    assert num_merged == len(modules), (num_merged, len(modules))


def _add_update(weight: Tensor, adapter: Mapping[str, Tensor], module: str, scale: float) -> Tensor:
    """Return W + scale · B·A in the dtype of W."""
    factor_a, factor_b = (adapter[f"{module}.lora_{each}.weight"] for each in "AB")
    update = factor_b.float() @ factor_a.float()
    return torch.add(weight.float(), update, alpha=scale).to(weight.dtype)
