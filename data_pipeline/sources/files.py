"""Find and open the files of a source: local paths and URIs, through pyarrow's file systems.

`data_pipeline.filesystem` lists the file systems that were tested.
"""

import codecs
import io
import os
import posixpath
import re
import stat
import unicodedata
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, TextIO

import pyarrow.fs

from data_pipeline.errors import DataError
from data_pipeline.filesystem import open_filesystem
from data_pipeline.remote_errors import explain_remote_error

SVG_SUFFIXES = (".svg", ".svgz")
"""Suffixes of a file that is one drawing."""
_HUB_FILES = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")


class UnreadableFileError(DataError):
    """One file cannot be opened or read."""


@dataclass(frozen=True)
class SourceFile:
    """A file of a source; `name` is its path in the source's folder, with its suffix.

    A byte of the name that is not UTF-8 is escaped, as in `caf%E9.svg`.
    """

    fs: pyarrow.fs.FileSystem
    path: str
    name: str

    @property
    def stem(self) -> str:
        """The base name up to the first dot: `icons/a.tar.gz` → `a`."""
        return self.name.rpartition("/")[2].partition(".")[0]

    @contextmanager
    def open_stream(self) -> Iterator[Any]:
        """Open the file for sequential reading of bytes; the stream cannot seek.

        An OSError in the `with` block, such as EIO of a failing disk, becomes UnreadableFileError.
        """
        self.require_data()
        try:
            with self.fs.open_input_stream(self.path, compression=None) as stream:
                yield stream
        except (OSError, UnicodeEncodeError) as error:
            raise UnreadableFileError(_explain_unreadable(self.path, error)) from None

    def require_data(self) -> None:
        """Raise UnreadableFileError for a local pipe, socket or device, which has no end."""
        is_local = isinstance(self.fs, pyarrow.fs.LocalFileSystem)
        if is_local and (kind := _find_special_kind(self.path)):
            raise UnreadableFileError(f"{_escape(self.path)} is {kind}: copy its data into a file")

    @contextmanager
    def open_text(self) -> Iterator[TextIO]:
        """Open the file as text without a byte order mark; a bad byte becomes U+FFFD.

        It names errors as `open_stream` does.
        """
        encoding = detect_encoding(self.read_head(4))
        with self.open_stream() as stream:
            yield io.TextIOWrapper(stream, encoding=encoding, errors="replace", newline="")

    def read_text(self) -> str:
        """Return the whole text. Raises UnreadableFileError."""
        with self.open_text() as stream:
            return stream.read()

    def read_head(self, num_bytes: int) -> bytes:
        """Return at most the first `num_bytes` bytes, because the file may be huge.

        Raises UnreadableFileError.
        """
        with self.open_stream() as stream:
            return bytes(stream.read(num_bytes))


def _find_special_kind(path: str) -> str:
    """Return `a pipe`, `a socket` or `a device` for such a local file; for others an empty text."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return ""
    kinds = (
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    )
    return next((kind for is_kind, kind in kinds if is_kind(mode)), "")


def _explain_unreadable(path: str, error: OSError | UnicodeEncodeError) -> str:
    if isinstance(error, UnicodeEncodeError):
        return f"the name of {_escape(path)} is not UTF-8: rename the file"
    reason = os.strerror(error.errno) if error.errno else " ".join(str(error).split())
    return f"{_escape(path)} cannot be read: {reason}"


def detect_encoding(head: bytes) -> str:
    """Return the encoding that a byte order mark names, which PowerShell writes; else UTF-8."""
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):  # begins as that of UTF-16
        return "utf-32"
    return "utf-16" if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"


def find_files(spec: str) -> tuple[str, list[SourceFile]]:
    """Return the base name of a file or folder, and its files sorted by name.

    A folder is searched recursively, without hidden files and folders, and without the files in
    which Hugging Face's `datasets` describes a dataset. A local folder that symbolic links reach
    again is searched once. Raises DataError.
    """
    fs, path = open_filesystem(spec)
    is_local = isinstance(fs, pyarrow.fs.LocalFileSystem)
    if is_local and (kind := _find_special_kind(path)):
        raise DataError(f"source {spec!r} is {kind}: copy its data into a file")
    try:
        info = fs.get_file_info(path)
        if info.is_file:
            return info.base_name, [SourceFile(fs, path, info.base_name)]
        if is_local:
            found = _walk_local_folder(path)
        else:
            listed = fs.get_file_info(pyarrow.fs.FileSelector(path, recursive=True))
            found = [file.path for file in listed if file.is_file]
    except FileNotFoundError:
        raise DataError(
            f"source {spec!r} does not exist: "
            "give a file or folder of drawings, phosphor or scenes:N"
        ) from None
    except UnicodeEncodeError:
        raise DataError(f"the name of source {spec!r} is not UTF-8: rename it") from None
    # This is the first contact: each library of a hub raises its own type (httpx.ConnectError).
    except Exception as error:
        reason = explain_remote_error(error, spec)
        raise DataError(f"cannot read source {spec!r}: {reason}") from error

    files = [SourceFile(fs, file, _escape(file[len(path) :].lstrip("/"))) for file in found]
    data = [file for file in files if not is_hidden(file.name) and not _is_hub_file(file.name)]
    return info.base_name, sorted(data, key=lambda file: file.name)


def _walk_local_folder(folder: str) -> list[str]:
    """Return the path of each file of a folder on this machine, without hidden folders.

    Symbolic links are followed after all real folders, and no folder is visited twice, so that a
    link to a parent repeats no file. Links to nothing, pipes, sockets and devices are returned as
    files that cannot be read. Raises OSError if a folder cannot be listed.
    """
    paths: list[str] = []
    visited: set[tuple[int, int]] = set()
    waiting = deque([folder])
    while waiting:
        for root, folders, names in os.walk(waiting.popleft(), onerror=_raise):
            status = os.stat(root)
            if (status.st_dev, status.st_ino) in visited:
                folders.clear()
                continue
            visited.add((status.st_dev, status.st_ino))

            folders[:] = sorted(name for name in folders if not name.startswith("."))
            children = [os.path.join(root, name) for name in folders]
            waiting.extend(child for child in children if os.path.islink(child))
            paths += [os.path.join(root, name) for name in names]
    return paths


def _raise(error: OSError) -> NoReturn:
    raise error


def _escape(name: str) -> str:
    """Replace the bytes that Python read as lone surrogates, because they are not UTF-8."""
    return re.sub("[\udc80-\udcff]", lambda match: f"%{ord(match[0]) - 0xDC00:02X}", name)


def normalise_name(name: str) -> str:
    """Return the one spelling of a path: without `./` and `..`, with `/`, in composed Unicode.

    macOS decomposes `é` in the names of files, but not in files of captions.
    """
    return posixpath.normpath(unicodedata.normalize("NFC", name).replace("\\", "/"))


def is_hidden(name: str) -> bool:
    """Return whether a normalised path has a hidden file or folder; `..` is none."""
    return any(part.startswith(".") and part != ".." for part in name.split("/"))


def _is_hub_file(name: str) -> bool:
    return name.rpartition("/")[2] in _HUB_FILES
