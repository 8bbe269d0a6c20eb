"""Read an adapter that PEFT, a Trainer or this application saved, and check that it fits a job.

Numbers are read only: safetensors, or a pickle by `torch.load(weights_only=True)`.
"""

import hashlib
import json
import math
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import Gemma2Config

from app.errors import UserError
from app.gemma.config import ALL_LINEAR, LoraConfig

WEIGHT_FILES = (
    "adapter_model.safetensors",
    "adapter_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)
"""Files with an adapter's weights. The last two are those of a Trainer that saved the whole model.

`pytorch_model.bin` is the file that the users' first document continues from.
"""
CONFIG_FILE = "adapter_config.json"
EMBEDDING, HEAD = "base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight"

_SAFE_TORCH = "2.6"  # before it, weights_only runs code too (CVE-2025-32434)
_FACTOR = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.\w+\.(\w+)\.lora_([AB])\.weight")
_HARMLESS_OPTIONS = {
    *("auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version"),
    *("task_type", "lora_dropout", "fan_in_fan_out", "megatron_core", "qalora_group_size"),
    # checked by their values
    *("peft_type", "bias", "init_lora_weights", "use_rslora", "lora_alpha"),
    # checked by the names and shapes of the weights
    *("r", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("modules_to_save", "ensure_weight_tying"),
    # used for the first values of the factors only
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),
}
_INITS_OF_FACTORS_ONLY = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class SavedAdapter:
    """The weights of an adapter as a file holds them, and the settings that they need."""

    name: str
    """Reference or folder, for messages."""
    weights: dict[str, Tensor]
    """In fp32, by PEFT's names."""
    options: dict[str, Any]
    """The values of adapter_config.json; empty without this file."""
    sha256: str
    """Hash of the file with the weights."""


def read_adapter(folder: Path, name: str) -> SavedAdapter:
    """Read the adapter in a folder; `name` stands for it in errors.

    Raises UserError for a file that is missing, damaged, holds code, or holds no LoRA weights, and
    for values that are not finite.
    """
    file = next((folder / each for each in WEIGHT_FILES if (folder / each).is_file()), None)
    if file is None:
        raise UserError(f"{name} holds none of {', '.join(WEIGHT_FILES)}: give an adapter's folder")

    # read
    options: dict[str, Any] = {}
    try:
        if (folder / CONFIG_FILE).is_file():
            options = dict(json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")))
        stored = load_file(file) if file.suffix == ".safetensors" else _unpickle(file)
        with file.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    except pickle.UnpicklingError:
        raise UserError(
            f"{name}: {file.name} holds Python code, which is not run, or is damaged: save the "
            "adapter with PEFT's save_pretrained, in safetensors"
        ) from None
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{name} cannot be read ({file.name}: {reason}): restore it, or give another adapter"
        ) from None

    # normalise
    weights = _select_adapter(stored)
    if not any(_FACTOR.fullmatch(key) for key in weights):
        raise UserError(
            f"{name}: {file.name} holds no LoRA weights of a Gemma 2: give the folder of an "
            "adapter; a whole model goes to model.name"
        )
    for key, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"{name}: {key} holds values that are not finite: give another checkpoint"
            )
    return SavedAdapter(name, weights, options, sha256)


def require_same_adapter(adapter: SavedAdapter, lora: LoraConfig, model: Gemma2Config) -> None:
    """Raise UserError if the adapter is not one of `lora` on a base model of these shapes.

    Each difference is named with both values. A variant of LoRA that this application would train
    as something else is refused by its name.
    """
    _require_plain_lora(adapter)
    name, factors = adapter.name, [_FACTOR.fullmatch(key) for key in adapter.weights]
    ranks = {
        adapter.weights[found[0]].shape[:1].numel()
        for found in factors
        if found and found[3] == "A"
    }
    if len(ranks) != 1:
        raise UserError(f"{name} has the ranks {_list(ranks)}: give an adapter of one rank")
    rank = ranks.pop()
    targets = {found[2] for found in factors if found}
    num_layers = 1 + max(int(found[1]) for found in factors if found)

    # settings
    differences = []
    for path, theirs, ours in (
        ("lora.rank", rank, lora.rank),
        ("lora.alpha", _get_alpha(adapter, rank, lora), lora.alpha),
        ("lora.target_modules", _list(targets), _list(lora.target_modules)),
        ("lora.train_embeddings", _has_embeddings(adapter), lora.train_embeddings),
        ("the number of layers", num_layers, model.num_hidden_layers),
    ):
        if theirs != ours:
            differences.append(f"{path} of the adapter is {theirs} and of the job {ours}")
    if differences:
        raise UserError(
            f"{name} does not fit the job: {'; '.join(differences)}: set the adapter's values, "
            "or give another adapter"
        )

    # names and shapes
    expected = list_weight_shapes(lora, model)
    for key in sorted(adapter.weights.keys() ^ expected.keys()):
        state = "lacks" if key in expected else "also holds"
        raise UserError(f"{name} {state} the weight {key}: give a LoRA adapter of a Gemma 2")
    for key, shape in expected.items():
        if tuple(adapter.weights[key].shape) != shape:
            raise UserError(
                f"{name} is of another base model: {key} has the shape "
                f"{tuple(adapter.weights[key].shape)} instead of {shape}: set model.name to its "
                "base model"
            )


