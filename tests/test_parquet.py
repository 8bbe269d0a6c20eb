"""Types of Parquet columns → texts, or one sentence before the first record."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.config import PrepareConfig
from data_pipeline.errors import DataError
from data_pipeline.sources.read import read_source

SVG = '<svg viewBox="0 0 1 1"><path d="M0 0h1"/></svg>'


def read_texts(path: Path, *, svg: Any = None, **columns: Any) -> list[list[str]]:
    """Write the columns to Parquet, and return the captions of each row."""
    size = len(next(iter(columns.values())))
    drawings = pa.array([SVG] * size) if svg is None else svg
    pq.write_table(pa.table({"svg": drawings, "id": range(size), **columns}), path)
    captions: list[list[str]] = [[] for _ in range(size)]
    for record in read_source(str(path), PrepareConfig(out="unused", captions="all")):
        captions[int(record.id.partition(":")[0])].append(record.caption)
    return captions


TEXT = pa.string()
DICTIONARY = pa.dictionary(pa.int16(), TEXT)
ITEMS = [["a cat", "a pet"], [None, "a dog"]]
PARTS = pa.list_(pa.struct([("type", TEXT), ("text", TEXT)]))


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        (pa.null(), [None, None], [[""], [""]]),
        (pa.float64(), [float("nan"), None], [[""], [""]]),
        (pa.list_(pa.null()), [[None], []], [[""], [""]]),
        (DICTIONARY, ["a cat", None], [["a cat"], [""]]),
        (pa.binary(), [b"a cat", None], [["a cat"], [""]]),
        (pa.list_(TEXT), ITEMS, [["a cat", "a pet"], ["a dog"]]),
        (pa.large_list(pa.large_string()), ITEMS, [["a cat", "a pet"], ["a dog"]]),
        (pa.list_(TEXT, 2), ITEMS, [["a cat", "a pet"], ["a dog"]]),
        (pa.list_(TEXT, 2), [None, *ITEMS, None], [[""], ["a cat", "a pet"], ["a dog"], [""]]),
        (pa.json_(), ["a cat", None], [["a cat"], [""]]),
        (pa.list_(DICTIONARY), ITEMS, [["a cat", "a pet"], ["a dog"]]),
        (pa.list_(pa.struct([("raw", TEXT), ("n", pa.int8())])),
         [[{"raw": "a cat", "n": 1}, {"raw": "a pet", "n": 2}], None], [["a cat", "a pet"], [""]]),
        (pa.list_(pa.struct([("from", TEXT), ("value", TEXT)])),
         [[{"from": "human", "value": "?"}, {"from": "gpt", "value": "a cat"}], []],
         [["a cat"], [""]]),
        (pa.list_(pa.struct([("role", TEXT), ("content", PARTS)])),
         [[{"role": "user", "content": [{"type": "image", "text": None}]},
           {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]}]], [["a cat"]]),
    ],
    ids=str,
)  # fmt: skip
def test_column_types_of_captions(
    tmp_path: Path, kind: pa.DataType, values: list[Any], expected: list[list[str]]
) -> None:
    if isinstance(kind, pa.ListType) and kind.value_type == DICTIONARY:
        items = pa.array([text for row in values for text in row]).dictionary_encode()
        column = pa.ListArray.from_arrays([0, 2, 4], items)
    else:
        column = pa.array(values, kind)
    assert read_texts(tmp_path / "a.parquet", caption=column) == expected


def test_a_column_without_a_usable_value_gives_way_to_the_next(tmp_path: Path) -> None:
    second = pa.array(["a cat"])
    for first in (
        pa.nulls(1),
        pa.array([float("nan")]),
        pa.array([{"en": "a dog"}]),
        pa.array([7]),
        pa.array([[0.1, 0.2]]),
    ):
        path = tmp_path / "a.parquet"
        assert read_texts(path, caption=first, description=second) == [["a cat"]], first.type


@pytest.mark.parametrize(
    "column",
    [
        pa.array([{"text": "a cat"}]),
        pa.array([7]),
        pa.array([True]),
        pa.array([[1, 2]]),
        pa.array([[0.5]]),
        pa.array([[["a"]]]),
        pa.array([[{"en": "a cat"}]]),
    ],
    ids=lambda column: str(column.type),
)
def test_captions_of_another_type_are_refused_by_name(tmp_path: Path, column: pa.Array) -> None:
    with pytest.raises(DataError) as error:
        read_texts(tmp_path / "a.parquet", caption=column)
    kind = str(column.type).replace("<item", "<element")  # as Parquet names it
    assert f"'caption' holds {kind}, not text" in str(error.value)


def test_ids_and_names_of_files_may_be_bytes(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"id": [b"x"], "svg": [SVG], "text": ["a cat"]}), tmp_path / "a.parquet"
    )
    (record,) = read_source(str(tmp_path), PrepareConfig(out="unused"))
    assert record.id == "x"
    (tmp_path / "a.parquet").unlink()
    (tmp_path / "x.svg").write_text(SVG)
    pq.write_table(
        pa.table({"file_name": [b"x.svg"], "text": ["a dog"]}), tmp_path / "metadata.parquet"
    )
    (record,) = read_source(str(tmp_path), PrepareConfig(out="unused"))
    assert (record.id, record.caption) == ("x", "a dog")


def test_two_columns_of_one_name_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    columns = [pa.array([text]) for text in (SVG, "a cat", "a pet", "x", "y")]
    table = pa.Table.from_arrays(columns, ["svg", "text", "text", "note", "note"])
    pq.write_table(table, path)
    with pytest.raises(DataError, match="has 2 columns named 'text'"):
        read_source(str(path), PrepareConfig(out="unused"))
    pq.write_table(table.remove_column(2), path)
    (record,) = read_source(str(path), PrepareConfig(out="unused"))
    assert record.caption == "a cat"


def test_a_column_of_drawings_without_a_value_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    assert read_texts(path, svg=pa.nulls(2), caption=["x", "y"]) == [["x"], ["y"]]


def test_text_that_is_not_utf8_is_a_caption_in_no_type(tmp_path: Path) -> None:
    bad = pa.array([b"caf\xe9", b"x"]).view(pa.string())
    codes = pa.array([0, 1], pa.int32())
    for column in (
        pa.ListArray.from_arrays([0, 2], bad),
        pa.FixedSizeListArray.from_arrays(bad, 2),
        pa.ListArray.from_arrays([0, 2], pa.DictionaryArray.from_arrays(codes, bad)),
        pa.ListArray.from_arrays([0, 2], pa.StructArray.from_arrays([codes, bad], ["n", "text"])),
    ):
        assert read_texts(tmp_path / "a.parquet", caption=column) == [["x"]]
    encoded = pa.DictionaryArray.from_arrays(codes, bad)
    assert read_texts(tmp_path / "a.parquet", caption=encoded) == [[""], ["x"]]
