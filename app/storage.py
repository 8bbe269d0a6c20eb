"""Small files of a job (run id, reports) on a local disk or any file system of pyarrow.

Paths and URIs are strings.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from data_pipeline.masking import mask_secrets


def join_uri(uri: str, *parts: str) -> str:
    """Return the path or URI of a file below `uri`, with the query of `uri` at its end.

    `join_uri("s3://bucket/jobs?region=x", "a", "b.json")` is
    `s3://bucket/jobs/a/b.json?region=x`.
    """
    base, mark, query = uri.partition("?") if "://" in uri else (uri, "", "")
    return "/".join([base.rstrip("/"), *parts]) + mark + query


def read_json(uri: str) -> dict[str, Any] | None:
    """Return the object stored at a local path or URI, or None if there is no such file."""
    filesystem, path = _locate_file(uri)
    try:
        with filesystem.open_input_stream(path) as stream:
            value: dict[str, Any] = json.loads(stream.read())
    except FileNotFoundError:
        return None
    return value


def write_json(uri: str, value: dict[str, Any]) -> None:
    """Write an object as JSON without credentials, replacing the file as `write_text` does."""
    write_text(uri, mask_secrets(json.dumps(value, indent=2)))


def write_text(uri: str, text: str) -> None:
    """Write text as UTF-8, replacing the file atomically.

    A reader sees the old text or the new text, even if the writer is killed.
    """
    filesystem, path = _locate_file(uri)
    content = text.encode()

    # object store: an object is visible only when it is complete
    if filesystem.type_name != "local":
        with filesystem.open_output_stream(path) as stream:
            stream.write(content)
        return

    # local disk: write a temporary file and rename it
    folder = Path(path).parent
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=".tmp", delete=False) as file:
        file.write(content)
    os.chmod(file.name, 0o644)  # NamedTemporaryFile creates 0o600, but others read reports
    os.replace(file.name, path)


def _locate_file(uri: str) -> tuple[Any, str]:
    """Return (pyarrow file system, path in it)."""
    from data_pipeline.filesystem import open_filesystem  # 0.3 s, not needed to parse a config

    return open_filesystem(uri)
