"""Three splits: records that the user gives stay, and no drawing or concept is in two of them."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.__main__ import main
from data_pipeline.config import PrepareConfig
from data_pipeline.errors import DataError
from data_pipeline.prepare.dataset import PrepareReport, prepare_dataset
from data_pipeline.prepare.partitions import Partitions
from data_pipeline.prepare.splits import FACTS, SplitDecision, choose_split, decide_splits
from data_pipeline.shards import QUARANTINE, SPLITS, ShardRecord, ShardWriter, open_shards
from data_pipeline.sources.parquet import pq
from data_pipeline.sources.read import read_source
from data_pipeline.sources.split_names import find_layout
from tests.corpus import make_records

Row = tuple[int, int, int, int, bool]  # drawing, concept, caption, split, given


def draw(number: int) -> str:
    return f'<svg viewBox="0 0 256 256"><path d="M0,0H{number + 1}V9"/></svg>'


def write_json(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def make_rows(numbers: range, **more: Any) -> list[dict[str, Any]]:
    return [{"id": f"r{n}", "svg": draw(n), "caption": f"caption {n}", **more} for n in numbers]


def run(out: Path, *sources: str, **changes: Any) -> PrepareReport:
    return prepare_dataset(sources, PrepareConfig(out=str(out), **changes), progress=False)


def read_ids(out: Path) -> dict[str, set[str]]:
    shards = open_shards(str(out))
    return {
        split: {record.id for record in shards.read(split, 0, shards.num_records(split))}
        for split in SPLITS
    }


def decide(columns: Any, **changes: Any) -> SplitDecision:
    folder = Path("unused")  # a few rows stay in memory
    facts = Partitions(folder, FACTS)
    facts.add(columns)
    return decide_splits(facts, folder, **changes)


def make_facts(rows: list[Row]) -> Any:
    """Return the rows as an array with the columns FACTS."""
    table = [
        (drawing, drawing * 100 + concept * 10 + caption, concept, n, split, is_given, False)
        for n, (drawing, concept, caption, split, is_given) in enumerate(rows)
    ]
    return np.array(table, [*FACTS.items()])


def decide_slowly(rows: list[Row], with_share: set[str]) -> list[str]:
    """Return the split of each row, or `duplicate` or `excluded`, by plain loops."""
    own = [row[3] if row[4] else 0 for row in rows]
    found = [""] * len(rows)
    for n, row in enumerate(rows):
        equal = [m for m, other in enumerate(rows) if other[:3] == row[:3]]
        if min(equal, key=lambda m: (-own[m], m)) != n:
            found[n] = "duplicate"
        elif any(own[m] > own[n] and is_tied(row, other) for m, other in enumerate(rows)):
            found[n] = "excluded"
    filled = {split for split in own if SPLITS[split] not in with_share}
    free = [n for n in range(len(rows)) if not found[n] and not own[n]]
    first = {rows[n][1]: 0 if rows[n][3] in filled else rows[n][3] for n in free}
    split_of = move_tied([rows[n] for n in free], first)
    return [reason or SPLITS[own[n] or split_of[rows[n][1]]] for n, reason in enumerate(found)]


def is_tied(row: Row, other: Row) -> bool:
    return row[0] == other[0] or row[1] == other[1]


def move_tied(rows: list[Row], split_of: dict[int, int]) -> dict[int, int]:
    """Move concepts that share a drawing but no split to training, until there are none."""
    for _ in rows:
        for a, b in itertools.product(rows, rows):
            if a[0] == b[0] and split_of[a[1]] != split_of[b[1]]:
                split_of[a[1]] = split_of[b[1]] = 0
    return split_of


# The concept of a row that is not given decides its split: 0–3 training, 4–5 validation, 6–7 test.
_CONCEPT_SPLITS = (0, 0, 0, 0, 1, 1, 2, 2)
_ROWS = st.lists(
    st.tuples(
        st.integers(0, 9), st.integers(0, 7), st.integers(0, 1), st.sampled_from([0, 0, 0, 1, 2])
    ).map(lambda row: (*row[:3], row[3] or _CONCEPT_SPLITS[row[1]], row[3] > 0)),
    max_size=25,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(_ROWS, st.sets(st.sampled_from(SPLITS[1:])))
def test_the_decision_is_that_of_plain_loops(rows: list[Row], with_share: set[str]) -> None:
    facts = make_facts(rows)
    decision = decide(facts, with_share=with_share)
    expected = decide_slowly(rows, with_share)
    names = [*SPLITS, "excluded"]
    found = [
        "duplicate" if decision.is_duplicate(n) else names[number]
        for n, number in enumerate(decision.choose(facts))
    ]
    assert found == expected
    assert decision.num_kept == {split: expected.count(split) for split in SPLITS}
    assert decision.num_duplicates == expected.count("duplicate")
    assert decision.num_excluded == expected.count("excluded")

    # the invariants, independent of the rules
    kept = [(row, split) for row, split in zip(rows, found, strict=True) if split in SPLITS]
    for column in (0, 1):
        splits_of: dict[int, set[str]] = {}
        for row, split in kept:
            splits_of.setdefault(row[column], set()).add(split)
        assert all(len(splits) == 1 for splits in splits_of.values())
    tested = {row[:3] for row in rows if row[3:] == (2, True)}
    assert {row[:3] for row, split in kept if split == "test" and row[4]} == tested


def test_a_share_for_the_test_leaves_the_validation_split_as_it_was() -> None:
    shares: dict[str, Any] = {"seed": 0, "validation_share": 0.2}
    names = [f"c{n}" for n in range(2000)]
    two = [choose_split(name, **shares) for name in names]
    three = [choose_split(name, **shares, test_share=0.2) for name in names]
    more = [choose_split(name, **shares, test_share=0.3) for name in names]
    assert 340 < three.count("test") < 460
    assert [split == "validation" for split in two] == [split == "validation" for split in three]
    assert all(b == "test" for a, b in zip(three, more, strict=True) if a == "test")


def test_new_shards_have_a_test_split_and_older_digests_stay(tmp_path: Path) -> None:
    report = run(tmp_path / "new", "scenes:400")
    assert report.num_test > 5
    assert report.num_given == {"validation": 0, "test": 0}
    assert open_shards(str(tmp_path / "new")).num_records("test") == report.num_test
    # the digest that the version without test splits wrote for the same sources
    older = run(tmp_path / "older", "scenes:400", test_share=0)
    assert older.digest == "06c0403f6eca3d171c0b01ddd49f7c065296f096d8367b4196748a85fd353bb7"
    assert older.num_validation == report.num_validation


def test_shards_written_before_test_splits_have_an_empty_one(tmp_path: Path) -> None:
    writer = ShardWriter(str(tmp_path), shard_records=10)
    writer.add("train", make_records([ShardRecord("a", "<svg/>", "x", "s")]))
    writer.commit({"digest": writer.close(), "duplicates": 0, "quarantined": {}}, {})
    manifest = json.loads((tmp_path / "dataset.json").read_text())
    del manifest["shards"]["test"]
    (tmp_path / "dataset.json").write_text(json.dumps(manifest))
    shards = open_shards(str(tmp_path))
    assert (shards.num_records("test"), shards.read("test", 0, 0)) == (0, [])


def test_the_users_files_keep_all_their_records_and_training_loses_the_same_ones(
    tmp_path: Path,
) -> None:
    train = write_json(tmp_path / "train.jsonl", make_rows(range(100)))
    own = [
        {"id": "v0", "svg": draw(200), "caption": "new"},
        {"id": "v1", "svg": draw(3), "caption": "another caption of a drawing of training"},
        {"id": "v2", "svg": draw(201), "caption": "CAPTION 5"},
    ]
    tested = [
        {"id": "t0", "svg": draw(7), "caption": "caption 7"},  # a record of training
        {"id": "t1", "svg": draw(200), "caption": "a drawing of the validation file"},
        {"id": "t2", "svg": draw(202), "caption": "alone"},
    ]
    validation = [write_json(tmp_path / "v.jsonl", own)]
    test = [write_json(tmp_path / f"{n}.jsonl", tested[n * 2 : n * 2 + 2]) for n in (0, 1)]
    report = run(tmp_path / "out", train, validation=validation, test=test)
    ids = read_ids(tmp_path / "out")
    assert ids["test"] == {"t0", "t1", "t2"}
    assert ids["validation"] == {"v1", "v2"}
    assert ids["train"] == {f"r{n}" for n in range(100)} - {"r3", "r5", "r7"}
    assert report.num_given == {"validation": 2, "test": 3}
    assert (report.num_duplicates, report.quarantined) == (1, {"also_held_out": 3})
    assert report.num_read == 106 == report.num_written + 1 + 3
    rows = pq.read_table(tmp_path / "out" / QUARANTINE).to_pylist()
    assert {row["id"] for row in rows} == {"r3", "r5", "v0"}
    assert {row["reason"] for row in rows} == {"also_held_out"}
    assert all(row["first_bytes"].startswith(b"<svg") for row in rows)


def test_a_share_beside_a_users_file_is_taken_only_if_it_is_given(tmp_path: Path) -> None:
    train = write_json(tmp_path / "train.jsonl", make_rows(range(200)))
    own = write_json(tmp_path / "v.jsonl", make_rows(range(300, 310)))
    alone = run(tmp_path / "1", train, validation=[own])
    assert (alone.num_validation, alone.num_given["validation"]) == (10, 10)
    assert alone.num_test > 0  # nothing is given for the test
    more = run(tmp_path / "2", train, validation=[own], validation_share=0.2)
    assert more.num_given["validation"] == 10
    assert 20 < more.num_validation - 10 < 60


@pytest.mark.parametrize("column", ["split", "Split", "fold"])
def test_a_column_gives_the_split(tmp_path: Path, column: str) -> None:
    rows = make_rows(range(40), **{column: "train"})
    rows += make_rows(range(40, 50), **{column: "Val"}) + make_rows(range(50, 53), **{column: None})
    rows += make_rows(range(60, 70), **{column: "test"})
    changes = {"split_column": column} if column == "fold" else {}
    run(tmp_path / "out", write_json(tmp_path / "a.jsonl", rows), **changes)
    ids = read_ids(tmp_path / "out")
    assert ids["validation"] == {f"r{n}" for n in range(40, 50)}
    assert ids["test"] == {f"r{n}" for n in range(60, 70)}
    assert len(ids["train"]) == 43


def test_an_empty_name_of_the_column_splits_by_concept(tmp_path: Path) -> None:
    rows = make_rows(range(100), split="train") + make_rows(range(100, 200), split="test")
    file = write_json(tmp_path / "a.jsonl", rows)
    report = run(tmp_path / "out", file, split_column="")
    assert report.num_given == {"validation": 0, "test": 0}
    assert 0 < report.num_test < 30


def test_a_column_that_holds_no_splits_is_not_one(tmp_path: Path) -> None:
    rows = make_rows(range(100), split="left") + make_rows(range(100, 200), split="test")
    report = run(tmp_path / "out", write_json(tmp_path / "a.jsonl", rows))
    assert report.num_given["test"] == 0


@pytest.mark.parametrize(("num_train", "named"), [(1, "split"), (150, None)])
def test_an_unknown_split_among_known_ones_is_named(
    tmp_path: Path, num_train: int, named: str | None
) -> None:
    rows = make_rows(range(num_train), split="train") + make_rows(range(200, 201), split="holdout")
    with pytest.raises(DataError, match=r"'holdout'.*--split-column ''"):
        run(tmp_path / "out", write_json(tmp_path / "a.jsonl", rows), split_column=named)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("names", "are_drawings", "expected"),
    [
        (["train/0.parquet", "validation/0.parquet"], False, ["train", "validation"]),
        (["a/b/train/0.parquet", "a/b/test/0.parquet"], False, ["train", "test"]),
        (["train-00000-of-00002.parquet", "dev.parquet"], False, ["train", "validation"]),
        (["train.parquet", "extra.parquet"], False, None),
        (["valid.parquet", "test.parquet"], False, None),
        (["train.parquet"], False, None),
        (["train/a.svg", "test/deep/b.svg"], True, ["train", "test"]),
        (["train/a.svg", "test/b.svg", "c.svg"], True, None),
        (["train-station/a.svg", "test-tube/b.svg"], True, None),
        (["train.svg", "test.svg"], True, None),
    ],
)
def test_a_layout_of_a_hub_gives_the_split(
    names: list[str], are_drawings: bool, expected: list[str] | None
) -> None:
    found = find_layout(names, are_drawings=are_drawings)
    assert found == ({} if expected is None else dict(zip(names, expected, strict=True)))


def test_folders_of_drawings_and_their_tables_give_the_split(tmp_path: Path) -> None:
    for n, folder in enumerate(["train", "train", "val", "test"]):
        file = tmp_path / "hub" / folder / f"{n}.svg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(draw(n))
        file.with_suffix(".txt").write_text(f"caption {n}")
    config = PrepareConfig(out="unused")
    records = read_source(str(tmp_path / "hub"), config)
    assert [(record.id, record.split) for record in records] == [
        ("test/3", "test"), ("train/0", "train"), ("train/1", "train"), ("val/2", "validation"),
    ]  # fmt: skip

    for n in range(3):
        (tmp_path / f"{n}.svg").write_text(draw(n))
    table = "file_name,text,split\n0.svg,a,train\n1.svg,b,test\n2.svg,c,\n"
    (tmp_path / "metadata.csv").write_text(table)
    (tmp_path / "hub" / "train" / "0.svg").rename(tmp_path / "3.svg")
    records = read_source(str(tmp_path), config)
    splits = {record.id: record.split for record in records}
    assert [splits[name] for name in "012"] == ["train", "test", ""]


def test_a_prepared_dataset_keeps_its_splits_as_a_source(tmp_path: Path) -> None:
    first = run(tmp_path / "1", "scenes:400")
    again = run(tmp_path / "2", str(tmp_path / "1"), seed=7)
    assert read_ids(tmp_path / "2") == read_ids(tmp_path / "1")
    assert again.num_given == {"validation": first.num_validation, "test": first.num_test}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--validation-share", "0.6", "--test-share", "0.5"], ["1.1", "--test-share"]),
        (["--test", "ABSENT"], ["ABSENT", "does not exist"]),
        (["--test", "MUTE"], ["--test", "usable"]),
        (["--test", "SAME", "--validation", "SAME"], ["--validation", "usable"]),
        (["--test", "SAME", "--test", "REST"], ["no record to train on", "also_held_out"]),
    ],
)
def test_splits_that_cannot_be_made_are_named(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: list[str],
) -> None:
    rows = make_rows(range(20))
    files = {
        "ALL": write_json(tmp_path / "all.jsonl", rows),
        "SAME": write_json(tmp_path / "same.jsonl", rows[:10]),
        "REST": write_json(
            tmp_path / "rest.jsonl",
            [{**row, "caption": f"{row['caption']}!"} for row in rows[10:]],
        ),
        "MUTE": write_json(
            tmp_path / "mute.jsonl",
            [{"svg": "no drawing", "caption": "a"}, {"svg": "none", "caption": "b"}],
        ),
    }
    given = [files.get(argument, argument) for argument in arguments]
    code = main(["prepare", files["ALL"], "--out", str(tmp_path / "out"), *given])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2
    assert all(word in error for word in words), error
    assert not (tmp_path / "out").exists()
