"""Small files of a job (run id, reports) on a local disk or any file system of pyarrow.

Paths and URIs are strings.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any, TypeVar

from app.errors import UserError
from data_pipeline.errors import DataError
from data_pipeline.masking import mask_secrets
from data_pipeline.remote_errors import explain_remote_error

T = TypeVar("T")


def join_uri(uri: str, *parts: str) -> str:
    """Return the path or URI of a file below `uri`, with the query of `uri` at its end.

    `join_uri("s3://bucket/jobs?region=x", "a", "b.json")` is
    `s3://bucket/jobs/a/b.json?region=x`.
    """
    base, mark, query = uri.partition("?") if "://" in uri else (uri, "", "")
    return "/".join([base.rstrip("/"), *parts]) + mark + query


def read_json(uri: str) -> dict[str, Any] | None:
    """Return the object stored at a local path or URI, or None if there is no such file.

    Raises UserError if the file does not hold a JSON object.
    """
    try:
        text = read_text(uri)
        value: Any = {} if text is None else json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise _make_damage_error(uri, " ".join(str(error).split())) from None
    if not isinstance(value, dict):
        raise _make_damage_error(uri, f"it holds a {type(value).__name__}, not an object")
    return None if text is None else value


def read_value(uri: str, values: dict[str, Any], name: str, kind: type[T]) -> T:
    """Return a value of the object that was read from a file.

    Raises UserError if it is absent or of another type.
    """
    value = values.get(name)
    if not isinstance(value, kind):
        raise _make_damage_error(uri, f"its {name} is {value!r}, not a {kind.__name__}")
    return value


def _make_damage_error(uri: str, reason: str) -> UserError:
    return UserError(
        f"cannot read {uri} ({reason}): the file is damaged; restore it, or remove it to begin "
        "without its records"
    )


def read_text(uri: str) -> str | None:
    """Return the UTF-8 text stored at a local path or URI, or None if there is no such file."""
    filesystem, path = _locate_file(uri)
    try:
        with filesystem.open_input_stream(path) as stream:
            return bytes(stream.read()).decode()
    except FileNotFoundError:
        return None


def require_text(uri: str) -> str:
    """Return the text at a URI. Raises UserError if there is none, or if it cannot be read."""
    try:
        text = read_text(uri)
    except OSError as error:
        raise UserError(f"{uri} cannot be read: {explain_remote_error(error, uri)}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{uri} is not UTF-8 ({error}): save it as UTF-8") from None
    except DataError as error:
        raise UserError(str(error)) from None
    if text is None:
        raise UserError(f"{uri} cannot be read: there is no such file; correct the URI")
    return text


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


def check_json_file(path: str | None) -> None:
    """Raise UserError if the file of the option --json cannot be written."""
    if path and not os.path.isdir(os.path.dirname(os.path.abspath(path))):
        raise UserError(f"--json {path}: its folder does not exist; create it first")
    if path and os.path.isdir(path):
        raise UserError(f"--json {path}: this is a folder; name a file in it")
    if path:
        require_writable(f"--json {path}", Path(path).absolute().parent)


def require_new_folder(out: Path) -> None:
    """Raise UserError if the folder of the option --out holds something or cannot be made."""
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"--out {out} is there already: give a new folder, or remove it")
        above = next(folder for folder in (out, *out.parents) if folder.exists())
    except OSError as error:
        raise _make_write_error(f"--out {out}", error) from None
    require_writable(f"--out {out}", above)


def require_writable(option: str, folder: Path) -> None:
    """Raise UserError if no file can be created in an existing local folder. Leave no file."""
    try:
        with tempfile.TemporaryFile(dir=folder):  # without permission root can write too
            pass
    except OSError as error:
        raise _make_write_error(option, error) from None


def _make_write_error(option: str, error: OSError) -> UserError:
    return UserError(
        f"{option} cannot be written ({error.strerror}): give a path in a folder where you may "
        "create files"
    )


def _locate_file(uri: str) -> tuple[Any, str]:
    """Return (pyarrow file system, path in it)."""
    from data_pipeline.filesystem import open_filesystem  # 0.3 s, not needed to parse a config

    return open_filesystem(uri)
