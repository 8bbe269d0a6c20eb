"""Values of a caption column → captions, or no caption with the reason."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from data_pipeline.config import PrepareConfig
from data_pipeline.prepare.dataset import prepare_dataset
from data_pipeline.sources.captions import make_records
from data_pipeline.sources.read import read_source

SVG = '<svg viewBox="0 0 1 1"><path d="M0 0h1"/></svg>'
NAN = float("nan")


def read_captions(value: object, column: str = "caption", **changes: Any) -> list[tuple[str, str]]:
    config = PrepareConfig(out="unused", captions="all", **changes)
    records = make_records("a", SVG, [(column, value)], "made", config)
    return [(record.id, record.caption) for record in records]


def turn(speaker: str, words: object, keys: tuple[str, str] = ("role", "content")) -> object:
    return dict(zip(keys, (speaker, words), strict=True))


SHAREGPT = ("from", "value")


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("a cat", ["a cat"]),
        (b"caf\xc3\xa9", ["café"]),
        (5, ["5"]),  # the drawing of a digit
        (None, []),
        (NAN, []),
        ([], []),
        (["a cat", None, NAN, " ", "a pet"], ["a cat", "a pet"]),
        ([{"raw": "a cat", "tokens": ["a", "cat"]}, {"raw": "a pet", "tokens": []}],
         ["a cat", "a pet"]),
        ([{"caption": None, "text": "a cat"}, {"caption": NAN, "text": "a pet"}],
         ["a cat", "a pet"]),
        ([{"text": "a cat", "from": "blip"}], ["a cat"]),
        ([turn("system", "Describe."), turn("user", "An icon?"), turn("assistant", "a cat"),
          turn("user", "More?"), turn("Assistant", "a pet")], ["a cat", "a pet"]),
        ([turn("human", "<image>\nWhat is it?", SHAREGPT), turn("gpt", "a cat", SHAREGPT)],
         ["a cat"]),
        ([turn("user", [{"type": "image"}]),
          turn("assistant", [{"type": "text", "text": "a cat,"}, {"type": "text", "text": "red"}])],
         ["a cat, red"]),
        *[([turn("User", "An icon?", keys), turn("assistant", "a cat", keys)], ["a cat"])
          for keys in product(("role", "from", "speaker"), ("content", "value", "text"))],
        ('["a cat", "a pet"]', ["a cat", "a pet"]),
        (json.dumps([turn("user", "An icon?"), turn("assistant", "a cat")]), ["a cat"]),
        ("[1]", ["[1]"]),  # the drawing of a footnote
        ("{}", ["{}"]),
        ("[a] cat", ["[a] cat"]),
        ([turn("user", "a cat") | {"from": None, "value": None},
          {"from": "gpt", "value": "a pet", "role": None, "content": None}], ["a pet"]),
    ],
)  # fmt: skip
def test_each_text_of_a_value_is_a_caption(value: object, texts: list[str]) -> None:
    assert [text for _, text in read_captions(value)] == (texts or [""])


def test_captions_of_a_list_have_names_of_their_own() -> None:
    assert read_captions(["x", "", "y"], "captions") == [
        ("a:captions:0", "x"),
        ("a:captions:2", "y"),
    ]


@pytest.mark.parametrize("column", ["keywords", "Tags"])
def test_keywords_are_one_caption(column: str) -> None:
    assert read_captions(["cat", None, "pet", NAN, ""], column) == [("a", "cat, pet")]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"text": "a cat", "lang": "en"}, "an object with text, lang"),
        ({}, "an object with no key"),
        ('{"en": "a cat"}', "an object with en"),
        (True, "bool True"),
        (0.5, "float 0.5"),
        (float("inf"), "float inf"),
        ([["a cat"]], "a list in a list"),
        ([{"en": "a cat"}], "an object with en"),
        ([{"text": {"en": "a cat"}}], "an object with en"),
        ([turn("user", "a cat"), turn("assistant", SVG)], "a drawing"),
        (f"```svg\n{SVG}\n```", "a drawing"),
        ("café".encode("latin-1"), "in another encoding than UTF-8"),
        ("caf\ufffd", "in another encoding than UTF-8"),
    ],
)
def test_a_value_that_is_not_text_is_described(value: object, words: str) -> None:
    (record,) = make_records("a", SVG, [("caption", value)], "x", PrepareConfig(out="unused"))
    assert (record.caption, record.concept) == ("", "")
    assert words in record.problem
    assert record.problem.startswith("the caption 'caption")
    assert record.problem.endswith(", not text")


@pytest.mark.parametrize("text", ["", " \n", "\u200b", "\ufeff \0", "\xa0\u2060"])
def test_invisible_text_is_no_caption(text: str) -> None:
    captions = [("caption", text), ("text", "a cat")]
    (record,) = make_records("a", SVG, captions, "x", PrepareConfig(out="unused"))
    assert record.caption == "a cat"


def test_texts_beside_a_value_that_is_not_text_are_kept() -> None:
    assert read_captions(["a cat", {"en": "a dog"}]) == [("a", "a cat")]


@pytest.mark.parametrize(
    "column", ["caption", "captions", "sentences", "conversations", "messages"]
)
def test_columns_of_several_captions_are_known(tmp_path: Path, column: str) -> None:
    turns = [turn("user", "An icon?"), turn("assistant", "a cat"), turn("assistant", "a pet")]
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"svg": SVG, column: turns}))
    for captions, expected in {"first": ["a cat"], "all": ["a cat", "a pet"]}.items():
        config = PrepareConfig(out="unused", captions=captions)  # type: ignore[arg-type]
        assert [record.caption for record in read_source(str(path), config)] == expected


def test_missing_and_unusable_values_fall_back_to_the_next_column(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "svg": SVG, "caption": NAN, "description": "a cat"},
        {"id": NAN, "svg": SVG, "caption": {"en": "a dog"}, "description": "a pet"},
        {"id": None, "svg": SVG, "caption": NAN},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    records = list(read_source(str(path), PrepareConfig(out="unused")))
    assert [(record.id, record.caption) for record in records] == [
        ("1", "a cat"),
        ("a:1", "a pet"),
        ("a:2", ""),
    ]


def test_the_quarantine_has_the_reason_of_a_caption_that_is_not_text(tmp_path: Path) -> None:
    captions = ["a cat", {"text": "a cat"}, NAN]
    rows = [{"id": n, "svg": SVG, "caption": caption} for n, caption in enumerate(captions)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    config = PrepareConfig(out=str(tmp_path / "out"), validation_share=0)
    report = prepare_dataset([str(path)], config, progress=False)
    assert report.quarantined == {"no_caption": 2}
    refused = pq.read_table(tmp_path / "out" / "quarantine.parquet").to_pylist()
    assert {row["id"]: row["detail"] for row in refused} == {
        "1": "the caption 'caption' is an object with text, not text",
        "2": "the caption is empty",
    }
