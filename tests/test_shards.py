"""Shards on disk: any range is as it was written, and no dataset is ever half replaced."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.shards import (
    ROW_GROUP_ROWS,
    QuarantinedRecord,
    ShardRecord,
    Shards,
    ShardWriter,
    open_shards,
)
from tests.corpus import make_records, write_shards

NUM_RECORDS = 1500
RECORDS = [
    ShardRecord(f"id{n}", f"<svg>{n}</svg>", f"caption {n}", "made") for n in range(NUM_RECORDS)
]


def write(folder: Path | str, records: list[ShardRecord], *, shard_records: int = 700) -> Shards:
    writer = ShardWriter(str(folder), shard_records=shard_records)
    for is_held_out, split in enumerate(["train", "validation"]):
        chosen = [record for n, record in enumerate(records) if (n % 10 == 9) == is_held_out]
        for start in range(0, len(chosen), 90):
            writer.add(split, make_records(chosen[start : start + 90]))
    writer.refuse(QuarantinedRecord("bad", "made", "empty", "nothing is drawn", b"<svg"))
    writer.commit(
        {"digest": writer.close(), "duplicates": 0, "quarantined": {}}, {"read": len(records)}
    )
    return open_shards(str(folder))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    return write(tmp_path_factory.mktemp("shards") / "a", RECORDS)


TRAIN = [record for n, record in enumerate(RECORDS) if n % 10 != 9]


def test_layout(shards: Shards) -> None:
    folder = Path(shards.folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "dataset.json",
        "quarantine.parquet",
        "report.json",
        "train-00000.parquet",
        "train-00001.parquet",
        "validation-00000.parquet",
    ]
    first = pq.ParquetFile(folder / "train-00000.parquet")
    assert first.schema_arrow == pa.schema(
        [(n, pa.string()) for n in ("id", "svg", "caption", "source", "split")]
    )
    assert first.metadata.num_rows == 700
    assert first.metadata.row_group(0).num_rows == ROW_GROUP_ROWS
    assert set(first.read(columns=["split"])["split"].to_pylist()) == {"train"}
    assert pq.read_table(folder / "quarantine.parquet").to_pylist() == [
        {
            "id": "bad",
            "source": "made",
            "reason": "empty",
            "detail": "nothing is drawn",
            "first_bytes": b"<svg",
        }
    ]
    assert (shards.num_records("train"), shards.num_records("validation")) == (1350, 150)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, len(TRAIN)), st.integers(0, len(TRAIN)))
def test_any_range_is_the_slice_of_all_records(shards: Shards, a: int, b: int) -> None:
    assert shards.read("train", min(a, b), max(a, b)) == TRAIN[min(a, b) : max(a, b)]


def test_ranges_at_the_edges_of_files_and_row_groups(shards: Shards) -> None:
    for start, stop in [
        (0, 0),
        (0, 1),
        (255, 257),
        (699, 701),
        (1349, 1350),
        (1350, 1350),
        (0, 1350),
    ]:
        assert shards.read("train", start, stop) == TRAIN[start:stop]
    assert shards.read("validation", 0, 150) == RECORDS[9::10]


def test_opened_shards_are_cheap_to_pickle(shards: Shards) -> None:
    sent = pickle.dumps(shards)
    assert len(sent) < 1000
    assert pickle.loads(sent).read("train", 3, 5) == TRAIN[3:5]


def test_a_folder_that_cannot_be_read_on_a_node_is_named(tmp_path: Path) -> None:
    shards = write(tmp_path / "a", RECORDS[:20])
    shutil.rmtree(tmp_path / "a")
    for read in (lambda: shards.read("train", 0, 1), lambda: [*shards.read_captions("train")]):
        with pytest.raises(DataError) as error:
            read()
        assert str(tmp_path / "a") in str(error.value)
        assert "every node" in str(error.value)
        assert "\n" not in str(error.value)


def test_the_digest_is_of_the_records_not_of_the_files(tmp_path: Path, shards: Shards) -> None:
    assert write(tmp_path / "a", RECORDS, shard_records=100).digest == shards.digest
    assert (
        write(tmp_path / "b", [*RECORDS[:-1], RECORDS[-1]._replace(caption="x")]).digest
        != shards.digest
    )
    assert write(tmp_path / "c", [RECORDS[1], RECORDS[0], *RECORDS[2:]]).digest != shards.digest


def test_a_uri_is_a_folder_too(tmp_path: Path) -> None:
    shards = write(f"file://{tmp_path}/uri", RECORDS[:20])
    assert shards.read("train", 2, 4) == TRAIN[2:4]
    assert (tmp_path / "uri" / "dataset.json").exists()


def test_a_new_dataset_replaces_the_old_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, RECORDS, shard_records=100)
    (tmp_path / "notes.txt").write_text("mine")
    shards = write(tmp_path, RECORDS[:20])
    assert shards.num_records("train") == 18
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "dataset.json",
        "notes.txt",
        "quarantine.parquet",
        "report.json",
        "train-00000.parquet",
        "validation-00000.parquet",
    ]
    assert not Path(f"{tmp_path}.partial").exists()


def test_written_records_are_read_back_before_the_commit(tmp_path: Path) -> None:
    writer = ShardWriter(str(tmp_path / "a"), shard_records=400)
    writer.add("train", make_records(RECORDS[:900]))
    writer.add("test", make_records(RECORDS[900:]))
    writer.close()
    found: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    for split, table in writer.read_written():
        found[split] += zip(table["svg"].to_pylist(), table["caption"].to_pylist(), strict=True)
    expected = [(record.svg, record.caption) for record in RECORDS]
    assert found == {"train": expected[:900], "test": expected[900:]}


def test_the_old_dataset_is_complete_until_the_commit(tmp_path: Path) -> None:
    old = write(tmp_path / "a", RECORDS[:20])
    writer = ShardWriter(str(tmp_path / "a"), shard_records=2)
    writer.add("train", make_records(RECORDS[100:200]))
    writer.close()  # and no commit: a crash here
    assert open_shards(old.folder) == old
    assert old.read("train", 0, 18) == TRAIN[:18]
    again = write(tmp_path / "a", RECORDS[:30])  # after the files that the crash left
    assert again.read("train", 0, 27) == TRAIN[:27]


def test_an_interrupted_commit_leaves_no_mixture(tmp_path: Path) -> None:
    write(tmp_path, RECORDS[:20])
    (tmp_path / "validation-00000.parquet").unlink()
    (tmp_path / "validation-00000.parquet" / "in the way").mkdir(parents=True)
    with pytest.raises(OSError):  # noqa: PT011  (the message is the file system's)
        write(tmp_path, RECORDS[:30])
    with pytest.raises(DataError, match="no prepared dataset"):
        open_shards(str(tmp_path))


def test_a_dataset_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    def refused(*words: str) -> None:
        with pytest.raises(DataError) as error:
            open_shards(str(tmp_path / "a"))
        assert all(word in str(error.value) for word in words), str(error.value)
        assert "\n" not in str(error.value)

    refused(str(tmp_path / "a"), "no prepared dataset", "prepare")
    (tmp_path / "a").write_text("")
    refused(str(tmp_path / "a"), "cannot read")
    (tmp_path / "a").unlink()
    (tmp_path / "a").mkdir()
    refused(str(tmp_path / "a"), "no prepared dataset", "prepare")
    (tmp_path / "a" / "dataset.json").write_text(json.dumps({"digest": "x"}))
    refused("no shard", "prepare")
    pq.write_table(pa.table({"id": ["a"], "Svg": ["b"]}), tmp_path / "a" / "train-00000.parquet")
    refused("train-00000.parquet", "'svg'", "id, Svg")
    (tmp_path / "a" / "train-00000.parquet").write_text("half a file")
    refused("train-00000.parquet", "not a readable shard")
    with pytest.raises(DataError, match="nosuch"):
        open_shards("nosuch://x/y")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        ShardWriter(str(tmp_path / "file" / "a"), shard_records=2)


def damage_count(file: Path) -> None:
    pq.write_table(pq.read_table(file).slice(1), file)


def damage_column(file: Path) -> None:
    pq.write_table(pq.read_table(file).drop_columns("caption"), file)


def test_opening_reads_no_shard(tmp_path: Path) -> None:
    shards = write(tmp_path, RECORDS, shard_records=100)
    for file in tmp_path.glob("*.parquet"):
        file.write_text("damaged")
    assert open_shards(str(tmp_path)) == shards


def test_a_manifest_without_shards_is_completed_from_the_files(tmp_path: Path) -> None:
    shards = write(tmp_path, RECORDS, shard_records=100)
    manifest = json.loads((tmp_path / "dataset.json").read_text())
    del manifest["shards"]
    (tmp_path / "dataset.json").write_text(json.dumps(manifest))
    assert open_shards(str(tmp_path)) == shards
    (tmp_path / "train-00003.parquet").write_text("damaged")
    with pytest.raises(DataError, match=r"^/\S*/train-00003\.parquet is not a readable shard"):
        open_shards(str(tmp_path))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_count, ["train-00001.parquet", "649 records", "650"]),
        (damage_column, ["train-00001.parquet", "no column 'caption'"]),
        (Path.unlink, ["train-00001.parquet", "cannot be read"]),
        (lambda file: file.write_bytes(file.read_bytes()[:-9]), ["cannot be read"]),
    ],
)
def test_a_shard_that_is_not_as_the_manifest_says_is_named_when_it_is_read(
    tmp_path: Path, damage: Callable[[Path], object], words: list[str]
) -> None:
    write(tmp_path, RECORDS)
    damage(tmp_path / "train-00001.parquet")
    shards = open_shards(str(tmp_path))
    assert shards.read("train", 0, 700) == TRAIN[:700]
    for read in (lambda: shards.read("train", 699, 701), lambda: [*shards.read_captions("train")]):
        with pytest.raises(DataError, match="prepare") as error:
            read()
        assert all(word in str(error.value) for word in words), str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"digest": ', '{"shards": {"train": {"train-00000.parquet": 2}}}',
     '{"shards": {"train": {"a.parquet": 2}, "validation": {}}}', '{"shards": 3}'],
)  # fmt: skip
def test_a_manifest_that_prepare_did_not_write_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(DataError, match=r"dataset\.json .*: run `python -m app prepare"):
        open_shards(str(tmp_path))


@pytest.mark.parametrize(
    "name",
    [
        "train-00000.parquet",
        "test-00003.parquet",
        "quarantine.parquet",
        "report.json",
        "dataset.json",
    ],
)
def test_a_file_of_others_is_never_replaced(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    if file.suffix == ".json":
        file.write_text('{"mine": 1}')
    else:
        pq.write_table(pa.table({"svg": ["<svg/>"], "caption": ["a square"]}), file)
    before = file.read_bytes()
    with pytest.raises(
        DataError, match=f"{name}, which `prepare` has not written .* another folder"
    ):
        ShardWriter(str(tmp_path), shard_records=2)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert file.read_bytes() == before


@pytest.mark.parametrize("lost", ["dataset.json", "train-00000.parquet"])
def test_a_dataset_that_is_damaged_or_not_whole_is_replaced(tmp_path: Path, lost: str) -> None:
    for _ in range(2):
        write_shards(tmp_path, train=[30] * 4)
        if lost == "dataset.json":  # a commit was interrupted
            (tmp_path / lost).unlink()
        else:
            (tmp_path / lost).write_bytes(b"PAR1")
    write_shards(tmp_path, train=[30] * 4)
    assert open_shards(str(tmp_path)).num_records("train") == 4
