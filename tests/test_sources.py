"""Every input format → records, and every wrong input → one sentence before the first record."""

import csv
import gzip
import io
import json
import re
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from data_pipeline.config import PrepareConfig
from data_pipeline.errors import DataError
from data_pipeline.sources.phosphor import (
    WEIGHTS,
    compose_caption,
    derive_concept,
    list_categories,
    read_phosphor,
)
from data_pipeline.sources.read import read_source
from data_pipeline.sources.record import Record

SVG = '<svg viewBox="0 0 1 1"><path d="M0 0h1"/></svg>'


def config(**changes: Any) -> PrepareConfig:
    return PrepareConfig(out="unused", **changes)


def write_parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("svg", [SVG, SVG.encode()], ids=["text", "bytes"])
def test_parquet(tmp_path: Path, svg: str | bytes) -> None:
    path = write_parquet(
        tmp_path / "a.parquet", id=[7], svg=[svg], caption=["A  red Box"], extra=[1]
    )
    assert list(read_source(str(path), config())) == [
        Record("7", svg, "A  red Box", "a.parquet", "a red box")
    ]


def test_a_folder_of_parquet_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_parquet(
            tmp_path / f"{name}.parquet", id=[name] * 600, svg=[SVG] * 600, caption=["x"] * 600
        )
    records = list(read_source(str(tmp_path), config()))
    assert [record.id for record in records] == ["a"] * 600 + ["b"] * 600
    assert {record.source for record in records} == {tmp_path.name}


def test_other_kinds_of_text_columns(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path / "a.parquet",
        svg=pa.array([SVG]).dictionary_encode(),
        caption=pa.array([["a", "b"]], pa.large_list(pa.string())),
    )
    assert [
        (record.id, record.svg, record.caption) for record in read_source(str(path), config())
    ] == [("a:0", SVG, "a")]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_text_that_is_not_utf8_does_not_end_the_corpus(tmp_path: Path, kind: pa.DataType) -> None:
    binary = {
        pa.string(): pa.binary(),
        pa.large_string(): pa.large_binary(),
        pa.string_view(): pa.binary_view(),
    }
    captions = pa.array([b"caf\xe9", "café".encode(), None], binary[kind]).view(kind)
    path = write_parquet(tmp_path / "a.parquet", id=[1, 2, 3], svg=[SVG] * 3, caption=captions)
    records = list(read_source(str(path), config()))
    assert [(record.id, record.caption) for record in records] == [
        ("1", ""),
        ("2", "café"),
        ("3", ""),
    ]
    assert records[0].problem.endswith("in another encoding than UTF-8, not text")


def test_a_parquet_file_that_breaks_off_is_named(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path / "a.parquet", svg=[SVG * 50] * 2000, caption=[str(n) for n in range(2000)]
    )
    data = bytearray(path.read_bytes())
    data[100:600] = b"\xff" * 500  # a page, not the footer
    path.write_bytes(data)
    records = read_source(str(path), config())
    with pytest.raises(DataError, match=r"a\.parquet cannot be read to its end"):
        list(records)


def test_other_columns_and_numbered_records(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", Svg=[SVG, None], text=["x", None])
    records = list(
        read_source(str(path), config(svg_column="Svg", caption_column="text", id_column=""))
    )
    assert [(record.id, record.svg, record.caption) for record in records] == [
        ("a:0", SVG, "x"),
        ("a:1", "", ""),
    ]


def test_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"id": 1, "svg": SVG, "caption": "é"}, {"id": "b", "svg": 5, "caption": None}]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    records = list(read_source(str(path), config()))
    assert [(record.id, record.svg, record.caption) for record in records] == [
        ("1", SVG, "é"),
        ("b", "", ""),
    ]


