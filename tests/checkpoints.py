"""The small files of a checkpoint, with an adapter that holds no weight."""

import json
from pathlib import Path
from typing import Any

EMPTY_TENSORS = (2).to_bytes(8, "little") + b"{}"
"""A safetensors file without a tensor."""


def write_checkpoint_files(folder: Path, state: dict[str, Any] | None = None) -> None:
    """Write the files that the commands read before they load a model. None: no state.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text('{"r": 4}')
    for name in ("adapter_model", "optimizer"):
        (folder / f"{name}.safetensors").write_bytes(EMPTY_TENSORS)
    if state is not None:
        (folder / "state.json").write_text(json.dumps(state))
