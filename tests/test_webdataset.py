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

from data_pipeline.config import DrawingsConfig, PrepareConfig
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


def write_special(path: Path, **members: tuple[bytes, str]) -> None:
    """Append members of a type with the name of a target: `a__svg=(tarfile.SYMTYPE, "b.svg")`."""
    with tarfile.open(path, "a") as archive:
        for name, (kind, target) in members.items():
            info = tarfile.TarInfo(name.replace("__", "."))
            info.type, info.linkname = kind, target
            archive.addfile(info)


def test_a_member_without_data_is_a_record_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(make_tar(make_samples({"a": "a cat"})))
    write_special(
        path,
        b__svg=(tarfile.SYMTYPE, "a.svg"),
        b__txt=(tarfile.LNKTYPE, "a.txt"),
        c__svg=(tarfile.LNKTYPE, "a.svg"),
        d__svg=(tarfile.FIFOTYPE, ""),
        latest=(tarfile.SYMTYPE, "."),
        folder=(tarfile.DIRTYPE, ""),
        e__txt=(tarfile.SYMTYPE, "a.txt"),  # without a drawing
    )
    records = list(read_source(str(path), PrepareConfig(out="unused")))
    assert [record.id for record in records] == ["a", "b", "c", "d"]
    assert [record.unreadable.partition(",")[0] for record in records] == [
        "",
        "b.svg is a link to a.svg in the tar",
        "c.svg is a link to a.svg in the tar",
        "d.svg is a pipe or a device in the tar",
    ]
    write_special(path, f__svg=(tarfile.CHRTYPE, ""))
    assert [record.id for record in read_source(str(path), DrawingsConfig())][-1] == "f"


def test_a_link_to_a_caption_matters_only_where_captions_do(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(make_tar({"a.svg": SVG}))
    write_special(path, a__txt=(tarfile.SYMTYPE, "b.txt"))
    (record,) = read_source(str(path), PrepareConfig(out="unused"))
    assert record.unreadable.startswith("a.txt is a link to b.txt")
    (record,) = read_source(str(path), DrawingsConfig())
    assert (record.svg, record.unreadable) == (SVG.encode(), "")


def test_a_name_outside_of_the_archive_is_only_a_key(tmp_path: Path) -> None:
    captions = {"../a": "a cat", "/b": "a dog", "x/../../c": "a cow"}
    found = read(tmp_path / "a.tar", make_tar(make_samples(captions)))
    assert found == {"../a": "a cat", "/b": "a dog", "../c": "a cow"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 100_000, "JSON that is unusable: nested too deeply"),
        ('{"caption": "x", "caption": "y"}', "unusable: two values are named 'caption'"),
        ('{"caption": "x"', "JSON that is unusable: not JSON (Expecting"),
        ("[1]", "JSON without an object"),
        ('{"caption": "half \\ud83d"}', "broken Unicode (a lone surrogate)"),
    ],
)
def test_json_without_a_caption_is_explained(tmp_path: Path, text: str, problem: str) -> None:
    files = {"a.svg": SVG, "a.json": text, **make_samples({"b": "a cat"})}
    (tmp_path / "a.tar").write_bytes(make_tar(files))
    first, second = read_source(str(tmp_path / "a.tar"), PrepareConfig(out="unused"))
    assert (first.caption, second.caption) == ("", "a cat")
    assert problem in first.problem