CAPTIONS = {"cat": "a cat", "dogs/old dog": "a dog"}


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "txt"])
@pytest.mark.parametrize("suffix", ["", ".svg"])
def test_a_folder_of_drawings(tmp_path: Path, kind: str, suffix: str) -> None:
    (tmp_path / "dogs").mkdir()
    for name in (*CAPTIONS, "silent"):
        (tmp_path / f"{name}.svg").write_text(SVG)
    named = {f"{name}{suffix}": text for name, text in CAPTIONS.items()}
    if kind == "json":
        (tmp_path / "captions.json").write_text(json.dumps(named))
    elif kind == "jsonl":
        lines = [json.dumps({"id": name, "caption": text}) for name, text in named.items()]
        (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    elif kind == "csv":
        with (tmp_path / "captions.csv").open("w", newline="") as file:
            csv.writer(file).writerows(
                [["caption", "id"], *((text, name) for name, text in named.items())]
            )
    else:
        for name, text in CAPTIONS.items():
            (tmp_path / f"{name}.txt").write_text(f"{text}\n")
    records = {record.id: record for record in read_source(str(tmp_path), config())}
    assert {name: record.caption for name, record in records.items()} == {**CAPTIONS, "silent": ""}
    assert records["cat"] == Record("cat", SVG.encode(), "a cat", tmp_path.name, "a cat")


def test_scenes() -> None:
    assert len(list(read_source("scenes:5", config()))) == 5
    assert list(read_source("scenes:5:1", config())) != list(read_source("scenes:5:2", config()))
    assert list(read_source("scenes:5:1", config())) == list(read_source("scenes:5:1", config()))


KNOWN = {
    "svg-stack-with-captions": (
        {
            "Filename": "ab.svg",
            "Svg": SVG,
            "caption_blip2": "blip",
            "caption_llava": "llava",
            "caption_cogvlm": "cog",
        },
        [("ab.svg", "cog")],
    ),
    "mmsvg": (
        {
            "id": "7",
            "svg": SVG,
            "description": "a cup",
            "keywords": "cup, tea",
            "detail": "a blue cup",
        },
        [("7", "a cup")],
    ),
    "mmsvg-keyword-list": (
        {"id": "7", "svg": SVG, "keywords": ["cup", "tea"]},
        [("7", "cup, tea")],
    ),
    "svgx-core": (
        {"uuid": "u", "name": "x", "svg_code": SVG, "qwen_caption": "", "blip_caption": "a bird"},
        [("u", "a bird")],
    ),
    "svgx-sft-describe": (
        {"instruction": "Describe.", "input": SVG, "output": "a dog"},
        [("f:0", "a dog")],
    ),
    "svgx-sft-draw": (
        {"instruction": "Draw.", "input": "a dog", "output": SVG},
        [("f:0", "a dog")],
    ),
}


@pytest.mark.parametrize(
    "suffix", ["parquet", "jsonl", "lines.json", "array.json", "bytes.parquet"]
)
@pytest.mark.parametrize("name", KNOWN)
def test_known_datasets_are_read_as_they_are(tmp_path: Path, name: str, suffix: str) -> None:
    row, expected = KNOWN[name]
    path = tmp_path / f"f.{suffix}"
    if suffix == "bytes.parquet":
        row = {key: value.encode() if value == SVG else value for key, value in row.items()}
    if suffix.endswith("parquet"):
        write_parquet(path, **{key: [value] for key, value in row.items()})
    else:
        path.write_text(json.dumps([row]) if suffix == "array.json" else f"{json.dumps(row)}\n")
    records = list(read_source(str(path), config()))
    assert [(record.id, record.caption) for record in records] == expected
    assert records[0].svg == (SVG.encode() if suffix == "bytes.parquet" else SVG)


def test_the_sides_of_a_pair_are_found_row_by_row(tmp_path: Path) -> None:
    pairs = [("a cat", SVG), (f"<?xml version='1.0'?>\n{SVG}", "a dog"), ("neither", "of them")]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"input": a, "output": b}) for a, b in pairs))
    records = list(read_source(str(path), config()))
    assert [record.caption for record in records] == ["a cat", "a dog", "neither"]
    assert [str(record.svg)[-6:] for record in records] == ["</svg>", "</svg>", "f them"]


