"""JSON files: numbers of any length, arrays in pieces, and the reason why a file is refused."""

import json
from pathlib import Path

import pytest

from data_pipeline.config import PrepareConfig
from data_pipeline.errors import DataError
from data_pipeline.sources.read import read_source

SVG = '<svg viewBox="0 0 1 1"><path d="M0 0h1"/></svg>'
CONFIG = PrepareConfig(out="unused")


def test_nested_json_is_refused(tmp_path: Path) -> None:
    deep = '{"svg": ' + "[" * 100_000
    for name, text in {"a.jsonl": deep, "b.json": f"[{deep}"}.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=r"(line|row) 1: nested too deeply"):
            read_source(str(tmp_path / name), CONFIG)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "captions.json", "captions.jsonl"])
def test_a_number_of_any_length_is_a_text(tmp_path: Path, name: str) -> None:
    """Python refuses to convert more than 4,300 digits."""
    digits = "9" * 5000
    folder = tmp_path / "folder"
    folder.mkdir()
    row = f'{{"id": {digits}, "svg": {json.dumps(SVG)}, "caption": {digits}}}'
    if name.startswith("captions"):
        (folder / f"{'9' * 200}.svg").write_text(SVG)
        row = f'{{"{"9" * 200}": {digits}}}'
        if name == "captions.jsonl":
            row = f'{{"file": {"9" * 200}, "caption": {digits}}}'
    (folder / name).write_text(f"[{row}]" if name == "a.json" else row)
    (record,) = read_source(str(folder), CONFIG)
    assert record.caption == digits
    assert record.id == ("9" * 200 if name.startswith("captions") else digits)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a": 1, "a": 2}', "two values are named 'a'; keep one"),
        ('{"a": 1', r"not JSON \(Expecting"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "captions.json", "set.json"])
def test_json_that_is_not_usable_is_refused_with_the_reason(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / "a.svg").write_text(SVG)
    head = '{"prefix": "x", "icons": ' if name == "set.json" else '{"b": '
    (tmp_path / name).write_text(f"{head}{text}}}")
    source = tmp_path if name == "captions.json" else tmp_path / name
    with pytest.raises(DataError, match=rf"{name}\S*( line 1:)? {message}"):
        read_source(str(source), CONFIG)


def test_a_large_array_is_read_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    drawing = SVG.replace(
        "</svg>", " " * 700_000 + "</svg>"
    )  # rows that end in another chunk than they begin
    path.write_text(
        json.dumps([{"id": n, "svg": drawing, "caption": f"[{n}], é"} for n in range(5)], indent=2)
    )
    assert [(record.id, record.caption) for record in read_source(str(path), CONFIG)] == [
        (str(n), f"[{n}], é") for n in range(5)
    ]
    path.write_text(path.read_text()[:-800_000])
    with pytest.raises(DataError, match=r"a\.json, row 4: not a JSON object"):
        list(read_source(str(path), CONFIG))


@pytest.mark.parametrize("rest", [" \n\t", "[]", "x", " " * (1 << 21) + "{}"])
def test_text_behind_an_array_is_refused(tmp_path: Path, rest: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"svg": SVG, "caption": "one"}]) + rest)
    if rest.isspace():
        assert len(list(read_source(str(path), CONFIG))) == 1
    else:
        with pytest.raises(DataError, match=r"a\.json: more text follows the array"):
            list(read_source(str(path), CONFIG))
