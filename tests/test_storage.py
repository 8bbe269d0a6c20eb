"""JSON files of a job, and masked credentials."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.errors import UserError
from app.storage import join_uri, read_json, write_json, write_text
from data_pipeline.masking import mask_secrets


def test_a_written_file_is_read_back_and_replaced(tmp_path: Path) -> None:
    file = join_uri(str(tmp_path), "new folder", "run.json")
    assert read_json(file) is None
    write_json(file, {"run_id": "a", "text": "größer"})
    assert read_json(file) == {"run_id": "a", "text": "größer"}
    write_json(file, {"run_id": "b"})
    assert read_json(file) == {"run_id": "b"}
    assert os.listdir(Path(file).parent) == ["run.json"]


def test_text_is_written_as_utf8(tmp_path: Path) -> None:
    write_text(join_uri(str(tmp_path), "page.html"), "größer\n")
    assert (tmp_path / "page.html").read_bytes() == b"gr\xc3\xb6\xc3\x9fer\n"


def test_uri_and_relative_path_mean_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_json("outputs/run.json", {"a": 1})
    assert read_json(f"file://{tmp_path}/outputs/run.json") == {"a": 1}


def test_a_reader_never_sees_half_a_file_while_writers_are_killed(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    write_json(str(file), {"items": []})
    writer = (
        "import sys, itertools; from app.storage import write_json\n"
        "print('on', flush=True)\n"
        "for n in itertools.count(): write_json(sys.argv[1], {'items': [n] * 20_000})"
    )
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", writer, str(file)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        with process.stdout:
            process.stdout.readline()
            seen = [json.loads(file.read_bytes())["items"] for _ in range(60)]
            process.kill()
            process.wait()
        assert all(len(set(items)) <= 1 for items in seen)
        assert len(read_json(str(file))["items"]) in (0, 20_000)  # type: ignore[index]


@pytest.mark.parametrize("text", [b'{"run_id": ', b"", b"[]", b"null", b"3", b'"a"', b'"\xff"'])
def test_a_damaged_file_is_named_and_not_taken_for_an_absent_one(
    tmp_path: Path, text: bytes
) -> None:
    file = tmp_path / "run.json"
    file.write_bytes(text)
    with pytest.raises(UserError, match=r"^cannot read .*run\.json \(.*restore it") as error:
        read_json(str(file))
    assert "\n" not in str(error.value)
    assert file.read_bytes() == text


@pytest.mark.parametrize(
    ("uri", "parts", "expected"),
    [
        ("outputs", ("job", "run.json"), "outputs/job/run.json"),
        ("/outputs/", ("run.json",), "/outputs/run.json"),
        ("/odd?name", ("run.json",), "/odd?name/run.json"),
        ("s3://bucket/jobs/", ("a", "b.json"), "s3://bucket/jobs/a/b.json"),
        ("s3://bucket?region=eu", ("a", "b.json"), "s3://bucket/a/b.json?region=eu"),
    ],
)
def test_join(uri: str, parts: tuple[str, ...], expected: str) -> None:
    assert join_uri(uri, *parts) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://user:pw@host:5000/x", "http://***@host:5000/x"),
        ("s3://KEY:se/cr+et@bucket/x", "s3://***@bucket/x"),
        ("postgresql+psycopg2://u:p@ss@db/mlflow", "postgresql+psycopg2://***@db/mlflow"),
        ("https://hf_token@hub/model", "https://***@hub/model"),
        ("s3://b/x?secret_key=abc&region=eu", "s3://b/x?secret_key=***&region=eu"),
        ("az://c/x?sv=1&SIG=abc", "az://c/x?sv=1&SIG=***"),
        ("a: http://u:p@h/1 b: http://u:q@h/2", "a: http://***@h/1 b: http://***@h/2"),
        ("http://host:5000/x", "http://host:5000/x"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("mail me@example.org, 3:1 @ 5", "mail me@example.org, 3:1 @ 5"),
    ],
)
def test_mask(text: str, expected: str) -> None:
    assert mask_secrets(text) == expected
