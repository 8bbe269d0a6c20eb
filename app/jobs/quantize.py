"""`python -m app quantize`: write a 4-bit base model that workers load directly."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from app.errors import UserError
from app.gemma.base_model import (
    find_local_file,
    load_model_config,
    pin_base_model,
    require_unquantised,
)
from app.gemma.config import ModelConfig, QuantizationConfig
from app.gemma.load import load_base_model

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
"""Files of a tokenizer, of which a model folder may hold only some."""


def quantize_model(
    model: ModelConfig, quantization: QuantizationConfig, out: Path
) -> dict[str, Any]:
    """Write `model` in 4 bits, and its tokenizer, into the new folder `out`.

    Return the pin of the written model (name, quantisation, sha256) and its size in bytes.
    Embedding and norms are not quantised and keep their dtype, so that `load_base_model` gives the
    same base model as from the full one. The weights go to the device (a GPU if there is one) one
    by one. A run that is stopped leaves nothing in `out`. Raises UserError if `model` cannot be
    quantised or `out` cannot be written. `quantize_command` has checked the kind and `out`.
    """
    config = load_model_config(model)
    require_unquantised(model, config)

    # load and quantise
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.bfloat16
    base_model = load_base_model(model, quantization, device=device, dtype=dtype)

    # write
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
            written = Path(folder, out.name)
            base_model.save_pretrained(written)
            for name in TOKENIZER_FILES:
                if file := find_local_file(model, name):
                    shutil.copyfile(file, written / file.name)
            for file in written.iterdir():
                file.chmod(0o644)  # workers may run as other users
            num_bytes = sum(file.stat().st_size for file in written.iterdir())
            os.replace(written, out)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"--out {out} cannot be written ({error}): free some space, or give another folder"
        ) from error
    return {**pin_base_model(ModelConfig(name=str(out)), quantization), "bytes": num_bytes}
