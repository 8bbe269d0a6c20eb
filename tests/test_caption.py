"""Captions of the drawings of any source: kills, refusals, other inputs, both formats."""

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient

from app.__main__ import main
from app.config import Config, load_config
from app.errors import UserError
from app.jobs import caption
from app.jobs.caption_journal import CaptionedDrawing, Journal, require_new_file
from app.jobs.caption_windows import MAX_WINDOW_BYTES, Drawing, split_into_windows
from app.tracking import check_tracking, open_run
from data_pipeline.config import DrawingsConfig
from data_pipeline.sources.phosphor import read_phosphor
from data_pipeline.sources.read import count_drawings, read_source
from tests.tiny import save_trained_model

# MLflow's use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
ROOT = Path(__file__).parent.parent
SVG = '<svg viewBox="0 0 24 24"><path d="M1.5,3H12V6z"/></svg>'
NUM_ICONS = 200


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("mlflow")
    return load_config(
        "demo",
        {
            "tracking.uri": f"sqlite:///{folder}/mlflow.db",
            "train.precision": "fp32",
            "evaluate.max_new_tokens": 3,
            "evaluate.generation_batch_size": 5,
            "evaluate.max_cache_tokens": 1_000_000,
        },
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, config: Config) -> str:
    return save_trained_model(tmp_path_factory.mktemp("checkpoint"), config)


@pytest.fixture(scope="module")
def icons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of icons without captions."""
    folder = tmp_path_factory.mktemp("icons")
    records = list(read_phosphor())
    for record in records[:: len(records) // NUM_ICONS][:NUM_ICONS]:
        (folder / f"{record.id.replace('/', '-')}.svg").write_bytes(record.svg)
    assert len(list(folder.iterdir())) == NUM_ICONS
    return folder


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Caption in this process: the Ray that all tests share sets RAY_ADDRESS."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def run(*arguments: object) -> int:
    return main(["caption", *map(str, arguments)])


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_killed_run_of_the_registered_champion_continues_with_every_icon_once(
    config: Config,
    checkpoint: str,
    icons: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # register
    check_tracking(config.tracking)
    client = MlflowClient(config.tracking.uri)
    job = open_run(config.tracking, run_name="job", job_dir=str(tmp_path))
    job.log_checkpoint(7, Path(checkpoint), name="best", metrics={"eval/loss": 1.0}, files=True)
    (output,) = client.get_run(str(job.run_id)).outputs.model_outputs
    client.create_registered_model("svgscribe")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(config.tracking.uri))
    version = client.create_model_version("svgscribe", f"models:/{output.model_id}")
    client.set_registered_model_alias("svgscribe", "champion", version.version)

    # kill a process that has written some captions
    out = tmp_path / "captions.jsonl"
    journal = tmp_path / "captions.jsonl.partial"
    arguments = [icons, "--model", "models:/svgscribe@champion", "--out", out]
    arguments.append(f"tracking.uri={config.tracking.uri}")
    child = os.fork()
    if child == 0:
        run(*arguments)
        os._exit(1)  # it was not killed
    while not journal.exists() or journal.read_bytes().count(b"\n") < 30:
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    num_kept = journal.read_bytes().count(b"\n") - 1
    assert num_kept < NUM_ICONS
    assert num_kept % 5 == 0  # each batch of the config is written when it is finished
    assert not out.exists()
    with journal.open("ab") as file:
        file.write(b'{"source": "torn')

    # continue
    assert run(*arguments) == 0
    captured = capsys.readouterr()
    assert f"{num_kept} drawings are done already" in captured.err
    report = json.loads(captured.out)
    assert (report["captions"], report["refused"]) == (NUM_ICONS, {})
    lines = read_lines(out)
    assert [line["id"] for line in lines] == [name[:-4] for name in sorted(os.listdir(icons))]
    assert all(line["caption"] and line["error"] is None for line in lines)
    assert not journal.exists()

    # the first window again, from the checkpoint itself
    again = tmp_path / "again.jsonl"
    first = [icons / name for name in sorted(os.listdir(icons))[:20]]
    assert run(*first, "--model", checkpoint, "--out", again) == 0
    assert [line["caption"] for line in read_lines(again)] == [
        line["caption"] for line in lines[:20]
    ]


@pytest.fixture
def mixed(icons: Path, tmp_path: Path) -> Path:
    """A folder with a good, a broken and a long drawing."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "broken.svg").write_text("<svg")
    (folder / "good.svgz").write_bytes(gzip.compress(SVG.encode()))
    (folder / "long.svg").write_text(SVG.replace("H12", "l1 2 3 4" * 400))
    (folder / "vanished.svg").symlink_to("gone")
    return folder


