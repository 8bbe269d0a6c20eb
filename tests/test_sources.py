"""Every input format → rows, and every wrong input → one sentence before the first row."""

import csv
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.config import PrepareConfig
from data_pipeline.errors import DataError
from data_pipeline.icons import WEIGHTS, caption, category_names, concept, phosphor_icons
from data_pipeline.rows import Row
from data_pipeline.sources import read_source

SVG = '<svg viewBox="0 0 1 1"><path d="M0 0h1"/></svg>'


def config(**changes: Any) -> PrepareConfig:
    return PrepareConfig(out="unused", **changes)


def write_parquet(path: Path, **columns: list[Any]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("svg", [SVG, SVG.encode()], ids=["text", "bytes"])
def test_parquet(tmp_path: Path, svg: str | bytes) -> None:
    path = write_parquet(tmp_path / "a.parquet", id=[7], svg=[svg], caption=["A  red Box"], extra=[1])
    assert list(read_source(str(path), config())) == [Row("7", svg, "A  red Box", "a.parquet", "a red box")]


def test_a_folder_of_parquet_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_parquet(tmp_path / f"{name}.parquet", id=[name] * 600, svg=[SVG] * 600, caption=["x"] * 600)
    rows = list(read_source(str(tmp_path), config()))
    assert [row.id for row in rows] == ["a"] * 600 + ["b"] * 600
    assert {row.source for row in rows} == {tmp_path.name}


def test_other_columns_and_numbered_rows(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", Svg=[SVG, None], text=["x", None])
    rows = list(read_source(str(path), config(svg_column="Svg", caption_column="text", id_column="")))
    assert [(row.id, row.svg, row.caption) for row in rows] == [("a:0", SVG, "x"), ("a:1", "", "")]


def test_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    records = [{"id": 1, "svg": SVG, "caption": "é"}, {"id": "b", "svg": 5, "caption": None}]
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n\n", encoding="utf-8")
    rows = list(read_source(str(path), config()))
    assert [(row.id, row.svg, row.caption) for row in rows] == [("1", SVG, "é"), ("b", "", "")]


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
            csv.writer(file).writerows([["caption", "id"], *((text, name) for name, text in named.items())])
    else:
        for name, text in CAPTIONS.items():
            (tmp_path / f"{name}.txt").write_text(f"{text}\n")
    rows = {row.id: row for row in read_source(str(tmp_path), config())}
    assert {name: row.caption for name, row in rows.items()} == {**CAPTIONS, "silent": ""}
    assert rows["cat"] == Row("cat", SVG.encode(), "a cat", tmp_path.name, "a cat")


def test_scenes() -> None:
    assert len(list(read_source("scenes:5", config()))) == 5
    assert list(read_source("scenes:5:1", config())) != list(read_source("scenes:5:2", config()))
    assert list(read_source("scenes:5:1", config())) == list(read_source("scenes:5:1", config()))


def test_wrong_inputs_are_named_before_the_first_row(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "mute").mkdir()
    (tmp_path / "mute" / "a.svg").write_text(SVG)
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "a.svg").write_text(SVG)
    (tmp_path / "list" / "captions.json").write_text("[1]")
    (tmp_path / "text.parquet").write_text("not parquet")
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "other.jsonl").write_text('{"svg": "", "caption": ""}\n')
    (tmp_path / "a.zip").write_text("")
    write_parquet(tmp_path / "other.parquet", id=["a"], Svg=[SVG], caption=["x"])
    write_parquet(tmp_path / "number.parquet", id=["a"], svg=[1], caption=["x"])
    for name, words in {
        "missing": ["missing", "does not exist"],
        "empty": ["empty", "no .parquet and no .svg"],
        "mute": ["mute", "captions.json", ".txt"],
        "list": ["captions.json", "object"],
        "text.parquet": ["text.parquet", "not a readable Parquet file"],
        "empty.jsonl": ["empty.jsonl", "is empty"],
        "list.jsonl": ["list.jsonl, line 1", "not a JSON object"],
        "other.jsonl": ["other.jsonl, line 1", "'id'", "caption, svg", "--id-column"],
        "a.zip": ["a.zip", "neither"],
        "other.parquet": ["other.parquet", "'svg'", "Svg, caption, id", "--svg-column"],
        "number.parquet": ["number.parquet", "'svg'", "int64"],
    }.items():
        with pytest.raises(DataError) as error:
            read_source(str(tmp_path / name), config())
        assert all(word in str(error.value) for word in words), (name, str(error.value))
        assert "\n" not in str(error.value)
    for spec in ("scenes:", "scenes:x", "scenes:3:1:2", "scenes:-1"):
        with pytest.raises(DataError, match="scenes:N"):
            read_source(spec, config())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("airplane-in-flight", "thin", "map", ["vehicles", "*new*", "airports", "flights", "flying"]),
            "A thin icon of airplane in flight, drawn in hairline outlines, from the map category, "
            "about vehicles, airports and flights.",
        ),
        (
            ("acorn", "light", "finance", ["savings", "acorn", "nut"]),
            "A light icon of acorn, drawn in light, fine outlines, from the finance category, about savings and nut.",
        ),
        (
            ("x", "regular", "system", ["×", "*updated*"]),
            "A regular icon of x, drawn in regular outlines of medium width, from the system category, about ×.",
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
    assert caption(*arguments) == sentence


def test_phosphor_icons() -> None:
    rows = list(phosphor_icons())
    assert len(rows) == len({row.id for row in rows}) == 1512 * 6
    assert Counter(row.id.rsplit("-", 1)[1] for row in rows) == dict.fromkeys(WEIGHTS, 1512)
    by_id = {row.id: row for row in rows}
    acorn = by_id["phosphor:acorn-regular"]
    assert acorn.caption == (
        "A regular icon of acorn, drawn in regular outlines of medium width, from the finance category, "
        "about savings, nut and vegetable."
    )
    assert b"M232,104a56.06" in acorn.svg  # type: ignore[operator]
    assert all(row.caption.count(".") >= 1 and "*" not in row.caption for row in rows)
    named = {row.caption.split(" category")[0].split("from the ")[-1] for row in rows if " category" in row.caption}
    assert named == set(category_names())
    assert len(category_names()) == 18


def test_icons_without_their_package_name_the_command() -> None:
    code = (
        "import sys; sys.modules['py_phosphor_icons'] = None\n"
        "from data_pipeline.icons import phosphor_icons\n"
        "try: phosphor_icons()\n"
        "except ValueError as error: print(type(error).__name__, error)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("DataError ")
    assert "pip install py-phosphor-icons" in result.stdout


def test_siblings_share_a_concept() -> None:
    assert len({concept(name) for name in ("airplane", "airplane-landing", "airplane-in-flight")}) == 1
    assert concept("arrows-in") == concept("arrow-up")
    assert concept("cat") != concept("car-profile")
    concepts = {row.id.removeprefix("phosphor:").rsplit("-", 1)[0]: row.concept for row in phosphor_icons()}
    assert len(set(concepts.values())) > 600
