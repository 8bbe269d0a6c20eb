"""Tar files: compressed in pieces, one after another, damaged, and with hidden files."""

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from data_pipeline.config import PrepareConfig
from data_pipeline.errors import DataError
from data_pipeline.sources.read import read_source

SVG = '<svg viewBox="0 0 1 1"><path d="M0 0h1"/></svg>'
CAPTIONS = {f"{n}": f"caption {n}" for n in range(40)}


def make_tar(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue()


def make_samples(captions: dict[str, str], folder: str = "") -> dict[str, str]:
    return {
        f"{folder}{key}.{suffix}": text
        for key, caption in captions.items()
        for suffix, text in (("svg", SVG), ("txt", caption))
    }


def read(path: Path, data: bytes) -> dict[str, str]:
    path.write_bytes(data)
    records = read_source(str(path), PrepareConfig(out="unused"))
    return {record.id: record.caption for record in records}


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_tar_compressed_in_several_members_is_read_to_its_end(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    data = make_tar(make_samples(CAPTIONS))
    cuts = [*range(0, len(data), 7_777), len(data)]
    members = [compress(data[start:end]) for start, end in pairwise(cuts)]
    assert len(members) > 5
    assert read(tmp_path / "a.tar.gz", b"".join(members)) == CAPTIONS


def test_a_tar_is_not_taken_for_compressed_by_the_name_of_its_first_file(tmp_path: Path) -> None:
    captions = {"BZh1": "a cat", "BZ": "a dog"}
    assert read(tmp_path / "a.tar", make_tar(make_samples(captions))) == captions


def test_archives_one_after_another_are_all_read(tmp_path: Path) -> None:
    tars = [make_tar(make_samples({key: text})) for key, text in CAPTIONS.items()]
    assert read(tmp_path / "a.tar", b"".join(tars)) == CAPTIONS
    assert read(tmp_path / "b.tgz", b"".join(map(gzip.compress, tars))) == CAPTIONS


def test_a_damaged_tar_is_refused_by_name(tmp_path: Path) -> None:
    data = make_tar(make_samples(CAPTIONS))
    middle = len(data) // 4 // 1024 * 1024  # a header: files and headers take 512 bytes each
    damaged = data[:middle] + b"\xff" * 512 + data[middle + 512 :]
    packed = gzip.compress(data)
    for number, broken in enumerate(
        (damaged, data[: middle + 100], data[: middle + 600], packed[:-20], packed[:99])
    ):
        with pytest.raises(DataError, match=r"\.tar is not a readable tar"):
            read(tmp_path / f"{number}.tar", broken)


def test_names_as_tar_and_macos_write_them(tmp_path: Path) -> None:
    files = {
        "./a/._0.svg": "AppleDouble",
        "./a/0.SVG": SVG,
        "./a/0.TXT": "a cat",
        "./a/cafe\u0301.svg": SVG,
        "./a/caf\u00e9.txt": "a cup",
        "./.cache/1.svg": SVG,
    }
    assert read(tmp_path / "a.TAR", make_tar(files)) == {"a/0": "a cat", "a/caf\u00e9": "a cup"}
