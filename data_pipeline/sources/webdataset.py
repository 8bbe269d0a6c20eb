"""WebDataset format: tar files of samples, `KEY.svg` with `KEY.txt` or `KEY.json` beside it.

The files of one sample are neighbours in the tar. The tar may be compressed.
"""

import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby, islice
from typing import Any

from data_pipeline.config import PrepareConfig
from data_pipeline.errors import DataError
from data_pipeline.sources.captions import (
    MAX_CAPTION_BYTES,
    Captions,
    decode_caption,
    make_records,
)
from data_pipeline.sources.columns import CAPTION_COLUMNS
from data_pipeline.sources.files import SVG_SUFFIXES, SourceFile
from data_pipeline.sources.record import Record

_HEAD_SAMPLES = 100  # a tar without a caption in these is refused


def read_webdataset(file: SourceFile, source: str, config: PrepareConfig) -> Iterator[Record]:
    """Return the records of one tar.

    Raises DataError before the first record if the first samples have no drawing or no caption.
    """
    samples = _read_samples(file, config)
    head = list(islice(samples, _HEAD_SAMPLES))

    if not head:
        raise DataError(f"{file.path} holds no .svg")
    if not any(captions for _, _, captions in head):
        raise DataError(
            f"{file.path} has no captions in its first {len(head)} drawings: beside KEY.svg "
            f"expected KEY.txt, or KEY.json with one of {', '.join(CAPTION_COLUMNS)}"
        )

    return chain.from_iterable(
        make_records(*sample, source, config) for sample in chain(head, samples)
    )


def _read_samples(file: SourceFile, config: PrepareConfig) -> Iterator[tuple[str, bytes, Captions]]:
    """Yield key, SVG and captions of each sample that has an SVG."""
    try:
        with file.open_stream() as stream, tarfile.open(fileobj=stream, mode="r|*") as archive:
            members = ((*_split_key(member.name), member) for member in archive if member.isfile())
            for key, parts in groupby(members, key=lambda member: member[0]):
                files = ((suffix, member) for _, suffix, member in parts)
                svg, captions = _read_sample(archive, files, config)
                if svg is not None:
                    yield key, svg, captions
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{file.path} is not a readable tar: {error}") from None


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
