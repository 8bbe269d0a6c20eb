"""Where files lie: local paths and URIs, through pyarrow's file systems. Knows no format.

Tested: local paths, `file://`, `fsspec+memory://`. Run by hand against a stand-in: `s3://` (moto's server; every source
format and a whole `prepare`). Not run by anyone yet: real S3, `gs://`, and `hf://`, which is fsspec's way.
"""

import io
from dataclasses import dataclass
from typing import Any, TextIO

import pyarrow.fs

from data_pipeline.errors import DataError
from data_pipeline.filesystem import open_filesystem


@dataclass(frozen=True)
class SourceFile:
    """A file of a source; `name` is its path in the source's folder, and says what format it has."""

    fs: pyarrow.fs.FileSystem
    path: str
    name: str

    @property
    def stem(self) -> str:
        """The file's own name up to the first dot: `icons/a.tar.gz` → `a`."""
        return self.name.rpartition("/")[2].partition(".")[0]

    def stream(self) -> Any:
        """Bytes from the first to the last; a file object without a way back."""
        return self.fs.open_input_stream(self.path, compression=None)

    def lines(self) -> TextIO:
        """Text without a byte order mark; a byte that is not UTF-8 becomes U+FFFD."""
        return io.TextIOWrapper(self.stream(), encoding="utf-8-sig", errors="replace", newline="")

    def text(self) -> str:
        with self.lines() as stream:
            return stream.read()

    def head(self, num_bytes: int) -> bytes:
        """At most its first bytes: a file is not trusted to be small."""
        with self.stream() as stream:
            return bytes(stream.read(num_bytes))


def find_files(spec: str) -> tuple[str, list[SourceFile]]:
    """The source's own name and its file, or all files of the folder and its folders by name, without hidden ones.

    Raises DataError.
    """
    fs, path = open_filesystem(spec)
    try:
        info = fs.get_file_info(path)
        if info.is_file:
            return info.base_name, [SourceFile(fs, path, info.base_name)]
        found = fs.get_file_info(pyarrow.fs.FileSelector(path, recursive=True))
    except FileNotFoundError:
        raise DataError(
            f"source {spec!r} does not exist: give a file or folder of drawings, phosphor or scenes:N"
        ) from None
    except (
        Exception
    ) as error:  # the first contact: a hub raises what its library raises, httpx.ConnectError say
        raise DataError(f"cannot read source {spec!r}: {' '.join(str(error).split())}") from error
    names = {file.path[len(path) :].lstrip("/"): file.path for file in found if file.is_file}
    hidden = {name for name in names if any(part.startswith(".") for part in name.split("/"))}
    return info.base_name, [
        SourceFile(fs, names[name], name) for name in sorted(names.keys() - hidden)
    ]
