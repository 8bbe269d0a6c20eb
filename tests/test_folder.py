"""Folders of drawings: each layout of captions gives each drawing its own captions."""

import contextlib
import csv
import json
import os
import shutil
import socket
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.config import DrawingsConfig, PrepareConfig
from data_pipeline.errors import DataError
from data_pipeline.prepare.dataset import prepare_dataset
from data_pipeline.sources.read import read_source

SVG = '<svg viewBox="0 0 1 1"><path d="M0 0h1"/></svg>'
NFC, NFD = (unicodedata.normalize(form, "Ärger/café") for form in ("NFC", "NFD"))


def draw(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(SVG)


def write_table(path: Path, captions: dict[str, str], **columns: list[Any]) -> None:
    """Write the table of file names and captions in the format of the suffix."""
    table = {"file_name": list(captions), "text": list(captions.values()), **columns}
    rows = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".parquet":
        pq.write_table(pa.table(table), path)
    elif path.suffix.lower() == ".csv":
        lines = [",".join(table), *(",".join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines), encoding="utf-8")
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows))


def read(folder: Path, **changes: Any) -> dict[str, str]:
    records = read_source(str(folder), PrepareConfig(out="unused", **changes))
    return {record.id: record.caption for record in records}


SPLITS = {"train/a": "a cat", "train/deep/b": "a dog", "test/a": "a cow"}


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_each_split_has_a_metadata_file_of_its_own(tmp_path: Path, suffix: str) -> None:
    draw(tmp_path, *(f"{name}.svg" for name in SPLITS))
    train = {"a.svg": "a cat", "deep/b.svg": "a dog"}
    write_table(tmp_path / "train" / f"metadata.{suffix}", train)
    write_table(tmp_path / "test" / f"metadata.{suffix}", {"a.svg": "a cow"})
    assert read(tmp_path) == SPLITS


def test_splits_may_have_metadata_in_different_formats_beside_the_root(tmp_path: Path) -> None:
    draw(tmp_path, *(f"{name}.svg" for name in SPLITS), "c.svg")
    everything = {f"{name}.svg": "of the root" for name in [*SPLITS, "c"]}
    write_table(tmp_path / "metadata.csv", everything)
    write_table(tmp_path / "train" / "metadata.parquet", {"a.svg": "a cat"})
    write_table(tmp_path / "train" / "deep" / "METADATA.JSONL", {"b.svg": "a dog"})
    assert read(tmp_path) == {
        "train/a": "a cat",
        "train/deep/b": "a dog",
        "test/a": "of the root",
        "c": "of the root",
    }


def test_metadata_in_parquet_is_not_the_data_where_there_are_drawings(tmp_path: Path) -> None:
    draw(tmp_path, "a.svg")
    write_table(tmp_path / "metadata.parquet", {"a.svg": "a cat"}, svg=["<svg/>"])
    assert read(tmp_path) == {"a": "a cat"}
    (tmp_path / "a.svg").unlink()
    (record,) = read_source(str(tmp_path), PrepareConfig(out="unused"))
    assert (record.svg, record.caption) == ("<svg/>", "a cat")


@pytest.mark.parametrize(
    "name",
    ["./b/a.svg", "b/./a.svg", "b//a.svg", "c/../b/a.svg", "b\\a.svg", "b/a", "./b/a", "b/a.SVG"],
)
@pytest.mark.parametrize("kind", ["table", "object"])
def test_spellings_of_one_path(tmp_path: Path, name: str, kind: str) -> None:
    draw(tmp_path, "b/a.svg", "a.svg")
    if kind == "table":
        write_table(tmp_path / "metadata.jsonl", {name: "a cat"})
    else:
        (tmp_path / "captions.json").write_text(json.dumps({name: "a cat"}))
    assert read(tmp_path) == {"b/a": "a cat", "a": ""}


