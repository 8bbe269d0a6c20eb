"""Read an adapter that PEFT, a Trainer or this application saved.

Numbers are read only: safetensors, or a pickle by `torch.load(weights_only=True)`.
"""

import hashlib
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from app.errors import UserError

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
FACTOR = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.\w+\.(\w+)\.lora_([AB])\.weight")


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
    file = find_weights(folder, name)

    # read
    options = _read_options(folder / CONFIG_FILE, name)
    try:
        stored = load_file(file) if file.suffix == ".safetensors" else _unpickle(file)
        sha256 = hash_file(file)
    except pickle.UnpicklingError:
        raise UserError(
            f"{name}: {file.name} is a pickle that holds Python code, which is not run, or other "
            "objects than tensors, or it is damaged: save the adapter with PEFT's save_pretrained, "
            "in safetensors"
        ) from None
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise _name_unreadable(name, file, error) from None

    # normalise
    weights = _select_adapter(stored)
    if not any(FACTOR.fullmatch(key) for key in weights):
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


def find_weights(folder: Path, name: str) -> Path:
    """Return the file of WEIGHT_FILES with the weights of an adapter. Raises UserError."""
    file = next((folder / each for each in WEIGHT_FILES if (folder / each).is_file()), None)
    if file is None:
        raise UserError(f"{name} holds none of {', '.join(WEIGHT_FILES)}: give an adapter's folder")
    return file


def hash_file(file: Path) -> str:
    """Return the sha256 of a file, in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_options(file: Path, name: str) -> dict[str, Any]:
    """Return the values of adapter_config.json, none without this file."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
    except (OSError, ValueError, TypeError) as error:
        raise _name_unreadable(name, file, error) from None


def _name_unreadable(name: str, file: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(
        f"{name} cannot be read ({file.name}: {reason}): restore it, or give another adapter"
    )


def _unpickle(file: Path) -> dict[str, Any]:
    """Return the tensors of a pickle without running its code.

    Both formats of `torch.save` are read. Raises UnpicklingError for all other bytes.
    """
    if torch.__version__ < _SAFE_TORCH:
        raise RuntimeError(
            f"torch {torch.__version__} may run code of a pickle (CVE-2025-32434); "
            f"torch {_SAFE_TORCH} does not"
        )
    is_zip = zipfile.is_zipfile(file)  # files of torch < 1.6 are not, and cannot be mapped
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the protocol of a pickle that is refused
            stored = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except OSError:
        raise
    except Exception as error:  # the unpickler raises any kind for bytes that are no pickle
        raise pickle.UnpicklingError(str(error)) from error
    return dict(stored)


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
