"""The captions of a run that may be killed, in a file beside its output file.

The journal `OUT.partial` holds JSON lines: first a header that describes the run, then one line for
each drawing that is done. Batches hold drawings of similar length, so a line has the number of its
drawing. When all drawings are captioned, they become the output in the order of the inputs.
"""

import fcntl
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from app.errors import UserError

SUFFIXES = (".jsonl", ".parquet")
_ROWS_PER_GROUP = 4096


class CaptionedDrawing(NamedTuple):
    """A drawing that is done: `caption` or `error` is None. All but `number` is in the output."""

    number: int
    """Place in all inputs, from 0."""
    source: str
    """Input as the user named it."""
    id: str
    """Unique within the input: the path in a folder, the id in a table."""
    caption: str | None
    error: str | None
    """Reason why the drawing has no caption, such as `not_xml: …`."""


def require_new_file(given: str) -> Path:
    """Return the absolute path of the output. Raises UserError if it cannot be written."""
    out = Path(given).absolute()
    if "://" in given or out.suffix.lower() not in SUFFIXES:
        raise UserError(f"--out {given} is not a local file that ends in {' or '.join(SUFFIXES)}")
    try:
        if not out.parent.is_dir():
            raise UserError(f"--out {out}: its folder does not exist; create it first")
        if out.exists():
            raise UserError(f"--out {out} exists already: give another name, or remove the file")
        with tempfile.TemporaryFile(dir=out.parent):  # without permission root can write too
            return out
    except OSError as error:
        raise _explain_unwritable(out, error) from None


class Journal:
    """The file `OUT.partial`, locked for this process. A context manager.

    `header` describes the run: a journal with another header cannot be continued.
    """

    def __init__(self, out: Path, header: Mapping[str, Any]) -> None:
        self.path = out.with_name(f"{out.name}.partial")
        self._out = out
        try:
            self._file = self.path.open("a+b")
        except OSError as error:
            raise _explain_unwritable(out, error) from None
        try:
            self._lock()
            self._require_header(header)
            self._remove_torn_line()
        except UserError:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and self._is_empty():
            self.path.unlink()  # nothing to continue
        self._file.close()

    def read(self) -> Iterator[CaptionedDrawing]:
        """Yield the drawings that are done, in the order of their numbers.

        Memory holds those of a few windows: the others follow each other.
        """
        waiting: dict[int, CaptionedDrawing] = {}
        number = 0
        with self.path.open("rb") as lines:
            next(lines)  # header
            for line in lines:
                try:
                    drawing = CaptionedDrawing(**json.loads(line))
                except (ValueError, TypeError):
                    raise self._make_damage_error() from None
                waiting[drawing.number] = drawing
                while number in waiting:
                    yield waiting.pop(number)
                    number += 1
        yield from sorted(waiting.values())

    def append(self, drawings: Iterable[CaptionedDrawing]) -> None:
        """Write drawings to the disk: they are kept when this process or the machine dies."""
        self._file.write(b"".join(_encode(drawing._asdict()) for drawing in drawings))
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self) -> None:
        """Write the output file, which appears when it is complete, and remove the journal."""
        partial = self._out.with_name(f".{self._out.name}.tmp")
        try:
            if self._out.suffix.lower() == ".parquet":
                _write_parquet(partial, self.read())
            else:
                with partial.open("wb") as file:
                    file.writelines(map(_encode, map(_make_row, self.read())))
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.rename(self._out)
        finally:
            partial.unlink(missing_ok=True)
        self.path.unlink()

    def _make_damage_error(self) -> UserError:
        return UserError(
            f"{self.path} is not a journal of `caption`, or is damaged: remove it to caption all "
            "drawings again, or give another --out"
        )

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"another process writes {self.path}: wait for it, or give another --out"
            ) from None

    def _remove_torn_line(self) -> None:
        """Remove the end of the file after its last newline: the process died while writing it."""
        end = self._file.seek(0, os.SEEK_END)
        position = end
        while position > 0:
            start = max(0, position - 2**16)
            self._file.seek(start)
            found = self._file.read(position - start).rfind(b"\n")
            if found >= 0:
                position = start + found + 1
                break
            position = start
        self._file.truncate(position)

    def _is_empty(self) -> bool:
        """Return whether the journal has no line after its header."""
        self._file.seek(0)
        self._file.readline()
        return not self._file.readline()

    def _require_header(self, header: Mapping[str, Any]) -> None:
        """Write the header of a new journal, or of one without drawings.

        Raises UserError, before the file is changed, if it is another file or another run's.
        """
        new = _encode(header)
        self._file.seek(0)
        first = self._file.readline()
        if first.endswith(b"\n"):
            try:
                saved = dict(json.loads(first))
            except (ValueError, TypeError):
                raise self._make_damage_error() from None
            is_begun = self._file.readline().endswith(b"\n") or saved.keys() != header.keys()
        else:  # it is empty, or the process died while writing the header
            if not new.startswith(first):
                raise self._make_damage_error()
            is_begun = False
        if not is_begun:
            self._file.truncate(0)
            self._file.write(new)
            self._file.flush()
            return

        changes = [
            f"{name} was {saved.get(name)!r} and is {header[name]!r}"
            for name in header
            if saved.get(name) != header[name]
        ]
        if changes:
            raise UserError(
                f"{self.path} was begun with other settings ({'; '.join(changes)}): restore them "
                "to continue, or remove the file or give another --out to begin again"
            )


def _explain_unwritable(out: Path, error: OSError) -> UserError:
    return UserError(
        f"--out {out} cannot be written ({error.strerror}): give a path in a folder where you may "
        "create files"
    )


def _make_row(drawing: CaptionedDrawing) -> dict[str, Any]:
    """Return the columns of the output."""
    row = drawing._asdict()
    del row["number"]
    return row


def _encode(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def _write_parquet(file: Path, drawings: Iterable[CaptionedDrawing]) -> None:
    import pyarrow as pa  # 0.3 s
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.string()) for name in CaptionedDrawing._fields[1:]])
    group: list[dict[str, Any]] = []
    with pq.ParquetWriter(file, schema) as writer:
        for drawing in drawings:
            group.append(_make_row(drawing))
            if len(group) == _ROWS_PER_GROUP:
                writer.write_table(pa.Table.from_pylist(group, schema))
                group = []
        writer.write_table(pa.Table.from_pylist(group, schema))