@pytest.mark.parametrize(("drawn", "named"), [(NFC, NFD), (NFD, NFC), (NFD, NFD)])
def test_composed_and_decomposed_names_are_one(tmp_path: Path, drawn: str, named: str) -> None:
    draw(tmp_path, f"{drawn}.svg", f"{drawn}2.svg")
    write_table(tmp_path / "metadata.csv", {f"{named}.svg": "a cat"})
    assert read(tmp_path) == {NFC: "a cat", f"{NFC}2": ""}
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / f"{named.replace('/', '_')}.txt").touch()  # beside no drawing
    (tmp_path / named).parent.mkdir(exist_ok=True)
    (tmp_path / f"{named}2.txt").write_text("a dog")
    assert read(tmp_path) == {NFC: "", f"{NFC}2": "a dog"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_captions_are_read_in_the_encoding_of_their_byte_order_mark(
    tmp_path: Path, encoding: str
) -> None:
    for name in ("txt", "csv", "jsonl", "json"):
        draw(tmp_path / name, "a.svg")
        text = {
            "txt": " é cat\r\n",
            "csv": "file,caption\r\na.svg,é cat\r\n",
            "jsonl": '{"file": "a.svg", "caption": "é cat"}\n',
            "json": '{"a.svg": "é cat"}',
        }[name]
        file = "a.txt" if name == "txt" else f"captions.{name}"
        (tmp_path / name / file).write_bytes(text.encode(encoding))
        assert read(tmp_path / name) == {"a": "é cat"}, name


def read_unreadable(folder: Path, *, prefix: str = "") -> dict[str, str]:
    """Map the id of each record to the reason why its file could not be read."""
    records = read_source(f"{prefix}{folder}", PrepareConfig(out="unused"))
    return {record.id: record.unreadable for record in records}


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_file_that_cannot_be_read_is_one_refused_drawing(tmp_path: Path, prefix: str) -> None:
    draw(tmp_path, "a.svg")
    draw(tmp_path, "z.svg")
    (tmp_path / "a.txt").write_text("a cat")
    (tmp_path / "vanished.svg").symlink_to(tmp_path / "gone")
    (tmp_path / "itself.svg").symlink_to(tmp_path / "itself.svg")
    (tmp_path / "io_error.svg").symlink_to("/proc/self/mem")  # readable only where mapped: EIO
    (tmp_path / os.fsdecode(b"caf\xe9.svg")).touch()
    (tmp_path / "z.txt").symlink_to("gone")
    os.mkfifo(tmp_path / "pipe.svg")  # would wait for a writer
    (tmp_path / "null.svg").symlink_to("/dev/null")
    assert read_unreadable(tmp_path, prefix=prefix) == {
        "a": "",
        "caf%E9": f"the name of {tmp_path}/caf%E9.svg is not UTF-8: rename the file",
        "pipe": f"{tmp_path}/pipe.svg is a pipe: copy its data into a file",
        "null": f"{tmp_path}/null.svg is a device: copy its data into a file",
        "io_error": f"{tmp_path}/io_error.svg cannot be read: Input/output error",
        "itself": f"{tmp_path}/itself.svg cannot be read: Too many levels of symbolic links",
        "vanished": f"{tmp_path}/vanished.svg cannot be read: No such file or directory",
        "z": f"{tmp_path}/z.txt cannot be read: No such file or directory",
    }


@pytest.mark.parametrize("name", ["a.svg", "a.jsonl", "a.json", "a.tar", "a.parquet", "folder"])
def test_a_pipe_a_socket_or_a_device_is_no_source(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(tmp_path):
        server.bind("socket")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for file, kind in {name: "a pipe", "socket": "a socket", "zero": "a device"}.items():
        with pytest.raises(DataError, match=rf"source '\S*{file}' is {kind}: copy its data"):
            read_source(str(tmp_path / file), PrepareConfig(out="unused"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.tar", "a.parquet", "captions.csv"])
def test_a_pipe_in_a_folder_is_not_waited_for(tmp_path: Path, name: str) -> None:
    if name == "captions.csv":
        draw(tmp_path, "a.svg")
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=rf"{name} is a pipe: copy its data into a file"):
        read_source(str(tmp_path), PrepareConfig(out="unused"))


TABLES = ["captions.jsonl", "captions.csv", "metadata.jsonl", "metadata.csv", "metadata.parquet"]


@pytest.mark.parametrize("second", TABLES)
@pytest.mark.parametrize("suffix", ["", ".svg", ".SVG"])
def test_caption_files_of_one_folder_may_not_disagree(
    tmp_path: Path, second: str, suffix: str
) -> None:
    draw(tmp_path, "icons/a.svg", "icons/b.svg", "icons/c.svg")
    first = {"./a": "a cat", "b.svg": "a dog", "c": ""}
    (tmp_path / "icons" / "captions.json").write_text(json.dumps(first))
    write_table(tmp_path / "icons" / second, {f"a{suffix}": "a cat", "b": "", "c.svg": "a cow"})
    assert read(tmp_path) == {"icons/a": "a cat", "icons/b": "a dog", "icons/c": "a cow"}

    write_table(tmp_path / "icons" / second, {"c": "a cow", f"a{suffix}": "a horse"})
    with pytest.raises(DataError) as error:
        read_source(str(tmp_path), PrepareConfig(out="unused"))
    assert str(error.value) == (
        f"{tmp_path}/icons/captions.json and {tmp_path}/icons/{second} disagree about "
        f"'a{suffix}': correct one of the files, or remove it"
    )


def test_caption_files_of_one_folder_may_not_disagree_about_a_split(tmp_path: Path) -> None:
    draw(tmp_path, "a.svg", "b.svg")
    write_table(
        tmp_path / "metadata.csv", {"a.svg": "a cat", "b.svg": "a dog"}, split=["train", "test"]
    )
    write_table(tmp_path / "metadata.jsonl", {"a.svg": "a cat"})
    assert read(tmp_path) == {"a": "a cat", "b": "a dog"}
    write_table(tmp_path / "metadata.jsonl", {"b.svg": "a dog"}, split=["train"])
    with pytest.raises(DataError, match=r"disagree about 'b\.svg'"):
        read_source(str(tmp_path), PrepareConfig(out="unused"))


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_fields_of_csv_may_be_long_and_have_other_delimiters(
    tmp_path: Path, delimiter: str
) -> None:
    draw(tmp_path, "a.svg", "b.svg", "c.svg", "d.svg")
    long = "very " * 100_000 + "long"
    rows = [
        ["file_name", "caption", "licence, or note"],
        ["a.svg", "a cat, a dog; a\tcow", "free"],
        ["b.svg", f'{long}\n"quoted"', ""],
        ["c.svg", "a bee"],
    ]
    with (tmp_path / "captions.csv").open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
        file.write(delimiter.join(["d.svg", "a fly", "", "", "\r\n"]))  # empty fields too many
    assert read(tmp_path) == {
        "a": "a cat, a dog; a\tcow",
        "b": f'{long}\n"quoted"',
        "c": "a bee",
        "d": "a fly",
    }
    assert csv.field_size_limit() == 131_072  # of this process, as before


def test_a_text_with_a_delimiter_is_in_quotes(tmp_path: Path) -> None:
    draw(tmp_path, "a.svg")
    (tmp_path / "captions.csv").write_text("file,caption\na.svg,a cat, asleep\n")
    with pytest.raises(DataError, match=r"captions\.csv, line 2: more fields than the 2 of the"):
        read(tmp_path)


def test_the_quarantine_has_files_that_cannot_be_read(tmp_path: Path) -> None:
    draw(tmp_path, "a.svg")
    (tmp_path / "a.txt").write_text("a cat")
    (tmp_path / os.fsdecode(b"caf\xe9.svg")).touch()
    config = PrepareConfig(out=str(tmp_path / "out"), validation_share=0, test_share=0)
    report = prepare_dataset([str(tmp_path)], config, progress=False)
    assert report.quarantined == {"unreadable_file": 1}
    (refused,) = pq.read_table(tmp_path / "out" / "quarantine.parquet").to_pylist()
    assert refused["id"] == "caf%E9"
    assert refused["detail"].endswith("is not UTF-8: rename the file")


@pytest.mark.parametrize("name", ["captions.csv", "captions.json", "captions.jsonl"])
def test_captions_that_cannot_be_read_are_named(tmp_path: Path, name: str) -> None:
    draw(tmp_path, "a.svg")
    (tmp_path / name).symlink_to("gone")
    with pytest.raises(DataError, match=rf"{name} cannot be read: No such file"):
        read_source(str(tmp_path), PrepareConfig(out="unused"))


def test_each_real_folder_is_read_once_whatever_links_lead_to_it(tmp_path: Path) -> None:
    icons = tmp_path / "icons"
    for name in ("a.svg", "deep/b.svg", ".hidden/c.svg"):
        draw(icons, name)
    draw(tmp_path / "elsewhere", "d.svg")
    (icons / "loop").symlink_to("..")
    (icons / "deep" / "self").symlink_to(".")
    (icons / "alias").symlink_to("deep")
    (icons / "shown").symlink_to(".hidden")
    assert {record.id for record in read_source(str(icons), DrawingsConfig())} == {
        "a", "deep/b", "shown/c", "loop/elsewhere/d",
    }  # fmt: skip


def test_endings_in_upper_case(tmp_path: Path) -> None:
    draw(tmp_path, "a.SVG", "b.Svg", "c.SVGZ", "d.svg", "e.SVG")
    named = {"a.svg": "a cat", "b.Svg": "a dog", "c": "a cow", "d.SVG": "a bee"}
    write_table(tmp_path / "Metadata.JSONL", named)
    (tmp_path / "e.TXT").write_text("an ant")
    expected = {"a": "a cat", "b": "a dog", "c": "a cow", "d": "a bee", "e": "an ant"}
    assert read(tmp_path) == expected
    for name, value in {
        "X.JSONL": '{"svg": "<svg/>", "text": "x"}',
        "Y.JSON": '[{"svg": "", "text": "y"}]',
    }.items():
        (tmp_path / name).write_text(value)
        assert list(read(tmp_path / name).values()) == [name[0].lower()]
    write_table(tmp_path / "Z.PARQUET", {"z": "z"}, svg=["<svg/>"])
    assert read(tmp_path / "Z.PARQUET") == {"z": "z"}


def test_two_drawings_that_differ_in_the_case_of_their_ending_stay_two(tmp_path: Path) -> None:
    draw(tmp_path, "a.svg", "a.SVG")
    write_table(tmp_path / "metadata.csv", {"a.svg": "a cat", "a.SVG": "a dog"})
    records = read_source(str(tmp_path), PrepareConfig(out="unused", captions="all"))
    assert sorted(record.caption for record in records) == ["a cat", "a dog"]


def test_the_column_of_files_comes_before_an_id(tmp_path: Path) -> None:
    draw(tmp_path, "a.svg", "b.svg")
    write_table(tmp_path / "metadata.csv", {"a.svg": "a cat", "b.svg": "a dog"}, id=[1, 2])
    assert read(tmp_path) == {"a": "a cat", "b": "a dog"}
    write_table(tmp_path / "metadata.csv", {"x": "a cat", "y": "a dog"}, key=["a", "b"])
    assert read(tmp_path, id_column="key") == {"a": "a cat", "b": "a dog"}


def test_captions_of_other_files_are_refused_before_the_first_record(tmp_path: Path) -> None:
    draw(tmp_path, "icons/a.svg")
    write_table(tmp_path / "metadata.csv", {"a.png": "a cat"})
    with pytest.raises(
        DataError, match=r"files such as 'a\.png'.*no drawing such as 'icons/a\.svg'"
    ):
        read_source(str(tmp_path), PrepareConfig(out="unused"))


def write_hub_files(folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: mit\n---\n<svg>")
    (folder / ".gitattributes").write_text("*.parquet filter=lfs")
    for name in ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"):
        (folder / name).write_text('{"default": {"features": {"svg": {}}}}')
    cache = folder / ".cache" / "huggingface" / "download"
    cache.mkdir(parents=True)
    for name in ("a.svg", "a.jsonl", "metadata.jsonl", "0.parquet"):
        (cache / name).write_text("not data")


def test_side_files_of_a_hub_are_no_data(tmp_path: Path) -> None:
    row = {"svg": SVG, "text": "a cat"}
    for kind in ("rows.jsonl", "icons.svg", "table.parquet"):
        folder = tmp_path / kind
        folder.mkdir()
        if kind == "rows.jsonl":
            (folder / kind).write_text(json.dumps(row))
        elif kind == "icons.svg":
            draw(folder, kind)
            write_table(folder / "metadata.jsonl", {kind: "a cat"})
        else:
            pq.write_table(pa.table({name: [value] for name, value in row.items()}), folder / kind)
        write_hub_files(folder)
        assert list(read(folder).values()) == ["a cat"], kind
        shutil.rmtree(folder)
    write_hub_files(tmp_path)
    with pytest.raises(DataError, match=r"holds no drawings, only \.md"):
        read_source(str(tmp_path), PrepareConfig(out="unused"))


def test_a_hub_side_file_named_as_the_source_is_read(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text(json.dumps([{"svg": SVG, "text": "a cat"}]))
    assert list(read(path).values()) == ["a cat"]
