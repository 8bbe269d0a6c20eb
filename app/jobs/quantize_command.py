"""The command `quantize`: check its arguments before torch is imported, and write the model."""

import argparse
import json
import os
from pathlib import Path

from app.config import validate_values
from app.errors import UserError
from app.gemma.config import ModelConfig, QuantizationConfig
from app.storage import require_new_folder

_WEIGHTS = ".safetensors"


def run_quantize(arguments: argparse.Namespace) -> str:
    """Write a 4-bit base model to a new folder. Return its hash and size as JSON.

    Raises UserError or DataError if an argument is wrong.
    """
    values = {"kind": arguments.kind, "double_quant": arguments.double_quant}
    quantization = validate_values(QuantizationConfig, values)
    if quantization.kind == "none":
        raise UserError("--kind none leaves nothing to quantise: give nf4 or fp4")
    model = validate_values(ModelConfig, {"name": arguments.model, "revision": arguments.revision})
    out = Path(arguments.out)
    require_new_folder(out)
    _require_model_files(model.name)

    from app.jobs.quantize import quantize_model  # seconds

    return json.dumps(quantize_model(model, quantization, out))


def _require_model_files(name: str) -> None:
    """Raise UserError if a folder or URI holds no model, or if a path does not exist.

    The shipped model and a name of the hub are not checked.
    """
    if name == "tiny":
        return
    if "://" in name:
        from data_pipeline.fetch import list_files  # 0.3 s

        names = [str(file.base_name) for file in list_files(name)]
    elif os.path.isdir(name):
        names = os.listdir(name)
    elif name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise UserError(
            f"{name!r} is neither a model folder nor a model on the hub: correct the path"
        )
    else:
        return

    lacks_weights = not any(each.endswith(_WEIGHTS) for each in names)
    if "config.json" not in names or lacks_weights:
        missing = f"*{_WEIGHTS}" if "config.json" in names else "config.json"
        raise UserError(
            f"the folder {name!r} holds no {missing}: give the folder of a Gemma 2 in safetensors, "
            "or its name on the hub"
        )
