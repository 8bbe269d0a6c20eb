"""A disk that fails (EIO) while a source or a shard is read: one sentence with the file's name."""

import errno
import gzip
import io
import json
import os
import random
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from data_pipeline.config import PrepareConfig
from data_pipeline.errors import DataError
from data_pipeline.prepare.dataset import prepare_dataset
from data_pipeline.shards import ShardRecord, ShardWriter, open_shards
from data_pipeline.sources.read import count_drawings, read_source
from tests.corpus import make_records

REASON = os.strerror(errno.EIO)
NUM_ROWS = 3000


class FailingFile(io.FileIO):
    """A file whose bytes in [start, stop) cannot be read."""

    def __init__(self, path: str, start: int, stop: int) -> None:
        super().__init__(path)
        self.start, self.stop = start, stop

    def read(self, size: int | None = -1) -> bytes:
        first = self.tell()
        content = super().read(-1 if size is None else size)
        if first < self.stop and first + len(content) > self.start:
            FailingDisk.num_errors += 1
            raise OSError(errno.EIO, REASON)
        return content

    def readall(self) -> bytes:
        return self.read()


class FailingDisk(LocalFileSystem):
    """The local disk with a broken sector in the second half of each large file."""

    protocol = "failing"
    cachable = False
    num_errors = 0
    opened: ClassVar[list[FailingFile]] = []

    def _open(self, path: str, mode: str = "rb", **_: Any) -> FailingFile:
        size = os.path.getsize(path)
        broken = (size // 2, size * 3 // 4) if size > 2000 else (size, size)
        self.opened.append(FailingFile(path, *broken))
        return self.opened[-1]


@pytest.fixture(autouse=True)
def disk() -> Iterator[None]:
    fsspec.register_implementation("failing", FailingDisk, clobber=True)
    FailingDisk.num_errors = 0
    yield
    assert FailingDisk.num_errors
    while FailingDisk.opened:  # pyarrow leaves a file open if reading its footer fails
        FailingDisk.opened.pop().close()


DRAWING = '<svg viewBox="0 0 9 9"><path d="M0 0h{}z"/></svg>'
ROWS = [{"id": f"{n}", "svg": DRAWING.format(n), "caption": f"a {n}"} for n in range(NUM_ROWS)]


def write_lines(file: Path) -> None:
    file.write_text("\n".join(map(json.dumps, ROWS)))


def write_array(file: Path) -> None:
    file.write_text(json.dumps(ROWS))


def write_icon_set(file: Path) -> None:
    icons = {f"icon-{n}": {"body": f'<path d="M0 0h{n}z"/>'} for n in range(NUM_ROWS)}
    file.write_text(json.dumps({"prefix": "set", "icons": icons}))


def write_parquet(file: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), file, row_group_size=200)


def write_tar(file: Path) -> None:
    with tarfile.open(file, "w") as archive:
        for row in ROWS[:100]:
            for suffix, key in (("svg", "svg"), ("txt", "caption")):
                member = tarfile.TarInfo(f"{row['id']}.{suffix}")
                member.size = len(row[key])
                archive.addfile(member, io.BytesIO(row[key].encode()))


def write_packed_tar(file: Path) -> None:
    write_tar(file)
    file.write_bytes(gzip.compress(file.read_bytes(), compresslevel=0))


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.jsonl", write_lines), ("a.json", write_array), ("icons.json", write_icon_set),
     ("a.parquet", write_parquet), ("a.tar", write_tar), ("a.tgz", write_packed_tar)],
)  # fmt: skip
def test_a_source_that_fails_in_its_middle_is_named_and_leaves_no_dataset(
    tmp_path: Path, name: str, write: Callable[[Path], None]
) -> None:
    file = tmp_path / "source" / name
    file.parent.mkdir()
    write(file)
    assert len(list(read_source(str(file), PrepareConfig(out="unused")))) in (NUM_ROWS, 100)

    config = PrepareConfig(out=str(tmp_path / "out"), processes=1)
    with pytest.raises(DataError) as error:
        prepare_dataset([f"fsspec+failing://{file}"], config, progress=False)
    assert name in str(error.value)
    assert REASON in str(error.value)
    assert "cannot write" not in str(error.value)
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.parametrize(
    "name", ["captions.csv", "captions.json", "captions.jsonl", "metadata.parquet"]
)
def test_a_table_of_captions_that_fails_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "0.svg").write_text(ROWS[0]["svg"])
    if name == "metadata.parquet":
        write_parquet(tmp_path / name)
    elif name == "captions.json":
        (tmp_path / name).write_text(json.dumps({row["id"]: row["caption"] for row in ROWS}))
    elif name == "captions.csv":
        lines = [f"{row['id']},{row['caption']}" for row in ROWS]
        (tmp_path / name).write_text("\n".join(["id,caption", *lines]))
    else:
        write_lines(tmp_path / name)
    assert [one.caption for one in read_source(str(tmp_path), PrepareConfig(out="unused"))] == [
        "a 0"
    ]
    with pytest.raises(DataError, match=rf"{name} .*{REASON}"):
        read_source(f"fsspec+failing://{tmp_path}", PrepareConfig(out="unused"))


def test_a_footer_that_fails_is_named_when_drawings_are_counted(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet")
    assert count_drawings(str(tmp_path)) == NUM_ROWS
    os.truncate(tmp_path / "a.parquet", (tmp_path / "a.parquet").stat().st_size * 3 // 4)
    with pytest.raises(DataError, match=rf"a\.parquet is not a readable .*{REASON}"):
        count_drawings(f"fsspec+failing://{tmp_path}/a.parquet")


def test_a_shard_that_fails_is_named_by_each_reader(tmp_path: Path) -> None:
    writer = ShardWriter(str(tmp_path), shard_records=400)
    rng = random.Random(0)
    records = [
        ShardRecord(f"{n}", f"<svg>{rng.random()}</svg>", f"a {n}", "test") for n in range(1000)
    ]
    writer.add("train", make_records(records))
    writer.commit({"digest": writer.close(), "duplicates": 0, "quarantined": {}}, {})
    shards = open_shards(f"fsspec+failing://{tmp_path}")
    for read in (lambda: shards.read("train", 600, 1000), lambda: [*shards.read_captions("train")]):
        with pytest.raises(
            DataError, match=rf"shard \S*/train-0000\d\.parquet .*{REASON}"
        ) as error:
            read()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.tar", "a.parquet"])
def test_a_file_of_the_kernel_that_fails_at_its_first_byte_is_named(
    tmp_path: Path, name: str
) -> None:
    FailingDisk.num_errors = 1  # the kernel's own
    (tmp_path / name).symlink_to("/proc/self/mem")  # its first bytes are not mapped: EIO
    with pytest.raises(OSError, match=REASON):
        (tmp_path / name).read_bytes()
    with pytest.raises(DataError, match=rf"{name} (cannot be read: {REASON}|is not a readable)"):
        read_source(str(tmp_path / name), PrepareConfig(out="unused"))
