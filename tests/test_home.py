"""`~` in paths: the home folder of a user, and no folder of that name."""

from pathlib import Path

import pytest

from app.__main__ import main
from data_pipeline.home import expand_home


@pytest.mark.parametrize(
    "arguments",
    [
        ["config", "show", "~nouser/a.yaml"],
        ["plan", "demo", "train.output_dir=~nouser/x"],
        ["plan", "demo", "data.shards=~nouser/x"],
        ["prepare", "scenes:9", "--out", "~nouser/x"],
        ["prepare", "~nouser/x", "--out", "x"],
        ["prepare", "scenes:9", "--out", "x", "--json", "~nouser/x"],
    ],
)
def test_a_home_folder_of_no_user_is_refused(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code: object = main(arguments)
    except SystemExit as error:  # of the argument parser
        code = error.code
    assert code == 2
    assert "no user 'nouser'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert expand_home("a~b") == "a~b"
    assert expand_home("~") == str(Path.home())
