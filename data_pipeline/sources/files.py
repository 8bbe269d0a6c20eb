"""Find and open the files of a source: local paths and URIs, through pyarrow's file systems.

`data_pipeline.filesystem` lists the file systems that were tested.
"""

import io
import posixpath
import unicodedata
from dataclasses import dataclass
from typing import Any, TextIO

import pyarrow.fs

from data_pipeline.errors import DataError
from data_pipeline.filesystem import open_filesystem

SVG_SUFFIXES = (".svg", ".svgz")
"""Suffixes of a file that is one drawing."""
_HUB_FILES = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")


@dataclass(frozen=True)
class SourceFile:
    """A file of a source; `name` is its path in the source's folder, with its suffix."""

    fs: pyarrow.fs.FileSystem
    path: str
    name: str

    @property
    def stem(self) -> str:
        """The base name up to the first dot: `icons/a.tar.gz` → `a`."""
        return self.name.rpartition("/")[2].partition(".")[0]

    def open_stream(self) -> Any:
        """Open the file for sequential reading of bytes; the stream cannot seek."""
        return self.fs.open_input_stream(self.path, compression=None)

    def open_text(self) -> TextIO:
        """Open the file as text without a byte order mark; a bad UTF-8 byte becomes U+FFFD."""
        stream = self.open_stream()
        return io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline="")

    def read_text(self) -> str:
        """Return the whole text."""
        with self.open_text() as stream:
            return stream.read()

    def read_head(self, num_bytes: int) -> bytes:
        """Return at most the first `num_bytes` bytes, because the file may be huge."""
        with self.open_stream() as stream:
            return bytes(stream.read(num_bytes))


def find_files(spec: str) -> tuple[str, list[SourceFile]]:
    """Return the base name of a file or folder, and its files sorted by name.

    A folder is searched recursively, without hidden files and folders, and without the files in
    which Hugging Face's `datasets` describes a dataset. Raises DataError.
    """
    fs, path = open_filesystem(spec)
    try:
        info = fs.get_file_info(path)
        if info.is_file:
            return info.base_name, [SourceFile(fs, path, info.base_name)]
        found = fs.get_file_info(pyarrow.fs.FileSelector(path, recursive=True))
        paths = {file.path[len(path) :].lstrip("/"): file.path for file in found if file.is_file}
    except FileNotFoundError:
        raise DataError(
            f"source {spec!r} does not exist: "
            "give a file or folder of drawings, phosphor or scenes:N"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"source {spec!r} holds a file whose name is not UTF-8, {error.object!r}: rename it"
        ) from None
    # This is the first contact: each library of a hub raises its own type (httpx.ConnectError).
    except Exception as error:
        raise DataError(f"cannot read source {spec!r}: {' '.join(str(error).split())}") from error

    data = sorted(name for name in paths if not is_hidden(name) and not _is_hub_file(name))
    return info.base_name, [SourceFile(fs, paths[name], name) for name in data]


def normalise_name(name: str) -> str:
    """Return the one spelling of a path: without `./` and `..`, with `/`, in composed Unicode.

    macOS decomposes `é` in the names of files, but not in files of captions.
    """
    return posixpath.normpath(unicodedata.normalize("NFC", name).replace("\\", "/"))


def is_hidden(name: str) -> bool:
    """Return whether a normalised path has a hidden file or folder."""
    return any(part.startswith(".") for part in name.split("/"))


def _is_hub_file(name: str) -> bool:
    return name.rpartition("/")[2] in _HUB_FILES
