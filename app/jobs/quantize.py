"""`python -m app quantize`: a 4-bit base on disk, that workers then load as it is."""

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

TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
             "added_tokens.json", "chat_template.jinja")  # fmt: skip


def quantize(model: ModelConfig, quantization: QuantizationConfig, out: Path) -> dict[str, Any]:
    """Write `model` in 4 bits into the new folder `out`, with its tokenizer; returns its pin and its size in bytes.

    What is not quantised (embedding and norms) keeps its dtype, so that `load_base` gives the same base as from the
    full model. Weights go to the device (a GPU where there is one) one by one. A run that is stopped leaves nothing
    in `out`. Raises UserError.
    """
    if quantization.kind == "none":
        raise UserError("--kind none leaves nothing to quantise: give nf4 or fp4")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} is there already: give a new folder, or remove it")
    config = load_model_config(model)
    require_unquantised(model, config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.bfloat16
    base = load_base_model(model, quantization, device=device, dtype=dtype)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
            written = Path(folder, out.name)
            base.save_pretrained(written)
            for file in filter(None, (find_local_file(model, name) for name in TOKENIZER)):
                shutil.copyfile(file, written / file.name)
            for file in written.iterdir():
                file.chmod(0o644)  # workers may run as other users
            num_bytes = sum(file.stat().st_size for file in written.iterdir())
            os.replace(written, out)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"--out {out} cannot be written ({error}): make room, or give another folder"
        ) from error
    return {**pin_base_model(ModelConfig(name=str(out)), quantization), "bytes": num_bytes}
