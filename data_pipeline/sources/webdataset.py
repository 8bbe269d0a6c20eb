"""WebDataset format: tar files of samples, `KEY.svg` with `KEY.txt` or `KEY.json` beside it.

The files of one sample are neighbours in the tar. The tar may be compressed, in one member or in
several, and may be several archives one after another. Hidden files are left alone.
"""

import bz2
import gzip
import json
import lzma
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, groupby, islice
from typing import Any, Self

from data_pipeline.config import PrepareConfig
from data_pipeline.errors import DataError
from data_pipeline.sources.captions import (
    MAX_CAPTION_BYTES,
    Captions,
    decode_caption,
    make_records,
)
from data_pipeline.sources.columns import CAPTION_COLUMNS
from data_pipeline.sources.files import SVG_SUFFIXES, SourceFile, is_hidden, normalise_name
from data_pipeline.sources.record import Record

_HEAD_SAMPLES = 100  # a tar without a caption in these is refused
# tarfile itself reads only the first member of a compressed stream.
_UNPACK: tuple[tuple[bytes, Callable[[Any], Any]], ...] = (
    (rb"\x1f\x8b", gzip.open),
    (rb"BZh[1-9]1AY", bz2.open),
    (rb"\xfd7zXZ", lzma.open),
    (rb"", lambda stream: stream),
)
"""Beginnings of a file, as patterns, and functions that unpack it."""


class _StrictTarInfo(tarfile.TarInfo):
    """A header whose damage raises ReadError; tarfile would take it for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(str(error)) from None


def read_webdataset(file: SourceFile, source: str, config: PrepareConfig) -> Iterator[Record]:
    """Return the records of one tar.

    Raises DataError before the first record if the first samples have no drawing or no caption, or
    if `config` names a column of splits.
    """
    if config.split_column:
        raise DataError(
            f"{file.path} is a tar, whose splits --split-column {config.split_column!r} cannot "
            "give: name the tars train-…, validation-… and test-…, or give some by --test"
        )
    samples = _read_samples(file, config)
    head = list(islice(samples, _HEAD_SAMPLES))

    if not head:
        raise DataError(f"{file.path} holds no .svg")
    if config.needs_captions and not any(captions for _, _, captions in head):
        raise DataError(
            f"{file.path} has no captions in its first {len(head)} drawings: beside KEY.svg "
            f"expected KEY.txt, or KEY.json with one of {', '.join(CAPTION_COLUMNS)}"
        )

    return chain.from_iterable(
        make_records(*sample, source, config) for sample in chain(head, samples)
    )


def _read_samples(file: SourceFile, config: PrepareConfig) -> Iterator[tuple[str, bytes, Captions]]:
    """Yield key, SVG and captions of each sample that has an SVG."""
    head = file.read_head(8)
    unpack = next(unpack for magic, unpack in _UNPACK if re.match(magic, head))

    try:
        with (
            file.open_stream() as stream,
            tarfile.open(
                fileobj=unpack(stream),
                mode="r|",
                tarinfo=_StrictTarInfo,
                ignore_zeros=True,
            ) as archive,
        ):
            for key, parts in groupby(_list_files(archive), key=lambda part: part[0]):
                files = ((suffix, member) for _, suffix, member in parts)
                svg, captions = _read_sample(archive, files, config)
                if svg is not None:
                    yield key, svg, captions
    except (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{file.path} is not a readable tar: {error}") from None


def _list_files(archive: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Yield key, suffix and header of each file."""
    while (member := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
        name = normalise_name(member.name)
        if member.isfile() and not is_hidden(name):
            yield *_split_key(name), member


def _read_sample(
    archive: tarfile.TarFile,
    files: Iterable[tuple[str, tarfile.TarInfo]],
    config: PrepareConfig,
) -> tuple[bytes | None, Captions]:
    svg: bytes | None = None
    captions: Captions = []
    for suffix, member in files:
        if suffix in SVG_SUFFIXES:
            svg = _read_member(archive, member, config.max_svg_bytes + 1)
        elif suffix == ".txt":
            text = decode_caption(_read_member(archive, member, MAX_CAPTION_BYTES))
            captions.append(("txt", text))
        elif suffix == ".json":
            captions += _parse_captions(_read_member(archive, member, MAX_CAPTION_BYTES), config)
    return svg, captions


def _split_key(name: str) -> tuple[str, str]:
    """Split `a/b.old.SVG` into `a/b` and `.svg`.

    A key of WebDataset ends at the first dot of the base name.
    """
    folder, slash, base = name.rpartition("/")
    key, _, rest = base.partition(".")
    return folder + slash + key, "." + rest.rpartition(".")[2].lower()


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo, num_bytes: int) -> bytes:
    stream = archive.extractfile(member)
    assert stream is not None, member.name  # only links and folders have none
    return stream.read(num_bytes)


def _parse_captions(data: bytes, config: PrepareConfig) -> Captions:
    """Return the captions of a JSON object.

    Returns none for any other data; the record then goes to quarantine for its missing caption.
    """
    try:
        row: Any = json.loads(decode_caption(data))
    except (ValueError, RecursionError):
        return []
    if not isinstance(row, dict):
        return []
    spelling = {name.lower(): name for name in row}
    names: Sequence[str] = (config.caption_column,) if config.caption_column else CAPTION_COLUMNS
    keys = [(name, spelling.get(name.lower())) for name in names]
    return [(name, row[key]) for name, key in keys if key is not None]