@pytest.mark.parametrize("name", ["captions.jsonl", "captions.parquet"])
def test_refused_drawings_keep_their_place_with_a_reason(
    checkpoint: str, mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    out = tmp_path / name
    assert run(mixed, mixed / "good.svgz", "--model", checkpoint, "--out", out) == 0
    rows = read_lines(out) if name.endswith("l") else pq.read_table(out).to_pylist()
    assert [(row["source"], row["id"], row["caption"] is None) for row in rows] == [
        (str(mixed), "broken", True),
        (str(mixed), "good", False),
        (str(mixed), "long", True),
        (str(mixed), "vanished", True),
        (str(mixed / "good.svgz"), "good", False),
    ]
    assert rows[0]["error"].startswith("not_xml: ")
    assert "more than data.sequence_tokens=768" in rows[2]["error"]
    reason = f"unreadable_file: {mixed}/vanished.svg cannot be read: No such file or directory"
    assert rows[3]["error"] == reason
    assert rows[1]["caption"] == rows[4]["caption"]
    report = json.loads(capsys.readouterr().out)
    assert report["captions"] == 2
    assert report["refused"] == {"not_xml": 1, "too_long": 1, "unreadable_file": 1}


def test_a_long_drawing_is_cut_where_the_training_cut_it(
    checkpoint: str, mixed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "captions.jsonl"
    settings = ["data.too_long=truncate", "evaluate.max_new_tokens=2"]
    assert (
        run(settings[0], mixed / "long.svg", "--model", checkpoint, "--out", out, settings[1]) == 0
    )
    (line,) = read_lines(out)
    assert line["caption"]


def test_no_caption_at_all_is_an_error(
    checkpoint: str, mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "captions.jsonl"
    assert run(mixed / "broken.svg", "--model", checkpoint, "--out", out) == 2
    assert "none of 1 drawings got a caption" in capsys.readouterr().err
    assert len(read_lines(out)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["{icons}", "--out", "{folder}/a.csv"],
            "is not a local file that ends in .jsonl or .parquet",
        ),
        (["{icons}", "--out", "s3://bucket/a.jsonl"], "is not a local file"),
        (["{icons}", "--out", "{folder}/no/a.jsonl"], "its folder does not exist"),
        (["{icons}", "--out", "{folder}/old.jsonl"], "exists already"),
        (["{icons}", "--out", "/proc/a.jsonl"], "--out /proc/a.jsonl cannot be written ("),
        (["{icons}", "--out", "/proc/self/fdinfo/a.jsonl"], "cannot be written ("),
        (["{icons}", "--out", "{folder}/" + "a" * 300 + ".jsonl"], "(File name too long)"),
        (["{icons}", "--out", "{folder}/" + "a" * 245 + ".jsonl"], "(File name too long)"),
        (["{folder}/no.svg", "--out", "{folder}/a.jsonl"], "does not exist"),
        (["{icons}", "--out", "{folder}/a.jsonl", "--svg-column"], "expected one argument"),
    ],
)
def test_a_wrong_argument_is_one_sentence_and_changes_nothing(
    checkpoint: str,
    icons: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "old.jsonl").write_text("old")
    filled = [argument.format(icons=icons, folder=tmp_path) for argument in arguments]
    try:
        code = run("--model", checkpoint, *filled)
    except SystemExit as error:  # argparse
        code = error.code
    assert code == 2
    assert message in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["old.jsonl"]


ROWS = [CaptionedDrawing(i, "in", f"{i}", f"caption {i}", None) for i in range(5)]
DRAWINGS = [Drawing(i, "in", f"{i}", SVG) for i in range(5)]


@given(batches=st.permutations(range(40)).map(lambda n: [n[:7], n[7:21], n[21:]]))
def test_any_order_of_finished_drawings_becomes_the_order_of_the_inputs(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[int]]
) -> None:
    out = tmp_path_factory.mktemp("journal") / "a.jsonl"
    with Journal(out, {"a": 1}) as journal:
        for batch in batches:
            journal.append([CaptionedDrawing(i, "in", f"{i}", None, "no") for i in batch])
        journal.finish()
    row = {"source": "in", "caption": None, "error": "no"}
    assert read_lines(out) == [{**row, "id": f"{i}"} for i in range(40)]


