"""A job's small files (run id, reports), on a local disk or wherever pyarrow can write; URIs as text."""

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

_CREDENTIALS = re.compile(
    r"://(?:[^\s/@]*:\S*|[^\s/@]+)@"
)  # greedy: a password may hold "/" and "@"
_SECRET_QUERY = re.compile(
    r"([?&][^\s=&]*(?:secret|token|password|key|sig)[^\s=&]*=)[^\s&]+", re.IGNORECASE
)


def join_uri(uri: str, *parts: str) -> str:
    """`join("s3://bucket/jobs?region=x", "a", "b.json")` is `s3://bucket/jobs/a/b.json?region=x`."""
    base, mark, query = uri.partition("?") if "://" in uri else (uri, "", "")
    return "/".join([base.rstrip("/"), *parts]) + mark + query


def read_json(uri: str) -> dict[str, Any] | None:
    """The object stored at a local path or URI; None where there is no such file."""
    filesystem, path = _locate(uri)
    try:
        with filesystem.open_input_stream(path) as stream:
            value: dict[str, Any] = json.loads(stream.read())
    except FileNotFoundError:
        return None
    return value


def write_json(uri: str, value: dict[str, Any]) -> None:
    """Replace a file that `read_json` reads, as `write_text` does."""
    write_text(uri, json.dumps(value, indent=2))


def write_text(uri: str, text: str) -> None:
    """Replace the file at once: a reader sees the old text or the new one, whenever the writer is killed."""
    filesystem, path = _locate(uri)
    content = text.encode()
    if filesystem.type_name != "local":  # an object store shows an object only once it is complete
        with filesystem.open_output_stream(path) as stream:
            stream.write(content)
        return
    folder = Path(path).parent
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=".tmp", delete=False) as file:
        file.write(content)
    os.chmod(file.name, 0o644)  # a temporary file is private, a report is to be read
    os.replace(file.name, path)


def mask_secrets(text: str) -> str:
    """`s3://key:secret@bucket?token=x` becomes `s3://***@bucket?token=***`."""
    return _SECRET_QUERY.sub(r"\1***", _CREDENTIALS.sub("://***@", text))


def _locate(uri: str) -> tuple[Any, str]:
    from pyarrow.fs import FileSystem  # 0.3 s, which parsing a config shall not cost

    filesystem, path = FileSystem.from_uri(uri if "://" in uri else os.path.abspath(uri))
    return filesystem, path