@pytest.mark.parametrize("kind", [pa.string(), pa.binary(), pa.large_binary()])
def test_splits_are_read_from_text_and_from_bytes(tmp_path: Path, kind: pa.DataType) -> None:
    names = pa.array([b"train", b"dev", b"TEST"]).cast(kind)
    table = pa.table({"svg": [SVG] * 3, "caption": ["a", "b", "c"], "split": names})
    pq.write_table(table, tmp_path / "a.parquet")
    records = read_source(str(tmp_path / "a.parquet"), config())
    assert [record.split for record in records] == ["train", "validation", "test"]


CAPTIONED = [
    {
        "Filename": "a",
        "Svg": SVG,
        "caption_cogvlm": "Long  one",
        "caption_llava": "",
        "caption_blip2": "short",
    },
    {
        "Filename": "b",
        "Svg": SVG,
        "caption_cogvlm": None,
        "caption_llava": " ",
        "caption_blip2": "long ONE",
    },
    {"Filename": "c", "Svg": SVG, "caption_cogvlm": "", "caption_llava": "", "caption_blip2": ""},
]


def captioned(tmp_path: Path, **changes: Any) -> list[Record]:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in CAPTIONED))
    return list(read_source(str(path), config(**changes)))


def test_the_first_caption_that_is_not_empty(tmp_path: Path) -> None:
    assert [record.caption for record in captioned(tmp_path)] == ["Long  one", "long ONE", ""]


def test_a_caption_by_its_name(tmp_path: Path) -> None:
    assert [record.caption for record in captioned(tmp_path, caption_column="caption_blip2")] == [
        "short",
        "long ONE",
        "",
    ]


def test_each_caption_as_a_record_of_one_concept(tmp_path: Path) -> None:
    records = captioned(tmp_path, captions="all")
    assert [(record.id, record.caption) for record in records] == [
        ("a:caption_cogvlm", "Long  one"),
        ("a:caption_blip2", "short"),
        ("b", "long ONE"),
        ("c", ""),
    ]
    assert [record.concept for record in records] == ["long one"] * 3 + [""]


def test_a_random_caption_depends_on_seed_and_id(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"id": n, "svg": SVG, "caption": "x", "description": "y"} for n in range(200)]

    def chosen(rows: list[dict[str, Any]], seed: int) -> dict[str, str]:
        path.write_text("\n".join(json.dumps(row) for row in rows))
        return {
            record.id: record.caption
            for record in read_source(str(path), config(captions="random", seed=seed))
        }

    first = chosen(rows, 0)
    assert first == chosen(rows[::-1], 0) != chosen(rows, 1)
    assert 70 < list(first.values()).count("x") < 130


def moved(svg: str | bytes, x: float, y: float) -> tuple[str, float, float]:
    """Return the viewBox, and the point moved by the group's transform."""
    view_box, transform = re.search(r'viewBox="(.*?)"><g transform="(.*?)">', str(svg)).groups()  # type: ignore[union-attr]
    for name, values in reversed(re.findall(r"(\w+)\((.*?)\)", transform)):
        a, *b = map(float, values.split())
        if name == "translate":
            x, y = x + a, y + b[0]
        elif name == "scale":
            x, y = x * a, y * b[0]
        else:
            x, y = {90: (-y, x), 180: (-x, -y), -90: (y, -x)}[int(a)]
    return view_box, x, y


