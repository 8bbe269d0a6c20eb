"""Sources → dataset: every row is accounted for, concepts stay together, the order is reproducible."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.config import PrepareConfig
from data_pipeline.errors import DataError
from data_pipeline.icons import concept
from data_pipeline.prepare import PrepareReport, prepare
from data_pipeline.rows import split_of
from data_pipeline.shards import ShardRow, open_shards
from data_pipeline.svg import canonicalise


def drawing(number: int) -> str:
    return f'<svg viewBox="0 0 256 256"><path d="M0,0H{number % 250 + 1}V{number // 250 + 1}"/></svg>'


def source(path: Path, records: list[tuple[Any, Any, Any]]) -> str:
    lines = [json.dumps({"id": id_, "svg": svg, "caption": caption}) for id_, svg, caption in records]
    path.write_text("\n".join(lines))
    return str(path)


def run(out: Path, *sources: str, **changes: Any) -> PrepareReport:
    return prepare(sources, PrepareConfig(out=str(out), **changes), progress=False)


def rows_of(out: Path, split: str) -> list[ShardRow]:
    shards = open_shards(str(out))
    return shards.read(split, 0, shards.num_rows(split))


def test_every_row_is_accounted_for(tmp_path: Path) -> None:
    good = [(f"g{n}", drawing(n), f"caption {n}") for n in range(20)]
    bad = [
        ("mute", drawing(50), "  "),
        ("none", drawing(51), None),
        ("text", "hello", "x"),
        ("long", drawing(52).replace("</svg>", " " * 5000 + "</svg>"), "x"),
        ("path", drawing(53).replace("M0", "Q0"), "x"),
        ("number", 5, "x"),
    ]
    again = [("again", drawing(3).replace(",", "  "), "caption 3 ")]  # the same once canonical
    other = [("other", drawing(3), "another caption")]
    report = run(tmp_path / "out", source(tmp_path / "a.jsonl", good + bad + again + other), max_svg_bytes=2000)
    assert report.read == 28
    assert report.written == report.train + report.validation == 21
    assert report.duplicates == 1
    assert report.quarantined == {"bad_path": 1, "no_caption": 2, "not_xml": 2, "too_large": 1}
    assert report.sources == {"a.jsonl": 21}
    manifest = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert manifest["digest"] == report.digest == open_shards(str(tmp_path / "out")).digest
    assert manifest["quarantined"] == report.quarantined
    assert manifest["config"]["max_svg_bytes"] == 2000
    assert "out" not in manifest["config"]
    refused = {row["id"]: row for row in pq.read_table(tmp_path / "out" / "quarantine.parquet").to_pylist()}
    assert set(refused) == {"mute", "none", "text", "long", "path", "number"}
    assert refused["text"]["first_bytes"] == b"hello"
    assert refused["long"]["reason"] == "too_large"
    assert "2,000" in refused["long"]["detail"]
    written = {row.id: row for split in ("train", "validation") for row in rows_of(tmp_path / "out", split)}
    assert written["g7"] == ShardRow("g7", canonicalise(drawing(7)), "caption 7", "a.jsonl")


def test_the_order_is_shuffled_and_depends_on_seed_and_ids_alone(tmp_path: Path) -> None:
    records = [(f"r{n}", drawing(n), f"caption {n}") for n in range(300)]
    forward = source(tmp_path / "a.jsonl", records)
    (tmp_path / "b").mkdir()
    backward = source(tmp_path / "b" / "a.jsonl", records[::-1])
    first, second = run(tmp_path / "1", forward), run(tmp_path / "2", backward, shard_rows=50)
    assert first.digest == second.digest
    ids = [row.id for row in rows_of(tmp_path / "1", "train")]
    assert ids == [row.id for row in rows_of(tmp_path / "2", "train")]
    neighbours = sum(abs(int(a[1:]) - int(b[1:])) == 1 for a, b in pairwise(ids))
    assert neighbours < 10
    assert run(tmp_path / "3", forward, seed=1).digest != first.digest


def test_a_split_is_a_pure_function_of_the_concept() -> None:
    sides = {f"c{n}": split_of(f"c{n}", seed=0, validation_share=0.2) for n in range(2000)}
    assert 340 < sum(side == "validation" for side in sides.values()) < 460
    grown = {name: split_of(name, seed=0, validation_share=0.3) for name in sides}
    assert all(grown[name] == "validation" for name, side in sides.items() if side == "validation")
    assert {split_of(f"c{n}", seed=0, validation_share=0) for n in range(100)} == {"train"}
    code = (
        "from data_pipeline.rows import split_of;"
        "print([split_of(f'c{n}', seed=0, validation_share=0.2) for n in range(50)])"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}
    )
    assert other.stdout.strip() == str(list(sides.values())[:50])


def test_no_caption_and_no_concept_straddles_the_splits(tmp_path: Path) -> None:
    records = [(f"r{n}", drawing(n), f"Caption  {n % 40}" if n % 2 else f"caption {n % 40}") for n in range(400)]
    run(tmp_path / "out", source(tmp_path / "a.jsonl", records), validation_share=0.3)
    sides = {
        split: {row.caption.lower().split()[1] for row in rows_of(tmp_path / "out", split)}
        for split in ("train", "validation")
    }
    assert sides["train"].isdisjoint(sides["validation"])
    assert len(sides["train"] | sides["validation"]) == 40
    assert len(sides["validation"]) > 4


def test_icons_of_the_demo(tmp_path: Path) -> None:
    report = run(tmp_path / "out", "phosphor", max_rows=1200, validation_share=0.2)
    assert report.read == report.written == 1200
    sides = {
        split: {concept(row.id.removeprefix("phosphor:")) for row in rows_of(tmp_path / "out", split)}
        for split in ("train", "validation")
    }
    assert sides["train"].isdisjoint(sides["validation"])
    assert sides["validation"]


def test_sources_with_the_same_ids_keep_all_rows(tmp_path: Path) -> None:
    paths = [source(tmp_path / f"{name}.jsonl", [(n, drawing(n), f"{name} {n}") for n in range(5)]) for name in "ab"]
    report = run(tmp_path / "out", *paths, validation_share=0)
    assert report.sources == {"a.jsonl": 5, "b.jsonl": 5}
    assert len({row.id for row in rows_of(tmp_path / "out", "train")}) == 10


def test_a_failure_leaves_the_old_dataset_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    old = run(out, source(tmp_path / "a.jsonl", [(n, drawing(n), "x") for n in range(5)]), validation_share=0)
    broken = tmp_path / "b.jsonl"
    source(broken, [(n, drawing(n), "y") for n in range(5)])
    broken.write_text(broken.read_text() + '\n{"id": ')
    with pytest.raises(DataError, match=r"b\.jsonl, line 6"):
        run(out, str(broken))
    with pytest.raises(DataError, match=r"no row to train on.*5 read.*not_xml 5"):
        run(out, source(tmp_path / "c.jsonl", [(n, "hello", "y") for n in range(5)]))
    with pytest.raises(DataError, match="does not exist"):
        run(out, str(tmp_path / "a.jsonl"), str(tmp_path / "nowhere"))
    assert open_shards(str(out)).digest == old.digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl", "c.jsonl", "out"]


def test_lone_surrogates_do_not_stop_the_corpus(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = json.dumps({"id": "a\ud800", "svg": drawing(1), "caption": "x\udfff"})
    bad = json.dumps({"id": "b", "svg": "<svg>\ud800</svg>", "caption": "x"})
    path.write_text(f"{good}\n{bad}\n")
    report = run(tmp_path / "out", str(path), validation_share=0)
    assert report.quarantined == {"not_xml": 1}
    assert [row.caption for row in rows_of(tmp_path / "out", "train")] == ["x?"]


def test_bytes_and_text_of_one_drawing_are_duplicates(tmp_path: Path) -> None:
    for name, svg in {"a": drawing(1), "b": drawing(1).encode("utf-16")}.items():
        pq.write_table(pa.table({"id": [name], "svg": [svg], "caption": ["x"]}), tmp_path / f"{name}.parquet")
    report = run(tmp_path / "out", *(str(tmp_path / f"{name}.parquet") for name in "ab"), validation_share=0)
    assert (report.written, report.duplicates) == (1, 1)
