"""Open local paths and URIs through pyarrow's file systems.

Tested: local paths, `file://`, `fsspec+memory://`, and `s3://` on a substitute server (moto). Never
run: real S3, `gs://`, and `hf://`, which goes through fsspec.
"""

import os

import pyarrow as pa
import pyarrow.fs

from data_pipeline.errors import DataError
from data_pipeline.home import expand_home
from data_pipeline.remote_errors import explain_remote_error


def open_filesystem(folder: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """Return the file system of a local path or URI, and the path inside that file system.

    A URI looks like `s3://bucket/key` or `hf://datasets/owner/name`. Raises DataError if pyarrow
    cannot open it, or if `~user` names no user.
    """
    if "://" not in folder:
        return pyarrow.fs.LocalFileSystem(), os.path.abspath(expand_home(folder))
    try:
        fs, path = pyarrow.fs.FileSystem.from_uri(folder)
    # fsspec raises ValueError and ImportError.
    except (pa.ArrowInvalid, OSError, ValueError, ImportError) as error:
        raise DataError(f"cannot open {folder!r}: {explain_remote_error(error, folder)}") from None
    return fs, str(path).rstrip("/")
