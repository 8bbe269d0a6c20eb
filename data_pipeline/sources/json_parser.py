"""Parse a JSON file: a whole value, or a stream of objects from lines or from one array."""

import io
import json
import re
import sys
from collections.abc import Iterator
from itertools import chain
from typing import Any, TextIO

from data_pipeline.errors import DataError
from data_pipeline.sources.files import SourceFile

_CHUNK_CHARS = 1 << 20
_MAX_OBJECT_CHARS = 1 << 26  # in an array; a longer object counts as broken
_SEPARATOR = re.compile(r"[\s,]*")


class JSONError(Exception):
    """A text that is not usable JSON; the message is the reason."""


class _RepeatedNameError(Exception):
    """An object has two values of one name, and a reader would silently keep the last."""


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _RepeatedNameError(f"two values are named {twice!r}; keep one of them")
    return row


def _read_int(digits: str) -> int | str:
    """Return a whole number, or its digits if Python refuses to convert so many."""
    return int(digits) if len(digits) <= sys.int_info.default_max_str_digits else digits


_DECODER = json.JSONDecoder(object_pairs_hook=_make_object, parse_int=_read_int)


def parse_json(text: str) -> Any:
    """Return the value of a text. Raises JSONError."""
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise JSONError("nested too deeply") from None
    except _RepeatedNameError as error:
        raise JSONError(str(error)) from None
    except ValueError as error:
        raise JSONError(f"not JSON ({error})") from None


def load_json(file: SourceFile) -> Any:
    """Return the value of the whole file. Raises DataError if it is not usable JSON."""
    try:
        return parse_json(file.read_text())
    except JSONError as error:
        raise DataError(f"{file.path}: {error}") from None


def parse_json_objects(file: SourceFile) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON Lines file or of one JSON array.

    Raises DataError with the place of the first value that is not an object.
    """
    with file.open_text() as stream:
        # An array may be all on one line, so the first read is a chunk.
        first = stream.read(_CHUNK_CHARS)
        if first.lstrip().startswith("["):
            yield from _parse_array(first, stream, file.path)
        else:
            yield from _parse_lines(first + stream.readline(), stream, file.path)


def _parse_lines(first: str, stream: TextIO, where: str) -> Iterator[dict[str, Any]]:
    lines = chain(io.StringIO(first, newline=""), stream)
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _parse_line(line, f"{where}, line {number}")


def _parse_line(line: str, where: str) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except JSONError as error:
        raise DataError(f"{where}: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: not a JSON object")
    return row


def _parse_array(buffer: str, stream: TextIO, where: str) -> Iterator[dict[str, Any]]:
    """Yield the objects of an array that may exceed the memory, each as soon as it is complete."""
    position, number = buffer.index("[") + 1, 1
    while True:
        # skip separators: the pattern also matches an empty string, so it always matches
        position = _SEPARATOR.match(buffer, position).end()  # type: ignore[union-attr]
        if buffer.startswith("]", position):
            rest = chain([buffer[position + 1 :]], iter(lambda: stream.read(_CHUNK_CHARS), ""))
            if any(text.strip() for text in rest):
                raise DataError(
                    f"{where}: more text follows the array: give one array, or JSON Lines"
                )
            return

        # decode one object
        try:
            row, position = _DECODER.raw_decode(buffer, position)
        except RecursionError:
            raise DataError(f"{where}, row {number}: nested too deeply") from None
        except _RepeatedNameError as error:
            raise DataError(f"{where}, row {number}: {error}") from None
        except ValueError:
            is_broken = len(buffer) - position >= _MAX_OBJECT_CHARS
            more = "" if is_broken else stream.read(_CHUNK_CHARS)
            if not more:
                raise DataError(f"{where}, row {number}: not a JSON object") from None
            buffer, position = buffer[position:] + more, 0
            continue

        if not isinstance(row, dict):
            raise DataError(f"{where}, row {number}: not a JSON object")
        yield row
        number += 1