def test_iconify_sets(tmp_path: Path) -> None:
    icons = {
        "prefix": "made",
        "info": {"name": "Made"},
        "icons": {
            "arrow-left": {"body": "<path d='M1 2H3'/>"},
            "box": {"body": "<path/>", "width": 9, "top": -1},
            "twice": {"body": "<use xlink:href='#a'/>"},
        },
        "aliases": {
            "arrow-right": {"parent": "arrow-left", "hFlip": True},
            "arrow_down": {"parent": "arrow-right", "rotate": 1},
            "box-up": {"parent": "box", "hFlip": True, "vFlip": True},
            "box-back": {"parent": "box", "rotate": 3},
            "nothing": {"parent": "gone"},
            "wide": {"parent": "box", "width": "wide"},
            "round": {"parent": "round"},
            "listed": {"parent": ["box"]},
        },
        "width": 24,
    }
    (tmp_path / "made.json").write_text(json.dumps(icons, indent=1))
    (tmp_path / "info.json").write_text('{"prefix": "made", "license": "MIT"}')
    records = {record.id: record for record in read_source(str(tmp_path), config())}
    assert [record.caption for record in records.values()] == [
        "arrow left", "box", "twice", "arrow right", "arrow down",
        "box up", "box back", "nothing", "wide", "round", "listed",
    ]  # fmt: skip
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox='
    assert records["made:arrow-left"].svg == f"{head}\"0 0 24 16\"><path d='M1 2H3'/></svg>"
    assert records["made:box"].svg == f'{head}"0 -1 9 16"><path/></svg>'
    # (1, 2) in 24 × 16 flips to (23, 2), and then turns clockwise to (16 - 2, 23) in 16 × 24.
    assert moved(records["made:arrow-right"].svg, 1, 2) == ("0 0 24 16", 23, 2)
    assert moved(records["made:arrow_down"].svg, 1, 2) == ("0 0 16 24", 14, 23)
    assert moved(records["made:box-up"].svg, 4, 6) == ("0 0 9 16", 9 - 4, 16 - 7)
    assert moved(records["made:box-back"].svg, 4, 6) == ("0 0 16 9", 7, 9 - 4)
    reasons = {name: record.unreadable for name, record in records.items() if not record.svg}
    assert {
        name: reason.partition(" of the set 'made' ")[2] for name, reason in reasons.items()
    } == {
        "made:nothing": "needs 'gone', which is not an object in the set",
        "made:wide": "has the width 'wide', not a number",
        "made:round": "has parents in a circle, or more than 10",
        "made:listed": "needs 'listed', whose parent is ['box'], not a name",
    }
    assert records["made:arrow-right"].concept == records["made:arrow_down"].concept == "arrow"
    assert 'xmlns:xlink="http://www.w3.org/1999/xlink"' in str(records["made:twice"].svg)
    assert {record.source for record in records.values()} == {"made"}
    assert list(read_source(str(tmp_path / "made.json"), config())) == list(records.values())


def test_an_icon_set_of_another_form_is_refused(tmp_path: Path) -> None:
    for number, changes in enumerate(({"aliases": ["box"]}, {"icons": ["box"]})):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps({"prefix": "made", "icons": {}, **changes}))
        with pytest.raises(DataError, match=rf"{number}\.json is not an Iconify set: expected"):
            read_source(str(path), config())


def test_compressed_drawings_are_handed_on_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.svgz").write_bytes(gzip.compress(SVG.encode()))
    (tmp_path / "B.SVG").write_text(SVG)
    (tmp_path / ".hidden.svg").write_text(SVG)
    (tmp_path / "metadata.csv").write_text("file_name,text\na.svgz,a cat\nB.SVG,a dog\n")
    records = list(read_source(str(tmp_path), config()))
    assert [(record.id, record.caption) for record in records] == [("B", "a dog"), ("a", "a cat")]
    assert gzip.decompress(records[1].svg) == SVG.encode()  # type: ignore[arg-type]


def test_a_huge_file_is_read_no_further_than_needed_to_refuse_it(tmp_path: Path) -> None:
    (tmp_path / "a.svg").write_text(SVG + " " * 10_000)
    (tmp_path / "a.txt").write_text("a cat")
    (record,) = read_source(str(tmp_path), config(max_svg_bytes=1000))
    assert len(record.svg) == 1001


def test_several_captions_in_one_file(tmp_path: Path) -> None:
    (tmp_path / "a.svg").write_text(SVG)
    (tmp_path / "captions.json").write_text(json.dumps({"a": ["a cat", "", "a pet"]}))
    assert [record.caption for record in read_source(str(tmp_path), config())] == ["a cat"]
    assert [record.caption for record in read_source(str(tmp_path), config(captions="all"))] == [
        "a cat",
        "a pet",
    ]


