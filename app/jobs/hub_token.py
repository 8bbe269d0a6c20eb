"""The token of Hugging Face's hub on the workers of a cluster, for gated models."""

import os
from typing import Any

import huggingface_hub


def pass_hub_token() -> dict[str, Any]:
    """Return a runtime environment in which every worker has this process's hub token.

    Ray shows `env_vars` to every client of its dashboard. The hook that sets the variable is stored
    as a pickled function, of which Ray shows only the name.
    """
    token = huggingface_hub.get_token()
    if token is None:
        return {}

    def set_hub_token() -> None:
        os.environ.setdefault("HF_TOKEN", token)

    return {"worker_process_setup_hook": set_hub_token}
