"""An output that cannot be written is refused in one sentence, before the work of a command."""

from pathlib import Path

import pytest

from app.errors import UserError
from app.storage import require_new_folder
from tests.command_line import refuse_command

UNWRITABLE = ("/proc", "/dev/null")  # root, too, can create no file there
COMMANDS = {
    "prepare": ["prepare", "scenes:20", "--out", "{at}/shards"],
    "prepare --json": ["prepare", "scenes:20", "--out", "{tmp}/shards", "--json", "{at}/a.json"],
    "tune --json": ["tune", "demo", "--json", "{at}/a.json"],
    "evaluate --json": ["evaluate", "demo", "--json", "{at}/a.json"],
    "report": ["report", "{tmp}", "--out", "{at}/report.html"],
}


@pytest.mark.parametrize("at", UNWRITABLE)
@pytest.mark.parametrize("name", COMMANDS)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, name: str, at: str
) -> None:
    message = refuse_command(*(part.format(at=at, tmp=tmp_path) for part in COMMANDS[name]))
    assert f"{at}/" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("taken", ["file", "file/below", "/dev/null", "filled"])
def test_a_new_folder_takes_no_place_of_another_file(tmp_path: Path, taken: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "filled").mkdir()
    (tmp_path / "filled" / "file").write_text("mine")
    with pytest.raises(UserError, match=r"^--out \S+ (is there already|cannot be written)"):
        require_new_folder(tmp_path / taken)
    for new in ("new", "new/deep/er"):
        require_new_folder(tmp_path / new)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "filled"]


def test_prepare_neither_replaces_a_file_nor_deletes_a_folder_that_it_has_not_made(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("mine")
    notes = tmp_path / "shards.partial" / "notes" / "a.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    for name, named in (("file", "file is a file"), ("shards", "shards.partial holds notes")):
        message = refuse_command("prepare", "scenes:20", "--out", str(tmp_path / name))
        assert named in message
    assert notes.read_text() == (tmp_path / "file").read_text() == "mine"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "shards.partial"]
