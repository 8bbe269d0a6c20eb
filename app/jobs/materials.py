"""Bill of materials of a checkpoint: everything that its adapter was made of.

It is read from the checkpoint's own files, so it holds wherever they are copied to.
"""

import json
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from app.config import config_from_yaml, flatten_config
from app.jobs.trained_model import CONFIG_FILE

_ROOT = Path(__file__).parents[2]


def describe_code() -> str:
    """Return the version of this package, with the git commit if it runs from a repository.

    `dirty` marks changes that are not committed.
    """
    try:
        name = version("svgscribe")
    except PackageNotFoundError:
        name = "not installed"
    if not (_ROOT / ".git").exists():
        return name
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(
            [*command, "--exclude=*"], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return name
    return f"{name} {done.stdout.strip()}"


def list_materials(folder: Path) -> dict[str, Any]:
    """Return the bill of materials of the checkpoint in a folder: its config, hashes and code.

    A part that the checkpoint does not name is missing, such as the ledger of a job without one.
    """
    config_file, state_file = folder / CONFIG_FILE, folder / "state.json"
    materials: dict[str, Any] = {}
    if config_file.is_file():
        materials |= flatten_config(config_from_yaml(config_file.read_text(), str(config_file)))
    state = json.loads(state_file.read_text()) if state_file.is_file() else {}
    base, job = state.get("base", {}), state.get("job", {})
    made_of = {
        "base.name": base.get("name"),
        "base.quantization": base.get("quantization"),
        "base.sha256": base.get("sha256"),
        "data.digest": job.get("the digest of data.shards"),
        "tokenizer.sha256": job.get("the sha256 of the tokenizer"),
        "ledger.sha256": state.get("ledger_sha256"),
        "code": state.get("code"),
        "run_id": state.get("run_id"),
        "eval_loss": state.get("eval_loss"),
    }
    return materials | {name: value for name, value in made_of.items() if value is not None}
