"""WebDataset format: tar files of samples, `KEY.svg` with `KEY.txt` or `KEY.json` beside it.

The files of one sample are neighbours in the tar. The tar may be compressed, in one member or in
several, and may be several archives one after another. Hidden files are left alone. Nothing is
unpacked to the disk, so a name with `..` or a leading `/` is only a key. A link holds no data of
its own, and a stream cannot go back to its target: the sample is a record that cannot be read.
"""

import bz2
import gzip
import lzma
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, groupby, islice
from typing import Any, NamedTuple, Self

from data_pipeline.config import PrepareConfig
from data_pipeline.errors import DataError
from data_pipeline.sources.captions import (
    MAX_CAPTION_BYTES,
    Captions,
    UnreadableCaption,
    decode_caption,
    make_records,
)
from data_pipeline.sources.columns import CAPTION_COLUMNS
from data_pipeline.sources.files import SVG_SUFFIXES, SourceFile, is_hidden, normalise_name
from data_pipeline.sources.json_parser import JSONError, parse_json
from data_pipeline.sources.record import Record

_CAPTION_SUFFIXES = (".txt", ".json")
_HEAD_SAMPLES = 100  # a tar without a caption in these is refused
# tarfile itself reads only the first member of a compressed stream.
_UNPACK: tuple[tuple[bytes, Callable[[Any], Any]], ...] = (
    (rb"\x1f\x8b", gzip.open),
    (rb"BZh[1-9]1AY", bz2.open),
    (rb"\xfd7zXZ", lzma.open),
    (rb"", lambda stream: stream),
)
"""Beginnings of a file, as patterns, and functions that unpack it."""


class _Sample(NamedTuple):
    """Files of one key. `unreadable` is the reason why one of them has no data."""

    key: str
    svg: bytes
    captions: Captions
    unreadable: str


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
    if config.needs_captions and not any(sample.captions or sample.unreadable for sample in head):
        raise DataError(
            f"{file.path} has no captions in its first {len(head)} drawings: beside KEY.svg "
            f"expected KEY.txt, or KEY.json with one of {', '.join(CAPTION_COLUMNS)}"
        )

    return chain.from_iterable(
        _make_sample_records(sample, source, config) for sample in chain(head, samples)
    )


def _make_sample_records(sample: _Sample, source: str, config: PrepareConfig) -> Iterator[Record]:
    key, svg, captions, unreadable = sample
    if unreadable:
        return iter([Record(key, b"", "", source, "", unreadable=unreadable)])
    return make_records(key, svg, captions, source, config)


def _read_samples(file: SourceFile, config: PrepareConfig) -> Iterator[_Sample]:
    """Yield each sample that has an SVG."""
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
                if sample := _read_sample(archive, key, files, config):
                    yield sample
    except (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{file.path} is not a readable tar: {error}") from None


def _list_files(archive: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Yield key, suffix and header of each file."""
    while (member := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
        name = normalise_name(member.name)
        if not member.isdir() and not is_hidden(name):
            yield *_split_key(name), member


def _read_sample(
    archive: tarfile.TarFile,
    key: str,
    files: Iterable[tuple[str, tarfile.TarInfo]],
    config: PrepareConfig,
) -> _Sample | None:
    svg: bytes | None = None
    captions: Captions = []
    unreadable = ""
    wanted = (*SVG_SUFFIXES, *(_CAPTION_SUFFIXES if config.needs_captions else ()))

    for suffix, member in files:
        if suffix not in wanted:
            continue
        if not member.isfile():
            unreadable = unreadable or _explain_no_data(member)
            svg = b"" if svg is None and suffix in SVG_SUFFIXES else svg
        elif suffix in SVG_SUFFIXES:
            svg = _read_member(archive, member, config.max_svg_bytes + 1)
        elif suffix == ".txt":
            text = decode_caption(_read_member(archive, member, MAX_CAPTION_BYTES))
            captions.append(("txt", text))
        else:
            captions += _parse_captions(_read_member(archive, member, MAX_CAPTION_BYTES), config)
    return None if svg is None else _Sample(key, svg, captions, unreadable)


def _explain_no_data(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return (
            f"{member.name} is a link to {member.linkname} in the tar, without data of its own: "
            "write the tar with --dereference --hard-dereference"
        )
    return f"{member.name} is a pipe or a device in the tar, without data"


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
    """Return the captions of a JSON object, or the reason why it has none."""
    try:
        row = parse_json(decode_caption(data))
    except JSONError as error:
        return [("json", UnreadableCaption(f"JSON that is unusable: {error}"))]
    if not isinstance(row, dict):
        return [("json", UnreadableCaption("JSON without an object"))]
    spelling = {name.lower(): name for name in row}
    names: Sequence[str] = (config.caption_column,) if config.caption_column else CAPTION_COLUMNS
    keys = [(name, spelling.get(name.lower())) for name in names]
    return [(name, row[key]) for name, key in keys if key is not None]
