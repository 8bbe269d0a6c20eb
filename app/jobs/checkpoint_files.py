"""Check the files of a checkpoint before weights are loaded. Imports neither torch nor Ray."""

import json
from collections.abc import Collection
from typing import Any

from app.errors import UserError
from app.storage import join_uri, read_json

WEIGHTS_FILE = "adapter_model.safetensors"
RESUMED_FILES = (WEIGHTS_FILE, "optimizer.safetensors", "state.json")
"""Files that a job continues from."""
_PICKLE_FILE = "adapter_model.bin"  # of an adapter that an old PEFT saved


def require_whole_checkpoint(folder: str, needed: Collection[str] = ()) -> None:
    """Raise UserError if a file of a checkpoint is damaged, cut, or missing.

    `folder` is a folder or URI, `needed` the names of more files that must be there than the
    adapter's. An adapter of another program has no `state.json`. Of a safetensors file the header
    and the size are read, so a changed number in it is not found.
    """
    from pyarrow.fs import FileSelector  # this and the next import pyarrow

    from data_pipeline.filesystem import open_filesystem

    name = ""
    try:
        filesystem, path = open_filesystem(folder)
        found = filesystem.get_file_info(FileSelector(path, allow_not_found=True))
        names = {file.base_name for file in found}
        required = {*needed, *({"adapter_config.json", "state.json"} & names)}
        if WEIGHTS_FILE in names or _PICKLE_FILE not in names:
            required.add(WEIGHTS_FILE)
        if "optimizer.safetensors" in names:  # a job has saved the checkpoint
            required.add("state.json")

        for name in sorted(required):
            if name not in names:
                raise ValueError("there is no such file")
            if name.endswith(".json"):
                _check_parts(read_json(join_uri(folder, name)) or {})
            else:
                _check_tensors(filesystem, f"{path}/{name}")
    except (OSError, ValueError) as error:  # DataError and UserError are ValueErrors
        reason = " ".join(str(error).split()).partition("): the file is damaged")[0]
        raise UserError(
            f"the checkpoint's {join_uri(folder, name)} is damaged or missing: {reason}; restore "
            "it or give another checkpoint, or start a new job with another train.run_name"
        ) from None


def _check_parts(values: dict[str, Any]) -> None:
    """Raise ValueError if a part of `state.json` is no object, or if its step is no number."""
    for part in ("state", "base", "job"):
        if not isinstance(values.get(part) or {}, dict):
            raise ValueError(f"its {part} is {values[part]!r}, not an object")
    step = (values.get("state") or {}).get("step", 0)
    if not isinstance(step, int):
        raise ValueError(f"its step is {step!r}, not a whole number")


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
