"""The adapter that `evaluate` takes, and the precision of a job, from the files in its folder."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from app.__main__ import main
from app.config import Config, load_config, override_config
from app.errors import UserError
from app.jobs import precision
from app.jobs.job_dir import SNAPSHOT, find_adapter, get_job_dir, read_step
from app.jobs.precision import resolve_precision
from app.tracking.mlflow_client import read_run_id
from tests.checkpoints import write_checkpoint_files


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config(None, {"train.output_dir": str(tmp_path), "train.run_name": "job"})


def save_checkpoint(config: Config, step: int, **metrics: object) -> str:
    """Write a checkpoint as a job does, which is then the newest one."""
    folder = Path(get_job_dir(config)) / f"checkpoint_{step}"
    write_checkpoint_files(folder, {"state": {"step": step}})
    newest = {"checkpoint_dir_name": folder.name, "metrics": {"step": step, **metrics}}
    (folder.parent / SNAPSHOT).write_text(json.dumps({"latest_checkpoint_result": newest}))
    return str(folder)


def finish(config: Config, step: int, adapter: str) -> None:
    result = {"step": step, "adapter": adapter, "best_step": 4}
    (Path(get_job_dir(config)) / "result.json").write_text(json.dumps(result))


def test_an_interrupted_job_gives_its_newest_checkpoint(config: Config) -> None:
    save_checkpoint(config, 4)
    newest = save_checkpoint(config, 8)
    assert find_adapter(config) == newest
    assert read_step(newest) == 8


def test_a_finished_job_gives_its_best_checkpoint_until_it_is_continued(config: Config) -> None:
    best, _ = save_checkpoint(config, 4), save_checkpoint(config, 8)
    finish(config, 9, best)
    assert find_adapter(config) == best
    continued = save_checkpoint(config, 12)
    assert find_adapter(config) == continued


def test_a_given_adapter_may_be_a_relative_folder(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_checkpoint(config, 4)
    monkeypatch.chdir(Path(folder).parent)
    assert find_adapter(config, "checkpoint_4") == folder
    assert find_adapter(config, f"./{Path(folder).name}/../checkpoint_4/") == folder
    assert find_adapter(config, Path(folder).as_uri()) == Path(folder).as_uri()


@pytest.mark.parametrize("given", ["absent", "empty", "file:///absent", "nothing://a/b", "s3:///"])
def test_what_is_no_adapter_is_named_in_one_sentence(
    config: Config, given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"is not an adapter \(.*: give --adapter") as error:
        find_adapter(config, given)
    assert given.removeprefix("nothing").strip("/") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_deleted_checkpoint_is_named(config: Config) -> None:
    best = save_checkpoint(config, 4)
    (Path(best) / "adapter_config.json").unlink()
    with pytest.raises(UserError, match=r"checkpoint_4 is not an adapter \(no adapter_config"):
        find_adapter(config)


@pytest.mark.parametrize("name", [SNAPSHOT, "result.json", "a file as output_dir"])
def test_a_job_folder_that_cannot_be_read_is_named_in_one_sentence(
    config: Config, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(get_job_dir(config))
    if name in (SNAPSHOT, "result.json"):
        folder.mkdir()
        (folder / name).write_text('{"cut')
    else:
        folder.write_text("")
        config = override_config(config, {"train.output_dir": str(folder)})
    settings = [f"train.output_dir={config.train.output_dir}", "train.run_name=job"]

    commands = ["evaluate"] if name == "result.json" else ["evaluate", "train", "plan", "demo"]
    for command in commands:
        given = [] if command == "demo" else ["demo"]
        assert main([command, *given, "tracking.uri=null", *settings]) == 2
        message = capsys.readouterr().err
        assert message.startswith(f"svgscribe: cannot read {config.train.output_dir}")
        assert message.count("\n") == 1


@pytest.mark.parametrize("text", ["{}", '{"run_id": 3}', '{"run_id": ""', "[]", "", "null"])
def test_a_damaged_name_of_the_mlflow_run_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "mlflow_run.json").write_text(text)
    with pytest.raises(UserError, match=r"^cannot read .*mlflow_run\.json \(.*restore it"):
        read_run_id(str(tmp_path))
    assert (tmp_path / "mlflow_run.json").read_text() == text
    assert read_run_id(str(tmp_path / "absent")) is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *((SNAPSHOT, text) for text in ("[]", "", '{"latest_checkpoint_result": 3}')),
        (SNAPSHOT, '{"latest_checkpoint_result": {"checkpoint_dir_name": "a"}}'),
        (SNAPSHOT, '{"latest_checkpoint_result": {"checkpoint_dir_name": "a", "metrics": {}}}'),
        *(("result.json", text) for text in ("[]", "", '{"step": "a"}', '{"adapter": 3}')),
    ],
)
def test_a_damaged_list_of_checkpoints_is_one_sentence(
    config: Config, name: str, text: str
) -> None:
    folder = Path(get_job_dir(config))
    folder.mkdir()
    (folder / name).write_text(text)
    with pytest.raises(UserError, match=rf"^cannot read .*{name} \(.*restore it"):
        find_adapter(config)


def test_a_job_without_a_checkpoint_is_named_before_torch_and_ray_are_imported(
    tmp_path: Path,
) -> None:
    code = (
        "import sys; from app.__main__ import main; "
        "code = main(sys.argv[1:]); print(code, {'torch', 'ray', 'mlflow'} & sys.modules.keys())"
    )
    for extra, message in (
        ([], "holds no trained adapter"),
        (["--adapter", "x"], "not an adapter"),
    ):
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                code,
                "evaluate",
                "demo",
                *extra,
                f"train.output_dir={tmp_path}",
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        assert done.stdout.split(maxsplit=1) == ["2", "set()\n"]
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("has_bf16", "chosen"), [(True, "bf16"), (False, "fp32")])
def test_auto_precision_follows_the_workers_device(
    config: Config,
    has_bf16: bool,
    chosen: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert config.train.precision == "auto"
    monkeypatch.setattr(precision, "can_multiply_bf16", lambda: has_bf16)
    assert resolve_precision(config).train.precision == chosen
    assert capsys.readouterr().err.startswith(f"train.precision=auto: {chosen}, because this CPU ")
    on_gpus = override_config(config, {"scaling.use_gpu": True})
    assert resolve_precision(on_gpus).train.precision == "bf16"


def test_a_configured_precision_stays(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(config, 4, precision="fp32")
    configured = override_config(config, {"train.precision": "fp16"})
    assert resolve_precision(configured) == configured
    assert capsys.readouterr().err == ""


def test_auto_precision_continues_that_of_the_newest_checkpoint(config: Config) -> None:
    save_checkpoint(config, 4, precision="fp16")
    on_gpus = override_config(config, {"scaling.use_gpu": True})
    for job in (config, on_gpus):
        assert resolve_precision(job).train.precision == "fp16"
