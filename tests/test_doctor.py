"""`doctor` on a ready machine, on a machine where everything is wrong, and on a cluster."""

import importlib.metadata
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import ray

from app.config import Config, config_to_yaml, load_config, override_config
from app.gemma.base_model import TINY
from app.gemma.config import ModelConfig
from app.jobs.cluster import ConnectedRay
from app.jobs.doctor import run_check, run_doctor
from app.jobs.doctor_checks import check_model, check_packages, check_ray
from data_pipeline.config import PrepareConfig
from data_pipeline.prepare.dataset import prepare_dataset

CHECKS = {
    "packages",
    "gpu",
    "calibration",
    "bitsandbytes",
    "storage",
    "shards",
    "model",
    "tracking",
    "ray",
}


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A config that can run here."""
    folder = tmp_path_factory.mktemp("doctor")
    prepare_dataset(["scenes:40"], PrepareConfig(out=str(folder / "shards"), validation_share=0.2))
    return load_config(
        None,
        {
            "data.shards": str(folder / "shards"),
            "train.output_dir": str(folder / "not" / "yet" / "there"),
            "tracking.uri": None,
            "scaling.num_workers": 1,
        },
    )


def parse_lines(output: str) -> list[tuple[str, str, str]]:
    """(status, check, text) of every line."""
    lines = []
    for line in output.splitlines():
        status, check, text = line.split(maxsplit=2)
        lines.append((status, check, text))
    return lines


def test_a_ready_machine(
    ready: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert run_doctor(ready) == 0
    lines = parse_lines(capsys.readouterr().out)
    assert {status for status, _, _ in lines} == {"ok"}
    assert {check for _, check, _ in lines} == CHECKS
    counts = next(text for _, check, text in lines if check == "shards")
    assert sum(map(int, re.findall(r"(\d+) (?:training|validation|test)", counts))) == 40
    assert not Path(ready.train.output_dir).parents[1].exists()  # the check leaves nothing


def test_everything_that_is_wrong_is_named_with_its_fix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    (tmp_path / "file").touch()
    (tmp_path / "model").mkdir()
    config = load_config(
        None,
        {
            "data.shards": str(tmp_path / "nothing"),
            "train.output_dir": str(tmp_path / "file" / "out"),
            "tracking.uri": "http://127.0.0.1:1",
            "tracking.timeout_seconds": 2,
            "model.name": str(tmp_path / "model"),
        },
    )
    assert run_doctor(config) == 1
    failed = {
        check: text
        for status, check, text in parse_lines(capsys.readouterr().out)
        if status == "FAIL"
    }
    assert failed.keys() == {"storage", "shards", "model", "tracking", "ray"}
    assert f"train.output_dir={tmp_path / 'file' / 'out'} is not writable" in failed["storage"]
    assert "python -m app prepare" in failed["shards"]
    assert "no config.json" in failed["model"]
    assert "tracking.uri='http://127.0.0.1:1' cannot be used" in failed["tracking"]
    assert "cannot join the Ray cluster at RAY_ADDRESS=127.0.0.1:1" in failed["ray"]


def test_a_cluster_is_joined_and_its_dashboard_is_tried_without_a_token(
    ready: Config, ray_local: ConnectedRay, tmp_path: Path
) -> None:
    file = tmp_path / "large.yaml"
    file.write_text(config_to_yaml(override_config(ready, {"scaling.num_workers": 8})))
    code = (
        "import sys; from app.config import load_config; from app.jobs.doctor import run_doctor; "
        "sys.exit(run_doctor(load_config(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, file], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1, done.stderr
    texts = {(status, text) for status, check, text in parse_lines(done.stdout) if check == "ray"}
    shortage = (
        "4 CPU and 0 GPU cannot hold 8 training workers of 0.5 CPU each and a data task of 0.5 CPU"
    )
    fixes = "scaling.num_workers=7 or scaling.cpus_per_worker=0.43"
    assert texts == {
        (
            "ok",
            f"joined {ray_local.address}, which runs Ray {ray.__version__} as this machine does",
        ),
        ("ok", f"the dashboard {ray_local.dashboard} refuses clients without a token"),
        ("FAIL", f"{shortage}; set {fixes}"),
    }


def test_an_empty_ray_address_is_as_if_it_were_not_set(
    ready: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    for address in ("", "local"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        (_, text), *others = check_ray(ready)
        assert "each command starts a private Ray" in text
        assert {status for status, _ in others} == {"ok"}


def test_a_model_at_a_uri_is_listed_and_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    uris = (f"file://{TINY}", f"file://{TINY.parent}")
    lines = [next(iter(check_model(Config(model=ModelConfig(name=uri))))) for uri in uris]
    assert [status for status, _ in lines] == ["ok", "FAIL"]
    assert "each node of the job copies" in lines[0][1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("version", "strategy", "problem"),
    [
        ("2.10.0", "ddp", "torch is 2.10.0, needed: <2.14,>=2.11: run pip install"),
        ("2.14.1", "ddp", "torch is 2.14.1, needed: <2.14,>=2.11: run pip install"),
        ("2.11.0", "ddp", None),
        ("2.11.0", "fsdp", "parallel.strategy=fsdp shards 4-bit weights, which needs torch 2.13"),
        ("2.13.0", "fsdp", None),
    ],
)
def test_the_range_of_torch_is_named(
    version: str, strategy: str, problem: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata,
        "version",
        lambda name: version if name == "torch" else installed(name),
    )
    lines = list(check_packages(load_config(None, {"parallel.strategy": strategy})))
    failed = [text for status, text in lines if status == "FAIL"]
    assert failed == [] if problem is None else failed[0].startswith(problem)


def test_a_check_that_hangs_or_breaks_is_a_failure() -> None:
    def hangs(config: Config) -> list[tuple[str, str]]:
        threading.Event().wait()
        return []

    def breaks(config: Config) -> list[tuple[str, str]]:
        raise RuntimeError("s3://key:secret@bucket\nis away")

    assert run_check(hangs, Config(), 0.05) == [
        ("FAIL", "no answer in 0.05 s: check the network, the disk or the server")
    ]
    assert run_check(breaks, Config(), 5) == [("FAIL", "RuntimeError: s3://***@bucket is away")]
