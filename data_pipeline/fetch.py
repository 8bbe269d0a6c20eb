"""Copy a remote folder, such as a model, to the disk of this machine: once for all processes."""

import errno
import fcntl
import functools
import hashlib
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.fs

from data_pipeline.errors import DataError
from data_pipeline.filesystem import open_filesystem
from data_pipeline.remote_errors import explain_remote_error

_CACHE = "svgscribe/models"  # below $XDG_CACHE_HOME, which is ~/.cache if it is not set


def list_files(uri: str) -> list[pyarrow.fs.FileInfo]:
    """Return the files of a folder, sorted by name. Raises DataError if there is none."""
    fs, path = open_filesystem(uri)
    try:
        found = fs.get_file_info(pyarrow.fs.FileSelector(path))
    except (OSError, pa.ArrowInvalid) as error:
        reason = explain_remote_error(error, uri)
        raise DataError(f"cannot list {uri!r}: {reason}") from None
    files = sorted((info for info in found if info.is_file), key=lambda info: str(info.base_name))
    if not files:
        raise DataError(f"{uri!r} holds no file: give the folder of a model")
    return files


@functools.cache
def fetch_folder(uri: str) -> str:
    """Return a local folder with a copy of the files of a folder of any pyarrow file system.

    Processes that call it at the same time copy once: the others wait. The folder appears when it
    is complete. After a change of the remote names, sizes or times a new process makes a new copy.
    Raises DataError if the folder cannot be read or the copy cannot be written.
    """
    files = list_files(uri)
    version = [uri, *(f"{file.base_name} {file.size} {file.mtime_ns}" for file in files)]
    key = hashlib.sha256("\n".join(version).encode()).hexdigest()[:32]
    cache = get_cache_folder()
    folder, partial = cache / key, cache / f"{key}.partial"

    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / f"{key}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
            if not folder.is_dir():
                shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
                partial.mkdir()
                _copy_files(uri, files, partial)
                partial.rename(folder)
    except OSError as error:
        reason = " ".join(str(error).split())
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        fix = "free some space there" if is_full else "correct its cause and start again"
        raise DataError(
            f"cannot copy {uri!r} to {cache} ({reason}): {fix}, or set XDG_CACHE_HOME to a folder "
            "on another disk"
        ) from error
    return str(folder)


def get_cache_folder() -> Path:
    """Return the folder of copied models, which may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", _CACHE)


def _copy_files(uri: str, files: list[pyarrow.fs.FileInfo], folder: Path) -> None:
    fs, _ = open_filesystem(uri)
    for file in files:
        pyarrow.fs.copy_files(
            file.path,
            str(folder / file.base_name),
            source_filesystem=fs,
            destination_filesystem=pyarrow.fs.LocalFileSystem(),
            chunk_size=16 * 2**20,
        )
