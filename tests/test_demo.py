"""`demo` removes only the folders that it made itself."""

from pathlib import Path

import pytest

from app.config import Config, load_config, make_paths_absolute
from app.errors import UserError
from app.jobs.demo import remove_earlier_demo
from app.jobs.lease import hold_lease


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with work of the user."""
    monkeypatch.chdir(tmp_path)
    for file in (
        "outputs/shards/dataset.json",
        "outputs/demo2/result.json",
        "mine/search/best.yaml",
    ):
        write(tmp_path / file)
    return tmp_path


def write(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(file.name)


def demo_config(*overrides: str) -> Config:
    return make_paths_absolute(load_config("demo", overrides))


def list_files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.shards=outputs/shards"], r"did not make \S*outputs/shards"),
        (["train.output_dir=outputs", "train.run_name=demo2"], r"did not make \S*outputs/demo2"),
        (["train.output_dir=outputs"], r"replaces \S*outputs/demo, which holds \S*demo/shards"),
        (["train.output_dir=mine", "data.shards=mine/shards"], r"did not make \S*mine/search"),
        (["train.run_name=search"], r"replaces \S*search, which holds \S*search"),
        (["train.run_name=shards"], r"replaces \S*shards, which holds \S*shards"),
        (["data.shards=outputs"], r"replaces \S*outputs, which holds"),
        (["data.shards=."], r"replaces \S*, which holds"),
        (["tracking.uri=sqlite:///outputs/demo/demo/m.db"], r"which holds \S*m\.db"),
        (["train.output_dir=s3://bucket/x"], "this machine only"),
        (["data.shards=s3://bucket/x"], "this machine only"),
    ],
)
def test_a_folder_that_demo_did_not_make_is_refused_and_nothing_is_removed(
    workspace: Path, overrides: list[str], message: str
) -> None:
    before = list_files(workspace)
    with pytest.raises(UserError, match=message) as error:
        remove_earlier_demo(demo_config(*overrides))
    assert "\n" not in str(error.value)
    assert list_files(workspace) == before


def test_an_earlier_demo_is_replaced_and_all_else_stays(workspace: Path) -> None:
    before = list_files(workspace)
    own = workspace / "outputs" / "demo"
    remove_earlier_demo(demo_config())
    for file in ("demo/result.json", "search/best.yaml", "shards/dataset.json"):
        write(own / file)
    write(own / "other" / "result.json")  # a job of the user, beside those of demo
    write(own / "mlflow.db")

    remove_earlier_demo(demo_config())
    kept = ["outputs/demo/mlflow.db", "outputs/demo/other/result.json"]
    assert list_files(workspace) == sorted([*before, *kept, "outputs/demo/demo-made.json"])
    with pytest.raises(UserError, match=r"did not make \S*outputs/demo/other"):
        remove_earlier_demo(demo_config("train.run_name=other"))


@pytest.mark.parametrize("name", ["demo", "search"])
def test_an_earlier_demo_that_still_runs_is_refused_and_nothing_is_removed(
    workspace: Path, name: str
) -> None:
    remove_earlier_demo(demo_config())
    own = workspace / "outputs" / "demo"
    write(own / "shards" / "dataset.json")
    with hold_lease(str(own / name)):
        before = list_files(workspace)
        with pytest.raises(UserError, match=rf"the job in \S*outputs/demo/{name} is running"):
            remove_earlier_demo(demo_config())
        assert list_files(workspace) == before

    remove_earlier_demo(demo_config())
    assert not (own / "shards").exists()


def test_a_link_to_other_work_is_not_followed(workspace: Path) -> None:
    remove_earlier_demo(demo_config())
    (workspace / "outputs" / "demo" / "search").symlink_to(workspace / "mine")
    with pytest.raises(UserError, match="cannot replace"):
        remove_earlier_demo(demo_config())
    assert (workspace / "mine" / "search" / "best.yaml").exists()