@given(done=st.permutations(range(5)), num_done=st.integers(0, 5))
def test_a_continued_run_captions_the_drawings_that_are_missing(
    tmp_path_factory: pytest.TempPathFactory, done: list[int], num_done: int
) -> None:
    out = tmp_path_factory.mktemp("journal") / "a.jsonl"
    records = iter(DRAWINGS)
    with Journal(out, {"a": 1}) as journal:
        journal.append([ROWS[i] for i in done[:num_done]])
        missed = caption._skip_captioned(records, journal, caption.CaptionProgress(None))
    assert [record.number for record in [*missed, *records]] == sorted(done[num_done:])


def test_a_journal_refuses_other_settings_other_inputs_and_a_second_process(
    tmp_path: Path,
) -> None:
    out = tmp_path / "a.jsonl"
    # a journal without drawings is no reason to refuse, and an error before them leaves none
    with (
        pytest.raises(UserError, match="no model"),
        Journal(out, {"data.too_long": "no"}) as journal,
    ):
        raise UserError("no model")
    assert list(tmp_path.iterdir()) == []
    with Journal(out, {"data.too_long": "other"}):
        pass

    with Journal(out, {"data.too_long": "drop"}) as journal:
        journal.append(ROWS[:3])
        with pytest.raises(UserError, match="another process writes"):
            Journal(out, {"data.too_long": "drop"})
    with pytest.raises(UserError, match=r"data\.too_long was 'drop' and is 'truncate'"):
        Journal(out, {"data.too_long": "truncate"})

    records = iter([DRAWINGS[0], DRAWINGS[1]._replace(id="new")])
    with (
        Journal(out, {"data.too_long": "drop"}) as journal,
        pytest.raises(UserError, match="drawing 2 is 'new', but '1' in"),
    ):
        caption._skip_captioned(records, journal, caption.CaptionProgress(None))