def list_weight_shapes(lora: LoraConfig, model: Gemma2Config) -> dict[str, tuple[int, int]]:
    """Return the shape of each weight of an adapter, by PEFT's names."""
    hidden, inner = model.hidden_size, model.intermediate_size
    queries = model.num_attention_heads * model.head_dim
    keys = model.num_key_value_heads * model.head_dim
    sizes = dict(
        zip(
            ALL_LINEAR,
            [
                *((hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)),
                *((hidden, inner), (hidden, inner), (inner, hidden)),
            ],
            strict=True,
        )
    )

    shapes: dict[str, tuple[int, int]] = {}
    for layer in range(model.num_hidden_layers):
        for target in lora.target_modules:
            part = "self_attn" if target in ALL_LINEAR[:4] else "mlp"
            prefix = f"base_model.model.model.layers.{layer}.{part}.{target}"
            num_inputs, num_outputs = sizes[target]
            shapes[f"{prefix}.lora_A.weight"] = (lora.rank, num_inputs)
            shapes[f"{prefix}.lora_B.weight"] = (num_outputs, lora.rank)
    if lora.train_embeddings:
        shapes[EMBEDDING] = shapes[HEAD] = (model.vocab_size, hidden)
    return shapes


def _unpickle(file: Path) -> dict[str, Any]:
    """Return the tensors of a pickle without running its code."""
    if torch.__version__ < _SAFE_TORCH:
        raise RuntimeError(
            f"torch {torch.__version__} may run code of a pickle (CVE-2025-32434); "
            f"torch {_SAFE_TORCH} does not"
        )
    return dict(torch.load(file, map_location="cpu", weights_only=True, mmap=True))


def _select_adapter(stored: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return the trained weights in fp32, by the names that PEFT writes.

    In the file of a whole model the names also hold the name of the adapter, and the base model's
    weights stand beside them.
    """
    is_whole = any(".base_layer." in str(key) for key in stored)
    weights = {}
    for key, value in stored.items():
        if not isinstance(key, str):
            continue
        trained = ".lora_" in key or ".modules_to_save." in key
        if (trained or not is_whole) and isinstance(value, Tensor) and value.is_floating_point():
            short = re.sub(r"(\.lora_[AB]|\.modules_to_save)\.\w+\.weight$", r"\1.weight", key)
            weights[short.replace(".modules_to_save.", ".")] = value.float()
    return weights


def _require_plain_lora(adapter: SavedAdapter) -> None:
    """Raise UserError for an option of PEFT under which the weights mean another computation."""
    options, fix = adapter.options, "give an adapter of plain LoRA"
    kind = options.get("peft_type", "LORA")
    if kind != "LORA":
        raise UserError(f"{adapter.name} is a PEFT adapter of the type {kind}, not LORA: {fix}")
    if options.get("bias", "none") != "none":
        raise UserError(f"{adapter.name} has trained biases (bias={options['bias']}): {fix}")
    init = options.get("init_lora_weights", True)
    if init not in _INITS_OF_FACTORS_ONLY:
        raise UserError(
            f"{adapter.name} was made with init_lora_weights={init!r}, which changes the base "
            f"model's weights: {fix}"
        )
    if not isinstance(options.get("lora_alpha", 1), int | float):
        raise UserError(f"{adapter.name} has lora_alpha={options['lora_alpha']!r}: {fix}")
    for option, value in options.items():
        if value and option not in _HARMLESS_OPTIONS:
            raise UserError(f"{adapter.name} has {option}={value!r}, which is not trained: {fix}")

    # embedding and head are one weight here
    saved = [adapter.weights[key] for key in (EMBEDDING, HEAD) if key in adapter.weights]
    if saved and not (len(saved) == 2 and torch.equal(*saved)):
        raise UserError(
            f"{adapter.name} trained embed_tokens apart from lm_head, but Gemma 2 has one weight "
            "for both: give an adapter that was trained with ensure_weight_tying=True"
        )


def _has_embeddings(adapter: SavedAdapter) -> bool:
    return EMBEDDING in adapter.weights or HEAD in adapter.weights


def _get_alpha(adapter: SavedAdapter, rank: int, lora: LoraConfig) -> float:
    """Return the alpha with which the job has the adapter's scale.

    Rank-stabilised LoRA scales by alpha / √rank, LoRA by alpha / rank. Without adapter_config.json
    it is the job's alpha.
    """
    if "lora_alpha" not in adapter.options:
        return lora.alpha
    alpha = float(adapter.options["lora_alpha"])
    if bool(adapter.options.get("use_rslora")) != lora.use_rslora:
        alpha *= 1 / math.sqrt(rank) if lora.use_rslora else math.sqrt(rank)
    return lora.alpha if math.isclose(alpha, lora.alpha) else alpha


def _list(values: Iterable[Any]) -> str:
    return ", ".join(map(str, sorted(values)))