def write_tar(path: Path, members: dict[str, str]) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return path


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_webdataset_tars(tmp_path: Path, suffix: str) -> None:
    members = {
        "a/0.svg": SVG, "a/0.png": "…", "a/0.txt": " a cat\n",
        "a/1.txt": "a dog", "a/1.svg": SVG,
        "b/1.json": '{"caption": "a cow", "width": 3}', "b/1.svg": SVG,
        "b/2.png": "no drawing", "b/2.txt": "x",
        "b/3.json": "half {", "b/3.svg": SVG,
        "b/4.svg": SVG,
    }  # fmt: skip
    write_tar(tmp_path / f"0.{suffix}", members)
    write_tar(tmp_path / f"1.{suffix}", {"z.svg": SVG + " " * 2000, "z.txt": "a bee"})
    records = list(read_source(str(tmp_path), config(max_svg_bytes=1000)))
    assert [(record.id, record.caption) for record in records] == [
        ("a/0", "a cat"), ("a/1", "a dog"), ("b/1", "a cow"),
        ("b/3", ""), ("b/4", ""), ("z", "a bee"),
    ]  # fmt: skip
    assert records[0].svg == SVG.encode()
    assert len(records[-1].svg) == 1001


def test_sources_may_lie_anywhere(tmp_path: Path) -> None:
    for suffix in ("svg", "txt"):
        (tmp_path / f"a.{suffix}").write_text(SVG if suffix == "svg" else "a cat")
    assert [record.caption for record in read_source(f"file://{tmp_path}", config())] == ["a cat"]
    memory = fsspec.filesystem("memory")  # pyarrow opens a hub in the same way
    buffer = io.BytesIO()
    pq.write_table(
        pa.table({"Filename": ["a", "b"], "Svg": [SVG, SVG], "caption_blip2": ["x", "y"]}), buffer
    )
    for name, data in {
        "set/data/a.parquet": buffer.getvalue(),
        "lines/a.jsonl": json.dumps({"svg": SVG, "caption": "x"}).encode(),
        "tars/a.tar": write_tar(tmp_path / "a.tar", {"k.svg": SVG, "k.txt": "x"}).read_bytes(),
        "icons/a.json": b'{"prefix": "p", "icons": {"x": {"body": "<path/>"}}}',
    }.items():
        memory.pipe(f"/test_sources/{name}", data)
    for name, expected in {"set": "xy", "lines": "x", "tars/a.tar": "x"}.items():
        records = list(read_source(f"fsspec+memory://test_sources/{name}", config()))
        assert "".join(record.caption for record in records) == expected
        assert {record.source for record in records} == {name.rpartition("/")[2]}
    assert [
        record.id for record in read_source("fsspec+memory://test_sources/icons", config())
    ] == ["p:x"]


class Unreachable(MemoryFileSystem):  # type: ignore[misc]
    """A hub without a network."""

    protocol = "unreachable"

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        raise RuntimeError("Name or service\nnot known")


def test_a_hub_that_cannot_be_reached_is_named() -> None:
    fsspec.register_implementation("unreachable", Unreachable)
    with pytest.raises(DataError, match=r"fsspec\+unreachable://a/b.*Name or service not known"):
        read_source("fsspec+unreachable://a/b", config())


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("metadata.csv", "file_name,caption\n", "without rows: write a row for each drawing"),
        ("metadata.csv", "file_name,caption,caption\na.svg,x,y\n", "2 columns named 'caption'"),
        ("metadata.jsonl", '{"file_name":"a"}\n{"text":1,"text":2}', "line 2: two .* 'text'; keep"),
        ("captions.jsonl", '[{"id":"a","text":1,"text":2}]', "row 1: two .* 'text'; keep"),
    ],
)
def test_a_table_of_captions_has_rows_and_each_column_once(
    tmp_path: Path, file: str, text: str, message: str
) -> None:
    (tmp_path / "a.svg").write_text(SVG)
    (tmp_path / file).write_text(text)
    with pytest.raises(DataError, match=message) as error:
        list(read_source(str(tmp_path), config()))
    assert file in str(error.value)