@pytest.mark.parametrize(
    "text",
    [
        b"my notes",
        b"my notes\n",
        b"my notes\nsecond line without an end",
        b"[]\n",
        b'{"other": 1}\n',
        b'{"a": 1',  # cut inside a header, but of another run
        b'{"b": 1}\n{"number": 0}\n{"numb',
        b"\0" * 70_000,
    ],
)
def test_a_file_of_the_user_beside_the_output_is_never_changed(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "a.jsonl.partial"
    file.write_bytes(text)
    with pytest.raises(UserError, match="remove"):
        Journal(tmp_path / "a.jsonl", {"a": 2})
    assert file.read_bytes() == text


@pytest.mark.parametrize("num_bytes", range(9))
def test_a_journal_cut_inside_its_header_begins_again(tmp_path: Path, num_bytes: int) -> None:
    (tmp_path / "a.jsonl.partial").write_bytes(b'{"a": 1}\n'[:num_bytes])
    with Journal(tmp_path / "a.jsonl", {"a": 1}) as journal:
        journal.append(ROWS[:1])
        assert list(journal.read()) == ROWS[:1]


@pytest.mark.parametrize(
    "text", [b"x\n{}\n", b"3\n{}\n", b'{"a": 1}\n{"a": 1}\n', b'{"a": 1}\n]\n']
)
def test_a_file_that_is_no_journal_is_named_and_stays(tmp_path: Path, text: bytes) -> None:
    with Journal(tmp_path / "a.jsonl", {"a": 1}) as journal:
        journal.append(ROWS)
    journal.path.write_bytes(text)
    with (
        pytest.raises(UserError, match="is not a journal of `caption`, or is damaged: remove it"),
        Journal(tmp_path / "a.jsonl", {"a": 1}) as journal,
    ):
        list(journal.read())
    assert journal.path.read_bytes() == text


@given(cut=st.integers(0, 400))
def test_a_journal_cut_anywhere_keeps_whole_lines(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    out = tmp_path_factory.mktemp("journal") / "a.jsonl"
    with Journal(out, {"a": 1}) as journal:
        journal.append(ROWS)
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[:cut])
    with Journal(out, {"a": 1}) as journal:
        kept = list(journal.read())
        assert kept == ROWS[: max(0, whole[:cut].count(b"\n") - 1)]
        journal.append(ROWS[len(kept) :])
    assert journal.path.read_bytes() == whole


def write_parquet(folder: Path) -> list[str]:
    pq.write_table(pa.table({"id": ["a", "b"], "svg": [SVG, SVG]}), folder / "drawings.parquet")
    return ["a", "b"]


def write_json(folder: Path) -> list[str]:
    (folder / "drawings.jsonl").write_text(json.dumps({"svg": SVG}) + "\n")
    return ["drawings:0"]


def write_tar(folder: Path) -> list[str]:
    with tarfile.open(folder / "drawings.tar", "w") as archive:
        header = tarfile.TarInfo("a.svg")
        header.size = len(SVG)
        archive.addfile(header, io.BytesIO(SVG.encode()))
    return ["a"]


def write_folder(folder: Path) -> list[str]:
    (folder / "deep").mkdir()
    (folder / "deep" / "a.SVG").write_text(SVG)
    (folder / "captions.csv").write_text("no captions\n")
    return ["deep/a"]


@pytest.mark.parametrize("write", [write_parquet, write_json, write_tar, write_folder])
@pytest.mark.parametrize("prefix", ["", "file://"])
def test_drawings_of_every_format_need_no_captions(tmp_path: Path, write: Any, prefix: str) -> None:
    ids = write(tmp_path)
    spec = f"{prefix}{tmp_path}"
    records = list(read_source(spec, DrawingsConfig()))
    assert [record.id for record in records] == ids
    assert all(str(record.svg) == SVG or record.svg == SVG.encode() for record in records)
    assert count_drawings(spec) == (len(ids) if write in (write_parquet, write_folder) else None)


@given(sizes=st.lists(st.integers(0, 3_000_000), max_size=30), num_drawings=st.integers(1, 8))
def test_windows_hold_every_drawing_once_and_few_bytes(sizes: list[int], num_drawings: int) -> None:
    body = "x" * 3_000_000
    drawings = [Drawing(i, "in", str(i), body[:size]) for i, size in enumerate(sizes)]
    pulled = 0

    def pull() -> Any:
        nonlocal pulled
        for drawing in drawings:
            pulled += 1
            yield drawing

    seen = []
    for window in split_into_windows(pull(), num_drawings):
        seen += window
        assert pulled == len(seen)  # nothing is read ahead
        assert len(window) <= num_drawings
        assert sum(len(drawing.svg) for drawing in window[:-1]) < MAX_WINDOW_BYTES
    assert seen == drawings


def test_an_output_in_capitals_is_accepted(tmp_path: Path) -> None:
    assert require_new_file(f"{tmp_path}/A.PARQUET") == tmp_path / "A.PARQUET"


def test_checks_need_neither_torch_nor_ray_nor_mlflow() -> None:
    code = "import sys, app.jobs.caption; print({'torch', 'ray', 'mlflow'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
