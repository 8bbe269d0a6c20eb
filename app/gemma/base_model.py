"""What a base is before it is loaded: its config, how its weights are stored, and the hash that checkpoints pin."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transformers import AutoConfig, Gemma2Config
from transformers.utils.hub import cached_file

from app.errors import UserError
from app.gemma.config import ModelConfig, QuantizationConfig

TINY = Path(__file__).parent / "tiny"
BaseModelPin = dict[str, str]
"""name, quantization, sha256: what a checkpoint says of the base that it was trained on."""


def resolve_model_source(name: str) -> str:
    """Folder or hub name of a configured model; `tiny` is the shipped one."""
    return str(TINY) if name == "tiny" else name


def load_model_config(model: ModelConfig) -> Gemma2Config:
    """The model's own config, without the softcaps that are switched off. Raises UserError for a model that is not to
    be had or not a Gemma 2."""
    try:
        config = AutoConfig.from_pretrained(
            resolve_model_source(model.name), revision=model.revision
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.name={model.name!r} is neither a model folder nor to be had from the hub: "
            f"{str(error).splitlines()[0]}"
        ) from error
    if not isinstance(config, Gemma2Config):
        raise UserError(
            f"model.name={model.name!r} is a {config.model_type!r} model: give a Gemma 2, such as google/gemma-2-9b-it"
        )
    if not model.attention_softcap:
        config.attn_logit_softcapping = None
    if not model.logit_softcap:
        config.final_logit_softcapping = None
    return config


def get_stored_quantization(model: ModelConfig, config: Gemma2Config) -> QuantizationConfig | None:
    """How a pre-quantised model's weights are stored, None for full ones. Raises UserError for what is not 4-bit."""
    stored: dict[str, Any] | None = getattr(config, "quantization_config", None)
    if stored is None:
        return None
    if not stored.get("load_in_4bit"):
        raise UserError(
            f"model.name={model.name!r} is quantised by {stored.get('quant_method')!r}, not in 4 bits by bitsandbytes: "
            "give the full model"
        )
    return QuantizationConfig(
        kind=stored["bnb_4bit_quant_type"], double_quant=stored["bnb_4bit_use_double_quant"]
    )


def require_unquantised(model: ModelConfig, config: Gemma2Config) -> None:
    """Raises UserError for a pre-quantised model."""
    stored = get_stored_quantization(model, config)
    if stored is not None:
        raise UserError(
            f"{model.name!r} is quantised already ({describe_quantization(stored)}): it can be trained on as it is"
        )


def require_same_quantization(
    model: ModelConfig, quantization: QuantizationConfig, stored: QuantizationConfig
) -> None:
    """Raises UserError if a pre-quantised model is not stored as the config says."""
    if quantization != stored:
        raise UserError(
            f"model.name={model.name!r} is stored as {describe_quantization(stored)}, but the config says {describe_quantization(quantization)}: "
            f"set quantization.kind={stored.kind} quantization.double_quant={str(stored.double_quant).lower()}, "
            "or give the full model"
        )


def describe_quantization(quantization: QuantizationConfig) -> str:
    """`nf4, double`, `fp4`, `none`."""
    return quantization.kind + (
        ", double" if quantization.double_quant and quantization.kind != "none" else ""
    )


def pin_base_model(model: ModelConfig, quantization: QuantizationConfig) -> BaseModelPin:
    """What a checkpoint says of its base. Reads every byte of its weights: 1.2 GB/s a core where it was measured."""
    return {
        "name": model.name,
        "quantization": describe_quantization(quantization),
        "sha256": hash_weights(model),
    }


def hash_weights(model: ModelConfig) -> str:
    """What `sha256sum *.safetensors | sha256sum` prints in the model's folder: of the weights as they are stored.

    A pre-quantised copy is another base than its original, even where both compute the same.
    """
    files = find_weight_files(model)
    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter: one core a file
        sums = pool.map(_sha256, files)
    lines = [f"{sum_}  {file.name}\n" for file, sum_ in zip(files, sums, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def find_weight_files(model: ModelConfig) -> list[Path]:
    """The model's safetensors by name, in its folder or in the hub's cache."""
    index = find_local_file(model, "model.safetensors.index.json")
    names = (
        ["model.safetensors"]
        if index is None
        else set(json.loads(index.read_text())["weight_map"].values())
    )
    files = [find_local_file(model, name) for name in sorted(names)]
    if None in files:
        raise UserError(
            f"model.name={model.name!r} holds no {', '.join(sorted(names))}: give a model in safetensors"
        )
    return [file for file in files if file is not None]


def find_local_file(model: ModelConfig, name: str) -> Path | None:
    """One of the model's files, in its folder or in the hub's cache; None where it has none of that name."""
    found = cached_file(
        resolve_model_source(model.name),
        name,
        revision=model.revision,
        _raise_exceptions_for_missing_entries=False,
    )
    return None if found is None else Path(found)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
