"""Look up a base model before it is loaded: its config, how its weights are stored, their hash.

Checkpoints pin the hash.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transformers import AutoConfig, Gemma2Config
from transformers.utils.hub import cached_file

from app.errors import UserError
from app.gemma.config import ModelConfig, QuantizationConfig
from data_pipeline.fetch import fetch_folder
from data_pipeline.masking import mask_secrets

TINY = Path(__file__).parent / "tiny"
BaseModelPin = dict[str, str]
"""Keys name, quantization, sha256: the base model that a checkpoint was trained on."""


def resolve_model_source(name: str) -> str:
    """Return the folder or hub name of a configured model.

    `tiny` is the shipped one. A URI is copied to this machine, once for all its processes.
    """
    if "://" in name:
        return fetch_folder(name)
    return str(TINY) if name == "tiny" else name


def get_tokenizer_source(model: ModelConfig) -> str:
    """Return the folder, URI or `owner/name@revision` of the model's tokenizer."""
    if "://" in model.name:
        return model.name  # each node makes its own copy of a URI
    if model.revision is not None:
        return f"{model.name}@{model.revision}"
    return resolve_model_source(model.name)


def load_model_config(model: ModelConfig) -> Gemma2Config:
    """Return the model's own config, without the softcaps that are switched off.

    Raises UserError for a model that is missing or is not a Gemma 2.
    """
    try:
        config = AutoConfig.from_pretrained(
            resolve_model_source(model.name), revision=model.revision
        )
    except (OSError, ValueError) as error:
        raise _name_missing_model(model, error) from error

    if not isinstance(config, Gemma2Config):
        raise UserError(
            f"model.name={model.name!r} is a {config.model_type!r} model: "
            "give a Gemma 2, such as google/gemma-2-9b-it"
        )
    if not model.attention_softcap:
        config.attn_logit_softcapping = None
    if not model.logit_softcap:
        config.final_logit_softcapping = None
    return config


def get_stored_quantization(model: ModelConfig, config: Gemma2Config) -> QuantizationConfig | None:
    """Return how a pre-quantised model's weights are stored, or None for full weights.

    Raises UserError for weights that are quantised in another way than 4-bit bitsandbytes.
    """
    stored: dict[str, Any] | None = getattr(config, "quantization_config", None)
    if stored is None:
        return None
    if not stored.get("load_in_4bit"):
        raise UserError(
            f"model.name={model.name!r} is quantised by {stored.get('quant_method')!r}, "
            "not in 4 bits by bitsandbytes: give the full model"
        )
    return QuantizationConfig(
        kind=stored["bnb_4bit_quant_type"], double_quant=stored["bnb_4bit_use_double_quant"]
    )


def require_unquantised(model: ModelConfig, config: Gemma2Config) -> None:
    """Raise UserError for a pre-quantised model."""
    stored = get_stored_quantization(model, config)
    if stored is not None:
        raise UserError(
            f"{model.name!r} is quantised already ({describe_quantization(stored)}): "
            "it can be trained on as it is"
        )


def require_same_quantization(
    model: ModelConfig, quantization: QuantizationConfig, stored: QuantizationConfig
) -> None:
    """Raise UserError if a pre-quantised model is not stored as configured."""
    if quantization != stored:
        raise UserError(
            f"model.name={model.name!r} is stored as {describe_quantization(stored)}, "
            f"but the config has {describe_quantization(quantization)}: "
            f"set quantization.kind={stored.kind} "
            f"quantization.double_quant={str(stored.double_quant).lower()}, "
            "or give the full model"
        )


def describe_quantization(quantization: QuantizationConfig) -> str:
    """Return `nf4, double`, `nf4`, `fp4, double`, `fp4` or `none`."""
    doubled = quantization.double_quant and quantization.kind != "none"
    return f"{quantization.kind}, double" if doubled else quantization.kind


def pin_base_model(model: ModelConfig, quantization: QuantizationConfig) -> BaseModelPin:
    """Return the pin that a checkpoint stores of its base model.

    It reads every byte of the weights: 1.2 GB/s per core, as measured.
    """
    return {
        "name": mask_secrets(model.name),
        "quantization": describe_quantization(quantization),
        "sha256": hash_weights(model),
    }


def hash_weights(model: ModelConfig) -> str:
    """Return the hash of the weights as they are stored.

    `sha256sum *.safetensors | sha256sum` in the model's folder prints the same. A pre-quantised
    copy has another hash than its original, even if both compute the same.
    """
    files = find_weight_files(model)
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock: one core per file
        digests = pool.map(_hash_file, files)
    lines = [f"{digest}  {file.name}\n" for file, digest in zip(files, digests, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def find_weight_files(model: ModelConfig) -> list[Path]:
    """Return the model's safetensors in order of name, in its folder or in the hub's cache.

    Raises UserError if one is missing.
    """
    index = find_local_file(model, "model.safetensors.index.json")
    if index is None:
        names = ["model.safetensors"]
    else:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))

    files = [find_local_file(model, name) for name in names]
    if None in files:
        raise UserError(
            f"model.name={model.name!r} holds no {', '.join(names)}: give a model in safetensors"
        )
    return [file for file in files if file is not None]


def find_local_file(model: ModelConfig, name: str) -> Path | None:
    """Return one of the model's files, in its folder or in the hub's cache, or None without it.

    Raises UserError if there is no such model.
    """
    try:
        found = cached_file(
            resolve_model_source(model.name),
            name,
            revision=model.revision,
            _raise_exceptions_for_missing_entries=False,
        )
    except (OSError, ValueError) as error:
        raise _name_missing_model(model, error) from error
    return None if found is None else Path(found)


def _name_missing_model(model: ModelConfig, error: Exception) -> UserError:
    reason = str(error).splitlines()[0]
    return UserError(
        f"model.name={model.name!r} is neither a model folder nor a model on the hub: {reason}"
    )


def _hash_file(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
