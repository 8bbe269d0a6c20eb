"""Hashes and records on disk: the same rows in the same order as in memory."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.prepare.buckets import read_shuffled, write_buckets
from data_pipeline.prepare.clean import CleanRecord, hash_content, make_table
from data_pipeline.prepare.leakage import Leakage, measure_leakage
from data_pipeline.prepare.partitions import Partitions
from data_pipeline.prepare.splits import FACTS, decide_splits
from data_pipeline.shards import SPLITS, ShardRecord
from tests.corpus import make_records

Kept = list[tuple[str, ShardRecord]]


def make_record(id_: str, key: int, svg: str) -> CleanRecord:
    caption = f"caption of {svg[:20]}"
    content = hash_content(svg, caption)
    facts = (key, hash_content(svg), content, content, int(content % 4 == 0), False, False)
    return CleanRecord(id_, svg, caption, "made", *facts)


def sort_in_memory(records: list[CleanRecord]) -> Kept:
    """Return the first of equal records in the documented order, with its split."""
    first = {clean.content: clean for clean in reversed(records)}
    shuffled = sorted(
        first.values(),
        key=lambda clean: (clean.shuffle_key % 64, clean.shuffle_key, clean.content),
    )
    ids: set[str] = set()
    kept: Kept = []
    for clean in shuffled:
        record = ShardRecord(*clean[:4])
        if record.id in ids:
            record = record._replace(id=f"{record.id}#{clean.content:016x}")
        ids.add(clean.id)
        kept.append((SPLITS[clean.split], record))
    return kept


@pytest.mark.parametrize("record_bytes", [200, 6000])  # 6000: one bucket has 24 MB, and is divided
def test_records_are_sorted_on_disk_as_in_memory(tmp_path: Path, record_bytes: int) -> None:
    draw = random.Random(0)
    records = []
    for number in range(4000):
        # few buckets, many equal keys, and some equal records
        id_ = f"id {draw.randrange(50) if number % 2 else number}"
        key = hash_content(id_) // 64 * 64
        svg = f"{draw.randrange(3500):>{record_bytes}}"
        records.append(make_record(id_, key, svg))

    facts = Partitions(tmp_path / "facts", FACTS)
    batches = [make_table(records[start : start + 90]) for start in range(0, len(records), 90)]
    write_buckets(batches, tmp_path, facts)
    decision = decide_splits(facts, tmp_path)
    expected = sort_in_memory(records)
    kept: dict[str | None, list[ShardRecord]] = {}
    for split, rows in read_shuffled(tmp_path, decision):
        kept.setdefault(split, []).extend(ShardRecord(**row) for row in rows.to_pylist())
    assert kept == {
        split: [record for own, record in expected if own == split]
        for split in ("train", "validation")
    }
    assert sum(decision.num_kept.values()) == len(expected) < len(records)
    num_held_out = sum(split == "validation" for split, _ in expected)
    assert decision.num_kept["validation"] == num_held_out > 0


def test_rows_with_equal_hashes_are_together_in_their_order(tmp_path: Path) -> None:
    draw = random.Random(0)
    rows = [(draw.randrange(3000) << 40 | draw.randrange(3), number) for number in range(40_000)]
    partitions = Partitions(tmp_path / "rows", {"hash": "u8", "number": "u4"})
    for start in range(0, len(rows), 100):
        hashes, numbers = zip(*rows[start : start + 100], strict=True)
        partitions.add({"hash": hashes, "number": numbers, "other": numbers})
    copy = Partitions(tmp_path / "copy", {"number": "u4"})
    read = []
    for part in partitions.read():
        read.append(part)
        copy.add(part)
    assert len(partitions) == len(copy) == len(rows)
    places = {value: n for n, part in enumerate(read) for value in part["hash"].tolist()}
    for n, part in enumerate(read):
        assert {places[value] for value in part["hash"].tolist()} == {n}
        assert (np.diff(part["number"].astype(int)) > 0).all()
    assert sorted(row for part in read for row in part.tolist()) == sorted(rows)
    assert sorted(row for part in copy.read() for (row,) in part.tolist()) == [*range(40_000)]


def test_splits_decided_on_disk_are_those_of_a_plain_search(tmp_path: Path) -> None:
    draw = random.Random(0)
    facts = Partitions(tmp_path / "facts", FACTS)
    rows = []
    for _ in range(40_000):
        # Concepts from 900 on are held out. Drawings tie chains of ten: 896 to 905, and so on.
        named = draw.randrange(1000)
        shift = draw.choice([0, 0, 0, named % 10 != 5])
        drawn = hash_content(f"{named + shift} {draw.randrange(12)}")
        rows.append((drawn, named, draw.randrange(2)))
    table = [
        (row[0], hash_content(str(row)), row[1], number, row[1] >= 900, False, False)
        for number, row in enumerate(rows)
    ]
    columns = np.array(table, [*FACTS.items()])
    facts.add(columns)
    decision = decide_splits(facts, tmp_path)

    drawings_of: dict[int, set[int]] = {}
    concepts_of: dict[int, set[int]] = {}
    for drawn, named, _ in rows:
        drawings_of.setdefault(named, set()).add(drawn)
        concepts_of.setdefault(drawn, set()).add(named)
    trained = [named for named in drawings_of if named < 900]
    reached = set(trained)
    while trained:
        tied = {other for drawn in drawings_of[trained.pop()] for other in concepts_of[drawn]}
        trained += tied - reached
        reached |= tied

    first = {row: number for number, row in reversed([*enumerate(rows)])}
    kept = [number for number, row in enumerate(rows) if first[row] == number]
    assert [n for n in range(len(rows)) if not decision.is_duplicate(n)] == kept
    held = [rows[n][1] for n in kept if rows[n][1] >= 900]
    assert decision.num_moved == sum(named in reached for named in held) > 0
    assert decision.num_kept["validation"] == len(held) - decision.num_moved > 0
    in_training = [named < 900 or named in reached for _, named, _ in rows]
    assert decision.choose(columns).tolist() == [int(not trained) for trained in in_training]


def test_leakage_counted_on_disk_is_that_of_sets() -> None:
    draw = random.Random(0)
    splits = {
        split: [
            ShardRecord("", f"<{draw.randrange(top)}>", f"{draw.randrange(9000)}", "")
            for _ in range(n)
        ]
        for split, n, top in zip(
            SPLITS, (30_000, 9_000, 3_000), (20_000, 25_000, 50_000), strict=True
        )
    }
    drawings, captions, contents = (
        {split: {read(record) for record in records} for split, records in splits.items()}
        for read in (
            lambda record: record.svg,
            lambda record: record.caption,
            lambda record: (record.svg, record.caption),
        )
    )

    def count_shared(values: dict[str, set[Any]]) -> int:
        a, b, c = values.values()
        return len(a & b | a & c | b & c)

    tables = [
        (split, make_records(records[start : start + 256]))
        for split, records in splits.items()
        for start in range(0, len(records), 256)
    ]
    assert measure_leakage(tables) == Leakage(
        {split: len(values) for split, values in drawings.items()},
        {split: len(values) for split, values in contents.items()},
        count_shared(drawings),
        count_shared(contents),
        count_shared(captions),
    )
