"""Standard output and standard error of a command, with credentials masked."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from data_pipeline.masking import mask_secrets


class _MaskedStream:
    """Text stream that masks the credentials in every write, and is otherwise the given one."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write the text without credentials. Return the number of characters of `text`."""
        self._stream.write(mask_secrets(text))
        return len(text)


@contextlib.contextmanager
def mask_output() -> Iterator[None]:
    """Mask credentials in all that this process prints: results, errors, logs, tracebacks.

    Ray prints the output of the workers through this process.
    """
    out, err = (cast(TextIO, _MaskedStream(stream)) for stream in (sys.stdout, sys.stderr))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield
