"""Sources → dataset: all records are counted, concepts stay together, the order is reproducible."""

import dataclasses
import itertools
import json
import multiprocessing
import os
import random
import resource
import select
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.__main__ import main
from data_pipeline.config import PrepareConfig
from data_pipeline.errors import DataError
from data_pipeline.prepare.clean import clean_records
from data_pipeline.prepare.dataset import PrepareReport, prepare_dataset
from data_pipeline.prepare.leakage import Leakage, contains_caption, measure_leakage
from data_pipeline.prepare.mixture import parse_weight
from data_pipeline.prepare.partitions import Partitions
from data_pipeline.prepare.splits import FACTS, choose_split, decide_splits
from data_pipeline.shards import SPLITS, ShardRecord, open_shards
from data_pipeline.sources.phosphor import derive_concept
from data_pipeline.sources.record import Record
from data_pipeline.svg import canonicalise
from tests.corpus import make_records


def drawing(number: int) -> str:
    return (
        f'<svg viewBox="0 0 256 256"><path d="M0,0H{number % 250 + 1}V{number // 250 + 1}"/></svg>'
    )


def source(path: Path, rows: list[tuple[Any, Any, Any]]) -> str:
    lines = [json.dumps({"id": id_, "svg": svg, "caption": caption}) for id_, svg, caption in rows]
    path.write_text("\n".join(lines))
    return str(path)


def run(out: Path, *sources: str, **changes: Any) -> PrepareReport:
    return prepare_dataset(sources, PrepareConfig(out=str(out), **changes), progress=False)


def records_of(out: Path, split: str) -> list[ShardRecord]:
    shards = open_shards(str(out))
    return shards.read(split, 0, shards.num_records(split))


def test_every_record_is_accounted_for(tmp_path: Path) -> None:
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
    report = run(
        tmp_path / "out",
        source(tmp_path / "a.jsonl", good + bad + again + other),
        max_svg_bytes=2000,
    )
    assert report.num_read == 28
    num_in_splits = report.num_train + report.num_validation + report.num_test
    assert report.num_written == num_in_splits == 21
    assert report.num_duplicates == 1
    assert report.quarantined == {"empty": 1, "no_caption": 2, "not_xml": 2, "too_large": 1}
    assert report.sources == {"a.jsonl": 21}
    manifest = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert manifest["digest"] == report.digest == open_shards(str(tmp_path / "out")).digest
    assert manifest["quarantined"] == report.quarantined
    assert manifest["config"]["max_svg_bytes"] == 2000
    assert "out" not in manifest["config"]
    counts = dataclasses.asdict(report)
    assert counts.pop("seconds") > 0  # not in the file, which is the same for the same sources
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == counts
    refused = {
        row["id"]: row for row in pq.read_table(tmp_path / "out" / "quarantine.parquet").to_pylist()
    }
    assert set(refused) == {"mute", "none", "text", "long", "path", "number"}
    assert refused["text"]["first_bytes"] == b"hello"
    assert refused["long"]["reason"] == "too_large"
    assert "2,000" in refused["long"]["detail"]
    written = {
        record.id: record for split in SPLITS for record in records_of(tmp_path / "out", split)
    }
    assert written["g7"] == ShardRecord("g7", canonicalise(drawing(7)), "caption 7", "a.jsonl")


def test_the_order_is_shuffled_and_depends_on_seed_and_ids_alone(tmp_path: Path) -> None:
    rows = [(f"r{n}", drawing(n), f"caption {n}") for n in range(300)]
    forward = source(tmp_path / "a.jsonl", rows)
    (tmp_path / "b").mkdir()
    backward = source(tmp_path / "b" / "a.jsonl", rows[::-1])
    first, second = run(tmp_path / "1", forward), run(tmp_path / "2", backward, shard_records=50)
    assert first.digest == second.digest
    ids = [record.id for record in records_of(tmp_path / "1", "train")]
    assert ids == [record.id for record in records_of(tmp_path / "2", "train")]
    neighbours = sum(abs(int(a[1:]) - int(b[1:])) == 1 for a, b in pairwise(ids))
    assert neighbours < 10
    assert run(tmp_path / "3", forward, seed=1).digest != first.digest


def test_a_split_is_a_pure_function_of_the_concept() -> None:
    sides = {f"c{n}": choose_split(f"c{n}", seed=0, validation_share=0.2) for n in range(2000)}
    assert 340 < sum(side == "validation" for side in sides.values()) < 460
    grown = {name: choose_split(name, seed=0, validation_share=0.3) for name in sides}
    assert all(grown[name] == "validation" for name, side in sides.items() if side == "validation")
    assert {choose_split(f"c{n}", seed=0, validation_share=0) for n in range(100)} == {"train"}
    code = (
        "from data_pipeline.prepare.splits import choose_split;"
        "print([choose_split(f'c{n}', seed=0, validation_share=0.2) for n in range(50)])"
    )
    other = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "7"},
    )
    assert other.stdout.strip() == str(list(sides.values())[:50])


def test_no_caption_and_no_concept_straddles_the_splits(tmp_path: Path) -> None:
    rows = [
        (f"r{n}", drawing(n), f"Caption  {n % 40}" if n % 2 else f"caption {n % 40}")
        for n in range(400)
    ]
    run(tmp_path / "out", source(tmp_path / "a.jsonl", rows), validation_share=0.3)
    sides = {
        split: {record.caption.lower().split()[1] for record in records_of(tmp_path / "out", split)}
        for split in SPLITS
    }
    assert sides["train"].isdisjoint(sides["validation"])
    assert sides["test"].isdisjoint(sides["train"] | sides["validation"])
    assert len(sides["train"] | sides["validation"] | sides["test"]) == 40
    assert len(sides["validation"]) > 4


def test_icons_of_the_demo(tmp_path: Path) -> None:
    report = run(tmp_path / "out", "phosphor", max_records=1200, validation_share=0.2)
    assert report.num_read == report.num_written == 1200
    sides = {
        split: {
            derive_concept(record.id.removeprefix("phosphor:"))
            for record in records_of(tmp_path / "out", split)
        }
        for split in SPLITS
    }
    assert sides["train"].isdisjoint(sides["validation"])
    assert sides["validation"]


def test_sources_with_the_same_ids_keep_all_records_under_ids_of_their_own(tmp_path: Path) -> None:
    a, b = (
        source(tmp_path / f"{name}.jsonl", [(n, drawing(n), f"{name} {n}") for n in range(5)])
        for name in "ab"
    )
    report = run(tmp_path / "1", a, b, validation_share=0)
    assert report.sources == {"a.jsonl": 5, "b.jsonl": 5}
    ids = [record.id for record in records_of(tmp_path / "1", "train")]
    assert len(set(ids)) == 10
    assert {id_.partition("#")[0] for id_ in ids} == set("01234")
    assert run(tmp_path / "2", b, a, validation_share=0).digest == report.digest
    again = run(tmp_path / "3", str(tmp_path / "1"), a, validation_share=0)
    assert (again.num_written, again.num_duplicates) == (10, 5)


def test_a_drawing_ties_the_concepts_that_use_it(tmp_path: Path) -> None:
    sides: dict[str, list[str]] = {"train": [], "validation": []}
    for n in range(100):
        name = f"caption {n}"
        sides[choose_split(name, seed=0, validation_share=0.5)].append(name)
    trained, (tied, further, alone) = sides["train"][0], sides["validation"][:3]
    rows = [
        ("a", drawing(0), trained),
        ("b", drawing(0), tied),
        ("c", drawing(1), tied),
        ("d", drawing(1).replace("M0,0", "M0 0"), further),
        ("e", drawing(2), further),
        ("f", drawing(3), alone),
    ]
    shares = {"validation_share": 0.5, "test_share": 0}
    report = run(tmp_path / "out", source(tmp_path / "a.jsonl", rows), **shares)
    assert {record.id for record in records_of(tmp_path / "out", "train")} == set("abcde")
    assert {record.id for record in records_of(tmp_path / "out", "validation")} == {"f"}
    assert (report.num_written, report.num_moved_to_train) == (6, 4)
    assert (report.leakage.num_drawings["train"], report.leakage.num_records["train"]) == (3, 5)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 2)), max_size=25))
def test_splits_against_connected_components(examples: list[tuple[int, int, int]]) -> None:
    folder = Path("unused")  # a few rows stay in memory
    facts = Partitions(folder, FACTS)
    rows = [
        (drawn, drawn * 100 + named * 10 + caption, named, n, named >= 5, False, caption == 1)
        for n, (drawn, named, caption) in enumerate(examples)
    ]
    columns = np.array(rows, [*FACTS.items()])
    facts.add(columns)
    decision = decide_splits(facts, folder)
    kept = [n for n, example in enumerate(examples) if example not in examples[:n]]
    assert [n for n in range(len(examples)) if not decision.is_duplicate(n)] == kept
    assert sum(decision.num_kept.values()) == len(kept)
    assert decision.num_leaked == sum(examples[n][2] == 1 for n in kept)
    component = list(range(10))  # of each concept
    for _ in component:
        for a, b in itertools.product(kept, kept):
            if examples[a][0] == examples[b][0]:
                one, other = (component[examples[n][1]] for n in (a, b))
                component = [min(one, other) if c in (one, other) else c for c in component]
    trained = {component[examples[n][1]] for n in kept if examples[n][1] < 5}
    held = [n for n in kept if component[examples[n][1]] not in trained]
    sides = decision.choose(columns)
    assert [n for n in kept if sides[n] == SPLITS.index("validation")] == held
    assert decision.num_kept["validation"] == len(held)
    assert decision.num_moved == sum(examples[n][1] >= 5 for n in kept) - len(held)


def test_leakage_is_measured_by_what_is_there() -> None:
    train = [ShardRecord("a", "<svg>1</svg>", "x", ""), ShardRecord("b", "<svg>2</svg>", "y", "")]
    validation = [
        ShardRecord("c", "<svg>1</svg>", "x", ""), ShardRecord("d", "<svg>2</svg>", "z", ""),
        ShardRecord("e", "<svg>3</svg>", "y", ""), ShardRecord("f", "<svg>3</svg>", "v", ""),
    ]  # fmt: skip
    records = {"train": train, "validation": validation, "test": train[:1]}
    tables = [(split, make_records(rows)) for split, rows in records.items()]
    assert measure_leakage(tables) == Leakage(
        num_drawings={"train": 2, "validation": 3, "test": 1},
        num_records={"train": 2, "validation": 4, "test": 1},
        num_shared_drawings=2,
        num_shared_records=1,
        num_shared_captions=2,
    )
    assert measure_leakage(tables[:1]).num_shared_drawings == 0


@pytest.mark.parametrize(
    ("inside", "caption", "leaks"),
    [
        ("<text>Stop, here!</text>", "stop  here", True),
        ("<text>stop</text>", "Stop.", True),
        ("<text>nonstop</text>", "stop", False),
        ("<text>here stop</text>", "stop here", False),
        ("<text>A &amp; B co</text>", "a & b co", True),
        ('<g id="red-cat"/>', "red cat", True),
        ('<circle fill="red"/>', "red", False),
        ('<circle fill="red"/>', "circle", False),
        ('<path fill="red"/>', "path fill", False),
        ("<text>a <tspan>cat</tspan></text>", "a cat", True),
        ('<path d="m1 2"/>', "m1", False),
        ("<text>a cat</text>", "a cat on a mat", False),
        ("<text>a cat</text>", "!", False),
    ],
)
def test_a_drawing_that_contains_its_caption(inside: str, caption: str, leaks: bool) -> None:
    assert contains_caption(f"<svg>{inside}</svg>", caption) == leaks


def test_a_corpus_that_leaks_its_captions_is_refused(tmp_path: Path) -> None:
    rows = [(n, drawing(n), f"caption {n}") for n in range(18)]
    titled = [
        (n, drawing(n).replace("<path", f"<title>caption {n}</title><path"), f"caption {n}")
        for n in range(18, 40)
    ]
    lettered = [
        (
            n,
            drawing(n).replace("<path", f'<text x="9" y="9">Caption {n}</text><path'),
            f"caption {n}",
        )
        for n in range(40, 50)
    ]
    path = source(tmp_path / "a.jsonl", rows + titled + lettered)
    with pytest.raises(
        DataError,
        match=r"10 of 50 drawings contain their own caption.*20\.0%.*5\.0%.*--max-leaked-share",
    ):
        run(tmp_path / "out", path)
    assert not (tmp_path / "out").exists()
    assert run(tmp_path / "out", path, max_leaked_share=0.2).num_leaked == 10


def test_weights_mix_sources_in_proportion(tmp_path: Path) -> None:
    a, b, c = (
        source(
            tmp_path / f"{name}.jsonl",
            [(f"{name}{n}", drawing(n), f"{name} {n}") for n in range(size)],
        )
        for name, size in (("a", 100), ("b", 300), ("c", 60))
    )
    mixed = {f"{a}@2": "a.jsonl", f"{b}@3": "b.jsonl", c: "c.jsonl"}
    report = run(tmp_path / "1", *mixed, validation_share=0)
    assert report.sources == {"a.jsonl": 100, "b.jsonl": 150, "c.jsonl": 50}
    assert (report.num_read, report.num_unsampled) == (300, 160)
    assert run(tmp_path / "2", *reversed(mixed), validation_share=0).digest == report.digest
    assert run(tmp_path / "3", *mixed, validation_share=0, seed=1).sources == report.sources
    ids = [
        {record.id for record in records_of(tmp_path / name, "train") if record.id[0] == "b"}
        for name in "13"
    ]
    assert ids[0] != ids[1]
    assert (
        30 < sum(int(id_[1:]) < 100 for id_ in ids[0]) < 70
    )  # not the first records of the source
    assert run(tmp_path / "4", a, b, c, validation_share=0).sources == {
        "a.jsonl": 100,
        "b.jsonl": 300,
        "c.jsonl": 60,
    }
    assert run(tmp_path / "5", f"{a}@1", f"{b}@0.5", max_records=40).sources == {
        "a.jsonl": 40,
        "b.jsonl": 20,
    }
    with pytest.raises(DataError, match="weight 0"):
        run(tmp_path / "6", f"{a}@0")


def test_each_caption_is_a_record_and_counts_as_one(tmp_path: Path) -> None:
    rows = [
        {
            "id": n,
            "svg": drawing(n) if n else "broken",
            "caption": f"caption {n}",
            "description": f"shape {n}",
            "detail": f"caption {n}" if n % 2 else "",
        }
        for n in range(40)
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in [*rows, {"id": 40, "svg": drawing(40)}]))
    report = run(tmp_path / "out", str(path), captions="all", validation_share=0.3)
    assert report.quarantined == {"no_caption": 1, "not_xml": 2}
    assert report.num_duplicates == 20
    assert report.num_written == 2 * 39
    assert report.num_read == report.num_written + report.num_duplicates + sum(
        report.quarantined.values()
    )
    drawn = [{record.svg for record in records_of(tmp_path / "out", split)} for split in SPLITS]
    assert drawn[0].isdisjoint(drawn[1])
    assert 5 < len(drawn[1]) < 20


def test_the_number_of_processes_changes_nothing(tmp_path: Path) -> None:
    rows = [(n, drawing(n) if n % 7 else f"broken {n}", f"caption {n}") for n in range(2500)]
    path = source(tmp_path / "a.jsonl", rows)
    one, three = (run(tmp_path / str(n), path, processes=n) for n in (1, 3))
    assert dataclasses.replace(one, seconds=0) == dataclasses.replace(three, seconds=0)
    tables = [pq.read_table(tmp_path / name / "quarantine.parquet") for name in "13"]
    assert tables[0] == tables[1]
    assert tables[0]["id"].to_pylist() == [str(n) for n in range(2500) if n % 7 == 0]


def test_a_killed_process_is_named_with_the_fix() -> None:
    def records() -> Iterator[Record]:
        for n in range(3000):
            if n == 2000:
                for process in multiprocessing.active_children():
                    process.kill()
            yield Record(str(n), drawing(n), f"caption {n}", "made", f"caption {n}")

    with pytest.raises(DataError, match=r"one of 2 processes.*--processes"):
        list(clean_records(records(), PrepareConfig(out="unused", processes=2)))


def test_processes_end_with_a_killed_parent() -> None:
    code = (
        "import itertools, multiprocessing\n"
        "from data_pipeline.prepare.clean import clean_records\n"
        "from data_pipeline.config import PrepareConfig\n"
        "from data_pipeline.sources.record import Record\n"
        "records = itertools.repeat(Record('a', '<svg/>', 'x', 'made', 'x'))\n"
        "for _ in clean_records(records, PrepareConfig(out='unused', processes=2)):\n"
        "    print(*(process.pid for process in multiprocessing.active_children()), flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        lines = iter(parent.stdout.readline, "")
        children = [
            os.pidfd_open(int(pid)) for pid in next(line for line in lines if line.strip()).split()
        ]
        parent.kill()
    assert len(children) == 2
    for child in children:
        assert select.select([child], [], [], 20)[0], "still there"
        os.close(child)


def test_the_command_line_writes_and_prints_the_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(n, drawing(n), f"caption {n}") for n in range(30)]
    path = source(
        tmp_path / "a.jsonl", [*rows, (30, drawing(3), "caption 3"), (31, "no drawing", "x")]
    )
    counts = tmp_path / "counts.json"
    assert main(["prepare", path, "--out", str(tmp_path / "out"), "--json", str(counts)]) == 0
    written = json.loads(counts.read_text())
    assert {
        key: written[key] for key in ("num_read", "num_written", "num_duplicates", "quarantined")
    } == {
        "num_read": 32,
        "num_written": 30,
        "num_duplicates": 1,
        "quarantined": {"not_xml": 1},
    }
    assert (
        main(
            [
                "prepare",
                path,
                "--out",
                str(tmp_path / "b"),
                "--json",
                str(tmp_path / "no" / "x.json"),
            ]
        )
        == 2
    )
    assert not (tmp_path / "b").exists()
    assert (
        "32 records read = 30 written + 1 duplicates + 1 in quarantine (not_xml 1)"
        in capsys.readouterr().out
    )


def test_a_failure_leaves_the_old_dataset_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    old = run(
        out,
        source(tmp_path / "a.jsonl", [(n, drawing(n), "x") for n in range(5)]),
        validation_share=0,
    )
    broken = tmp_path / "b.jsonl"
    source(broken, [(n, drawing(n), "y") for n in range(5)])
    broken.write_text(broken.read_text() + '\n{"id": ')
    with pytest.raises(DataError, match=r"b\.jsonl, line 6"):
        run(out, str(broken))
    source(broken, [(n, drawing(n), "y") for n in range(1500)])  # enough for a pool of processes
    broken.write_text(broken.read_text() + '\n{"id": ')
    with pytest.raises(DataError, match=r"b\.jsonl, line 1501"):
        run(out, str(broken), processes=2)
    assert multiprocessing.active_children() == []
    with pytest.raises(DataError, match=r"no record to train on.*5 read.*not_xml 5"):
        run(out, source(tmp_path / "c.jsonl", [(n, "hello", "y") for n in range(5)]))
    with pytest.raises(DataError, match="does not exist"):
        run(out, str(tmp_path / "a.jsonl"), str(tmp_path / "nowhere"))
    assert open_shards(str(out)).digest == old.digest
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.jsonl",
        "b.jsonl",
        "c.jsonl",
        "out",
    ]


@pytest.mark.parametrize("max_file_bytes", [2_000, 10_000])  # of a bucket, and of a shard
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path, max_file_bytes: int) -> None:
    rng = random.Random(0)
    rows = [(n, drawing(n), f"caption {rng.random()}") for n in range(1000)]
    path = source(tmp_path / "a.jsonl", rows)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, limits[1]))
    try:
        with pytest.raises(DataError, match=r"cannot write to .*out.*File too large.* TMPDIR"):
            run(tmp_path / "out", path, processes=1, shard_records=1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == ["a.jsonl"]


def test_lone_surrogates_do_not_stop_the_corpus(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [
        {"id": "a\ud800", "svg": drawing(1), "caption": "smile \U0001f600"},
        {"id": "a\ud801", "svg": drawing(2), "caption": "x"},
        {"id": "b", "svg": "<svg>\ud800</svg>", "caption": "x"},
        {"id": "c", "svg": drawing(3), "caption": "half \ud83d"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    report = run(tmp_path / "out", str(path), validation_share=0, test_share=0)
    assert report.quarantined == {"no_caption": 1, "not_xml": 1}
    written = {record.id: record.caption for record in records_of(tmp_path / "out", "train")}
    assert written == {r"a\ud800": "smile \U0001f600", r"a\ud801": "x"}


def test_bytes_and_text_of_one_drawing_are_duplicates(tmp_path: Path) -> None:
    for name, svg in {"a": drawing(1), "b": drawing(1).encode("utf-16")}.items():
        pq.write_table(
            pa.table({"id": [name], "svg": [svg], "caption": ["x"]}), tmp_path / f"{name}.parquet"
        )
    report = run(
        tmp_path / "out", *(str(tmp_path / f"{name}.parquet") for name in "ab"), validation_share=0
    )
    assert (report.num_written, report.num_duplicates) == (1, 1)


def test_a_source_is_not_replaced_by_the_file_of_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"svg": "<svg/>", "caption": "nothing"}\n')
    before = source.read_bytes()
    for spec in (str(source), f"{source}@2"):
        command = ["prepare", spec, "--out", str(tmp_path / "out"), "--json", str(source)]
        assert main(command) == 2
        assert f"--json {source} is a source" in capsys.readouterr().err
    assert source.read_bytes() == before


def test_a_folder_whose_name_ends_like_a_weight_is_a_source(tmp_path: Path) -> None:
    folder = tmp_path / "icons@2"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"svg": "<svg/>", "caption": "nothing"}\n')
    assert parse_weight(str(folder)) == (str(folder), None)
    assert parse_weight(f"{folder}@3") == (str(folder), 3.0)