def test_a_parquet_column_of_captions_occurs_once(tmp_path: Path) -> None:
    """Other columns may: they are not read."""
    columns = [pa.array(["a"]), pa.array([SVG]), *[pa.array(["x"])] * 4]
    for names in (["text", "text", "c", "d"], ["text", "c", "c", "d"]):
        table = pa.table(columns, names=["file_name", "svg", *names])
        pq.write_table(table, tmp_path / f"{names.count('text')}.parquet")
    assert len(list(read_source(str(tmp_path / "1.parquet"), config()))) == 1
    with pytest.raises(DataError, match="2 columns named 'text': rename or remove"):
        read_source(str(tmp_path / "2.parquet"), config())

    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.svg").write_text(SVG)
    (tmp_path / "2.parquet").rename(tmp_path / "folder" / "metadata.parquet")
    with pytest.raises(DataError, match=r"metadata\.parquet has 2 columns named 'text'"):
        list(read_source(str(tmp_path / "folder"), config()))


def test_wrong_inputs_are_named_before_the_first_record(tmp_path: Path) -> None:
    for name in ("empty", "mute", "list", "nameless", "vacant", "open"):
        (tmp_path / name).mkdir()
        if name != "empty":
            (tmp_path / name / "a.svg").write_text(SVG)
    (tmp_path / "list" / "captions.json").write_text("[1]")
    (tmp_path / "nameless" / "captions.csv").write_text("picture,caption\na,b\n")
    (tmp_path / "vacant" / "captions.csv").write_text("id,caption\n")
    (tmp_path / "open" / "captions.csv").write_text('id,caption\na,"a cat\nb,a dog\n')
    (tmp_path / "text.parquet").write_text("not parquet")
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "list.jsonl").write_text("1\n")
    (tmp_path / "numbers.json").write_text("[1]\n")
    (tmp_path / "other.jsonl").write_text('{"svg": "", "caption": ""}\n')
    (tmp_path / "pair.jsonl").write_text('{"input": "a", "output": "b"}\n')
    (tmp_path / "a.zip").write_text("")
    (tmp_path / "text.tar").write_text("not a tar")
    write_tar(tmp_path / "mute.tar", {"a.svg": SVG})
    write_tar(tmp_path / "other.tar", {"a.txt": "x"})
    write_parquet(tmp_path / "other.parquet", id=["a"], Picture=[SVG], caption=["x"])
    write_parquet(tmp_path / "svg-stack.parquet", Filename=["a"], Svg=[SVG])
    write_parquet(tmp_path / "number.parquet", id=["a"], svg=[1], caption=["x"])
    cases: dict[str, tuple[dict[str, Any], list[str]]] = {
        "missing": ({}, ["missing", "does not exist"]),
        "empty": ({}, ["empty", "is an empty folder", ".parquet", ".svg"]),
        "mute": ({}, ["mute", "captions.json", ".txt"]),
        "list": ({}, ["captions.json", "object"]),
        "nameless": ({}, ["captions.csv", "picture, caption", "--id-column"]),
        "vacant": ({}, ["captions.csv", "is empty"]),
        "open": ({}, ["captions.csv, line 2", "not CSV", "unexpected end"]),
        "text.parquet": ({}, ["text.parquet", "not a readable Parquet file"]),
        "empty.jsonl": ({}, ["empty.jsonl", "is empty"]),
        "list.jsonl": ({}, ["list.jsonl, line 1", "not a JSON object"]),
        "numbers.json": ({}, ["numbers.json, row 1", "not a JSON object"]),
        "other.jsonl": (
            {"id_column": "key"},
            ["other.jsonl", "'key'", "caption, svg", "--id-column"],
        ),
        "pair.jsonl": ({}, ["pair.jsonl", "neither input nor output holds an SVG"]),
        "a.zip": ({}, ["a.zip", "only .zip", ".parquet"]),
        "text.tar": ({}, ["text.tar", "not a readable tar"]),
        "mute.tar": ({}, ["mute.tar", "no captions", "KEY.txt"]),
        "other.tar": ({}, ["other.tar", "no .svg"]),
        "other.parquet": (
            {},
            ["other.parquet", "Picture, caption, id", "svg, svg_code", "--svg-column"],
        ),
        "svg-stack.parquet": (
            {},
            ["no column of captions", "Filename, Svg", "--caption-column", "text2svg-stack"],
        ),
        "number.parquet": ({}, ["number.parquet", "'svg'", "int64"]),
    }
    for name, (changes, words) in cases.items():
        with pytest.raises(DataError) as error:
            read_source(str(tmp_path / name), config(**changes))
        assert all(word in str(error.value) for word in words), (name, str(error.value))
        assert "\n" not in str(error.value)
    for spec in ("scenes:", "scenes:x", "scenes:3:1:2", "scenes:-1"):
        with pytest.raises(DataError, match="scenes:N"):
            read_source(spec, config())
    with pytest.raises(DataError, match="nosuch"):
        read_source("nosuch://a/b", config())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            (
                "airplane-in-flight",
                "thin",
                "map",
                ["vehicles", "*new*", "airports", "flights", "flying"],
            ),
            "A thin icon of airplane in flight, drawn in hairline outlines, from the map category, "
            "about vehicles, airports and flights.",
        ),
        (
            ("acorn", "light", "finance", ["savings", "acorn", "nut"]),
            "A light icon of acorn, drawn in light, fine outlines, from the finance category, "
            "about savings and nut.",
        ),
        (
            ("x", "regular", "system", ["×", "*updated*"]),
            "A regular icon of x, drawn in regular outlines of medium width, "
            "from the system category, about ×.",
        ),
        (("cat", "bold", "", []), "A bold icon of cat, drawn in bold, heavy outlines."),
        (("cat", "fill", "", []), "A fill icon of cat, drawn as a solid filled shape."),
        (
            ("cat", "duotone", "", []),
            "A duotone icon of cat, drawn in duotone, outlined over a translucent tint.",
        ),
    ],
)
def test_icon_captions(arguments: tuple[str, str, str, list[str]], sentence: str) -> None:
    assert compose_caption(*arguments) == sentence


