"""The names that a user has of a trained model: folders, checkpoints, the registry of MLflow."""

import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from app.config import Config, load_config, override_config
from app.errors import UserError
from app.jobs.initial_adapter import read_initial_adapter
from app.jobs.job_dir import SNAPSHOT
from app.jobs.trained_model import CONFIG_FILE, find_model, save_config
from app.tracking import TrackingConfig, check_tracking, open_run
from app.tracking.registry import CHECKPOINT_TAG, register_model
from tests.checkpoints import write_checkpoint_files

# MLflow's use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> TrackingConfig:
    """One database for all tests, because creating its schema takes 8 s."""
    config = TrackingConfig(uri=f"sqlite:///{tmp_path_factory.mktemp('tracking')}/mlflow.db")
    check_tracking(config)
    return config


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config(None, {"train.output_dir": str(tmp_path), "train.run_name": "job"})


def write_checkpoint(folder: Path, step: int, config: Config | None = None) -> Path:
    """Write the small files of a checkpoint into a new folder."""
    write_checkpoint_files(folder, {"state": {"step": step}})
    if config is not None:
        save_config(folder, config)
    return folder


def test_a_job_is_its_newest_checkpoint_until_it_names_its_best_one(
    config: Config, tmp_path: Path
) -> None:
    best = write_checkpoint(tmp_path / "job" / "checkpoint_4", 4, config)
    newest = write_checkpoint(tmp_path / "job" / "checkpoint_8", 8, config)
    saved = {"checkpoint_dir_name": newest.name, "metrics": {"step": 8}}
    (tmp_path / "job" / SNAPSHOT).write_text(json.dumps({"latest_checkpoint_result": saved}))
    found = find_model(f"{tmp_path}/job")
    assert (found.adapter, found.step, found.config) == (str(newest), 8, config)

    result = json.dumps({"step": 8, "adapter": str(best)})
    (tmp_path / "job" / "result.json").write_text(result)
    found = find_model(f"{tmp_path}/job")
    assert (found.adapter, found.step, found.config) == (str(best), 4, config)


def test_a_checkpoint_that_was_copied_alone_is_enough(config: Config, tmp_path: Path) -> None:
    shutil.copytree(
        write_checkpoint(tmp_path / "job" / "checkpoint_4", 4, config), tmp_path / "copy"
    )
    shutil.rmtree(tmp_path / "job")
    found = find_model(f"{tmp_path}/copy")
    assert (found.name, found.step, found.config) == (f"{tmp_path}/copy", 4, config)


def test_a_saved_config_holds_no_credentials(config: Config, tmp_path: Path) -> None:
    secret = override_config(
        config,
        {
            "model.name": "s3://key:secret@bucket/base?token=secret",
            "tracking.uri": "http://me:secret@host:5000",
        },
    )
    folder = write_checkpoint(tmp_path / "checkpoint_4", 4, secret)
    assert "secret" not in (folder / CONFIG_FILE).read_text()
    assert find_model(str(folder)).config.model.name == "s3://***@bucket/base?token=***"


def test_an_adapter_of_another_program_needs_a_config(config: Config, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "adapter", 0)
    with pytest.raises(UserError, match=r"has no config\.yaml.*--config"):
        find_model(str(folder))
    assert find_model(str(folder), config=config).config == config


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("{folder}", "holds neither adapter_config.json nor a job"),
        ("{folder}/missing", "holds neither adapter_config.json nor a job"),
        ("models:/svgscribe", "write models:/NAME@ALIAS or models:/NAME/VERSION"),
        ("models:/svgscribe@nobody", "cannot be read from tracking.uri"),
        ("models:/svgscribe/99", "cannot be read from tracking.uri"),
    ],
)
def test_a_name_of_nothing_is_one_sentence(
    tracking: TrackingConfig, tmp_path: Path, reference: str, message: str
) -> None:
    with pytest.raises(UserError, match=message) as raised:
        find_model(reference.format(folder=tmp_path), tracking)
    assert "\n" not in str(raised.value)


def test_a_missing_database_is_not_created(tmp_path: Path) -> None:
    missing = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(UserError, match=r"is no database: set tracking\.uri"):
        find_model("models:/svgscribe@champion", missing)
    assert list(tmp_path.iterdir()) == []


def test_only_a_name_that_is_not_registered_lets_a_job_start_fresh(
    tracking: TrackingConfig, config: Config, tmp_path: Path
) -> None:
    fresh = override_config(
        config,
        {
            "lora.init_from": "models:/svgscribe@champion",
            "lora.init_from_missing": "fresh",
            "tracking.uri": tracking.uri,
        },
    )
    assert read_initial_adapter(fresh) is None
    with pytest.raises(UserError, match=r"lora\.init_from=models:/\S+ is not there: correct it"):
        read_initial_adapter(override_config(fresh, {"lora.init_from_missing": "error"}))
    with pytest.raises(UserError, match="is no database"):
        read_initial_adapter(
            override_config(fresh, {"tracking.uri": f"sqlite:///{tmp_path}/none.db"})
        )


@pytest.mark.parametrize("files", [True, False])
def test_a_registered_model_is_the_checkpoint_that_was_logged(
    tracking: TrackingConfig,
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: bool,
) -> None:
    client = MlflowClient(tracking.uri)
    name = f"svgscribe-{files}"
    folder = write_checkpoint(tmp_path / "checkpoint_4", 4, config)
    run = open_run(tracking, run_name="job", job_dir=str(tmp_path))
    run.log_checkpoint(4, folder, name="best", metrics={"eval/loss": 1.0}, files=files)
    (output,) = client.get_run(str(run.run_id)).outputs.model_outputs
    client.create_registered_model(name)
    # MLflow looks up the logged model at the global tracking URI, not at the client's
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tracking.uri))
    version = client.create_model_version(name, f"models:/{output.model_id}")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    client.set_registered_model_alias(name, "champion", version.version)

    if files:
        shutil.rmtree(folder)  # the registry alone is enough
    else:
        with pytest.raises(UserError, match=f"neither files nor the tag '{CHECKPOINT_TAG}'"):
            find_model(f"models:/{name}@champion", tracking)
        client.set_logged_model_tags(output.model_id, {CHECKPOINT_TAG: str(folder)})
    for reference in (f"models:/{name}@champion", f"models:/{name}/{version.version}"):
        found = find_model(reference, tracking)
        assert (found.name, found.step, found.config) == (reference, 4, config)


def test_a_registry_that_was_moved_to_another_machine_still_has_its_models(
    tracking: TrackingConfig, config: Config, tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint_4", 4, config)
    version = register_model(tracking, folder, {"run_id": "", "adapter.sha256": "0"})

    here, there = Path(str(tracking.uri).removeprefix("sqlite:///")).parent, tmp_path / "there"
    shutil.copytree(here, there)
    (here / "mlartifacts").rename(here / "gone")  # as on a machine without that path
    try:
        with pytest.raises(UserError, match="neither files nor the tag"):
            find_model(version, tracking)
        moved = find_model(version, TrackingConfig(uri=f"sqlite:///{there}/mlflow.db"))
    finally:
        (here / "gone").rename(here / "mlartifacts")
    assert moved.adapter.startswith(f"{there}/mlartifacts/")
    assert (moved.step, moved.config) == (4, config)
