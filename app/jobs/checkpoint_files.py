"""Check the files of a checkpoint before weights are loaded.

Imports Ray never, and torch only for an adapter that is a pickle.
"""

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from app.errors import UserError
from app.storage import join_uri, read_json

WEIGHTS_FILE = "adapter_model.safetensors"
_STATE_FILE = "state.json"
RESUMED_FILES = (WEIGHTS_FILE, "optimizer.safetensors", _STATE_FILE)
"""Files that a job continues from."""
_PICKLE_FILE = "adapter_model.bin"  # of an adapter that an old PEFT saved


def require_whole_checkpoint(folder: str, needed: Collection[str] = ()) -> None:
    """Raise UserError if a file of a checkpoint is damaged, cut, or missing.

    `folder` is a folder or URI, `needed` the names of more files that must be there than the
    adapter's. An adapter of another program has no `state.json`. Of a safetensors file the header
    and the size are read, so a changed number in it is not found. A pickle is read whole, by the
    rules of `lora.init_from`.
    """
    from pyarrow.fs import FileSelector  # this and the next import pyarrow

    from data_pipeline.filesystem import open_filesystem

    name = ""
    try:
        filesystem, path = open_filesystem(folder)
        found = filesystem.get_file_info(FileSelector(path, allow_not_found=True))
        names = {file.base_name for file in found}
        required = {*needed, *({"adapter_config.json", _STATE_FILE} & names)}
        is_pickle = WEIGHTS_FILE not in names and _PICKLE_FILE in names
        if not is_pickle:
            required.add(WEIGHTS_FILE)
        if "optimizer.safetensors" in names:  # a job has saved the checkpoint
            required.add(_STATE_FILE)

        for name in sorted(required):
            if name not in names:
                raise ValueError("there is no such file")
            if name.endswith(".json"):
                values = read_json(join_uri(folder, name)) or {}
                if name == _STATE_FILE:
                    _check_state(values)
            else:
                _check_tensors(filesystem, f"{path}/{name}")
    except (OSError, ValueError) as error:  # DataError and UserError are ValueErrors
        raise _make_damage_error(join_uri(folder, name), error) from None

    if is_pickle:
        from app.gemma.adapter import read_adapter  # torch
        from data_pipeline.fetch import fetch_folder

        read_adapter(Path(fetch_folder(folder) if "://" in folder else folder), folder)


def read_state(folder: str, needed: Collection[str] = ()) -> dict[str, Any]:
    """Return the values of a checkpoint's `state.json`; none if there is no such file.

    Raises UserError that names the file if it is damaged, or lacks a `needed` value.
    """
    file = join_uri(folder, _STATE_FILE)
    try:
        values = read_json(file)
        if values is not None:
            _check_state(values, needed)
        return values or {}
    except (OSError, ValueError) as error:
        raise _make_damage_error(file, error) from None


def _make_damage_error(file: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split()).partition("): the file is damaged")[0]
    return UserError(
        f"the checkpoint's {file} is damaged or missing: {reason}; restore "
        "it or give another checkpoint, or start a new job with another train.run_name"
    )


def _check_state(values: Mapping[str, Any], needed: Collection[str] = ()) -> None:
    """Raise ValueError if a value of `state.json` is missing, or is not as a job writes it."""
    for name in needed:
        if name not in values:
            raise ValueError(f"it has no {name}")
    for part in ("state", "base", "job"):
        if not isinstance(values.get(part, {}), dict):
            raise ValueError(f"its {part} is {values[part]!r}, not an object")

    step = values.get("state", {"step": 0}).get("step")
    if type(step) is not int or step < 0:  # a bool is an int, by isinstance
        raise ValueError(f"its step is {step!r}, not a whole number from 0")
    loss = values.get("eval_loss", 0)
    if type(loss) not in (int, float) or not math.isfinite(loss):  # a job saves no other
        raise ValueError(f"its eval_loss is {loss!r}, not a finite number")
    pin = values.get("base", {})
    for key in ("name", "quantization", "sha256") if "base" in values else ():
        if not isinstance(pin.get(key), str):
            raise ValueError(f"the {key} of its base is {pin.get(key)!r}, not a text")


def _check_tensors(filesystem: Any, path: str) -> None:
    """Raise ValueError if a safetensors file has not the size that its header states.

    The file is 8 bytes with the header's length, the header in JSON, and the tensors' bytes.
    """
    with filesystem.open_input_file(path) as file:
        size = file.size()
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"its {size} bytes end before its header does")
        text = file.read(length)

    try:
        header = json.loads(text)
        ends = [each["data_offsets"][1] for key, each in header.items() if key != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except (ValueError, AttributeError, LookupError, TypeError):
        raise ValueError("its header does not list tensors") from None
    if size != expected:
        raise ValueError(f"it has {size} bytes instead of {expected}")
