"""A model at a URI is copied to this machine once, whole, and is the same model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.gemma.base_model import TINY, hash_weights, load_model_config, resolve_model_source
from app.gemma.config import ModelConfig
from data_pipeline.errors import DataError
from data_pipeline.fetch import fetch_folder
from data_pipeline.stream.encode import PromptEncoder

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fetch_folder.cache_clear()
    return tmp_path / "cache" / "svgscribe" / "models"


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    folder = tmp_path / "remote"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(os.urandom(30_000_000))
    return folder


def test_a_model_at_a_uri_has_the_weights_the_config_and_the_tokens_of_its_folder(
    cache: Path,
) -> None:
    uri = f"file://{TINY}"
    assert Path(resolve_model_source(uri)).is_relative_to(cache)
    model, tiny = ModelConfig(name=uri), ModelConfig(name="tiny")
    assert hash_weights(model) == hash_weights(tiny)
    assert load_model_config(model).to_dict() == load_model_config(tiny).to_dict() | {
        "_name_or_path": load_model_config(model)._name_or_path
    }
    digests = [PromptEncoder(source, "Describe:").fingerprint for source in (uri, str(TINY))]
    assert digests[0] == digests[1]
    assert len([each for each in cache.iterdir() if each.is_dir()]) == 1


def test_processes_that_start_together_share_one_copy(remote: Path, cache: Path) -> None:
    (cache / "left").mkdir(parents=True)
    code = (
        "import json, os, sys; from data_pipeline.fetch import fetch_folder; "
        "folder = fetch_folder(sys.argv[1]); "
        "print(json.dumps([folder, os.stat(folder + '/model.safetensors').st_ino]))"
    )
    command = [sys.executable, "-c", code, f"file://{remote}"]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    copies = {process.communicate()[0] for process in processes}
    assert [process.returncode for process in processes] == [0] * 4
    assert len(copies) == 1
    folder = Path(json.loads(copies.pop())[0])
    assert (folder / "model.safetensors").read_bytes() == (
        remote / "model.safetensors"
    ).read_bytes()


def test_a_copy_of_a_killed_process_is_made_again(remote: Path, cache: Path) -> None:
    whole = Path(fetch_folder(f"file://{remote}"))
    whole.rename(whole.with_suffix(".partial"))  # as if killed before the last step, and
    (whole.with_suffix(".partial") / "half").write_text("of a file")
    fetch_folder.cache_clear()
    again = Path(fetch_folder(f"file://{remote}"))
    assert again == whole
    assert sorted(file.name for file in again.iterdir()) == ["config.json", "model.safetensors"]
    assert not whole.with_suffix(".partial").exists()


def test_a_changed_model_is_copied_again_and_the_old_copy_stays(remote: Path) -> None:
    old = fetch_folder(f"file://{remote}")
    (remote / "config.json").write_text('{"new": 1}')
    fetch_folder.cache_clear()
    new = fetch_folder(f"file://{remote}")
    assert new != old
    assert Path(old, "config.json").read_text() == "{}"
    assert Path(new, "config.json").read_text() == '{"new": 1}'


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("file:///absent/model", "cannot list 'file:///absent/model'"),
        ("file://{tmp}/empty", "holds no file: give the folder of a model"),
        ("nosuch://user:pw@host/model", "cannot open 'nosuch://\\*\\*\\*@host/model'"),
    ],
)
def test_a_uri_without_a_model_is_one_sentence(tmp_path: Path, uri: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message) as error:
        fetch_folder(uri.format(tmp=tmp_path))
    assert "\n" not in str(error.value)


def test_a_cache_that_cannot_be_written_is_one_sentence(
    remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(
        DataError, match=r"cannot copy .*Not a directory.*set XDG_CACHE_HOME"
    ) as error:
        fetch_folder(f"file://{remote}")
    assert "space" not in str(error.value)


def test_a_full_disk_is_named_where_the_disk_is_full(
    remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    (remote / "large.bin").write_bytes(bytes(100_000))
    monkeypatch.setenv("XDG_CACHE_HOME", str(disk))
    try:
        with pytest.raises(DataError, match=r"cannot copy .*No space left.*: free some space"):
            fetch_folder(f"file://{remote}")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