def test_phosphor_icons() -> None:
    records = list(read_phosphor())
    assert len(records) == len({record.id for record in records}) == 1512 * 6
    assert Counter(record.id.rsplit("-", 1)[1] for record in records) == dict.fromkeys(
        WEIGHTS, 1512
    )
    by_id = {record.id: record for record in records}
    acorn = by_id["phosphor:acorn-regular"]
    assert acorn.caption == (
        "A regular icon of acorn, drawn in regular outlines of medium width, "
        "from the finance category, about savings, nut and vegetable."
    )
    assert b"M232,104a56.06" in acorn.svg  # type: ignore[operator]
    assert all(record.caption.count(".") >= 1 and "*" not in record.caption for record in records)
    named = {
        record.caption.split(" category")[0].split("from the ")[-1]
        for record in records
        if " category" in record.caption
    }
    assert named == set(list_categories())
    assert len(list_categories()) == 18


def test_icons_without_their_package_name_the_command() -> None:
    code = (
        "import sys; sys.modules['py_phosphor_icons'] = None\n"
        "from data_pipeline.sources.phosphor import read_phosphor\n"
        "try: read_phosphor()\n"
        "except ValueError as error: print(type(error).__name__, error)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith("DataError ")
    assert "pip install py-phosphor-icons" in result.stdout


def test_siblings_share_a_concept() -> None:
    assert (
        len(
            {
                derive_concept(name)
                for name in ("airplane", "airplane-landing", "airplane-in-flight")
            }
        )
        == 1
    )
    assert derive_concept("arrows-in") == derive_concept("arrow-up")
    assert derive_concept("cat") != derive_concept("car-profile")
    concepts = {
        record.id.removeprefix("phosphor:").rsplit("-", 1)[0]: record.concept
        for record in read_phosphor()
    }
    assert len(set(concepts.values())) > 600
