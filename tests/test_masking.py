"""Credentials of every shape are masked at every exit of the process."""

import contextlib
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.__main__ import main
from app.config import load_config, make_paths_absolute
from app.errors import UserError
from app.jobs.job_dir import find_adapter
from app.storage import read_json, write_json
from app.tracking import TrackingConfig, build_ui_command
from data_pipeline.errors import DataError
from data_pipeline.masking import mask_secrets
from tests.checkpoints import write_checkpoint_files

SECRET = "wJalrXUt-SECRET"
URIS = [
    f"http://user:{SECRET}@host:5000",
    f"http://{SECRET}@host",
    f"s3://AKEY:{SECRET}/a+b@c@bucket/x",
    f"postgresql+psycopg2://u:{SECRET}@db/mlflow",
    f"s3://b/x?secret_key={SECRET}&region=eu",
    f"s3://b/x?region=eu&session_token={SECRET}",
    f"https://b/x?X-Amz-Credential={SECRET}&X-Amz-Signature={SECRET}",
    f"az://c/x?sv=1&sig={SECRET}",
    f"http://user:80{SECRET}/x@host:5000/a@b",
    f"http://host:5000/x?apikey={SECRET}",
    f"http://host:5000/x?a=1&accessKey={SECRET}",
    f"http://host/x?SecretKey={SECRET}&Token={SECRET}",
    f"http://host/x?user.password={SECRET}",
    f"mssql+pyodbc:///?odbc_connect=DRIVER%3DX%3BPWD%3D{SECRET}",
]


@pytest.mark.parametrize(
    "text",
    [
        *URIS,
        f"AWS_SECRET_ACCESS_KEY={SECRET}",
        f"HF_TOKEN={SECRET} python -m app",
        f'export HF_TOKEN="{SECRET}"',
        f"{{'env_vars': {{'HF_TOKEN': '{SECRET}'}}}}",
        f'{{"MLFLOW_TRACKING_PASSWORD":"{SECRET}"}}',
        f"Authorization: Bearer {SECRET}",
        f"{{'Authorization': 'Basic {SECRET}='}}",
        f"Basic dXNlcjpw{SECRET}",
        *(f"cannot open {uri!r}: no such host" for uri in URIS),
        *(f'{{"adapter": "{uri}", "step": 3}}' for uri in URIS),
        *(f"from {uri}, to {uri}." for uri in URIS),
    ],
)
def test_no_shape_of_a_secret_survives(text: str) -> None:
    masked = mask_secrets(text)
    assert SECRET not in masked
    assert "***" in masked
    assert mask_secrets(masked) == masked


def test_known_tokens_are_masked_without_a_name() -> None:
    assert mask_secrets("bad token hf_abcdefghijklmnopqrst!") == "bad token ***!"
    assert mask_secrets("key AKIAIOSFODNN7EXAMPLE") == "key ***"


@pytest.mark.parametrize(
    "text",
    [
        '{"uri": "http://host:5000/x", "author": "me@example.org"}',
        '["http://host:5000","me@example.org"]',
        '<svg xmlns="http://www.w3.org/2000/svg"><text>a:b@c</text></svg>',
        "Basic illustration of a cat. Basic Geometric shapes, a basic rectangle.",
        "set data.sequence_tokens=8192 evaluate.max_new_tokens=72",
        "speed/tokens_per_second=120, write lora.KEY=value",
        "s3://bucket/jobs?region=eu&endpoint_override=127.0.0.1:9000",
        "http://host/a@b http://host:5000/a@b http://[::1]:5000/a@b file:///jobs/me@home",
        "http://host?to=a@b http://host:80?to=a:b@c http://host#a@b",
        "http://host/x?monkey=1&keyboard=us&design=2&tokens=3&author=me&compass=n&max_tokens=9",
        "NUM_TOKENS=9 TOKENIZER=gemma MONKEY=1 TURN_KEYS=2",
        "RAY_ADDRESS=127.0.0.1:6379 hf_hub mlflow.parentRunId=0123",
    ],
)
def test_texts_without_a_secret_stay(text: str) -> None:
    assert mask_secrets(text) == text


@pytest.mark.parametrize("kind", [UserError, DataError])
def test_an_error_has_no_secret_in_any_process(kind: type[Exception]) -> None:
    error = kind(f"cannot open s3://k:{SECRET}@bucket")
    assert str(error) == "cannot open s3://***@bucket"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert SECRET not in repr(error)


def test_a_report_has_no_secret(tmp_path: Path) -> None:
    file = str(tmp_path / "result.json")
    write_json(file, {"adapter": f"s3://k:{SECRET}@bucket/job/checkpoint_1", "step": 3})
    assert read_json(file) == {"adapter": "s3://***@bucket/job/checkpoint_1", "step": 3}


def test_the_adapter_of_a_report_without_credentials_is_found_in_the_jobs_folder(
    tmp_path: Path,
) -> None:
    job_dir = tmp_path / "job"
    adapter = f"s3://k:{SECRET}@bucket/job/checkpoint_1?secret_key={SECRET}"
    write_json(str(job_dir / "result.json"), {"adapter": adapter})
    write_checkpoint_files(job_dir / "checkpoint_1", {"state": {"step": 1}})
    config = load_config(None, {"train.output_dir": str(tmp_path), "train.run_name": "job"})
    assert find_adapter(config) == str(job_dir / "checkpoint_1")


def test_a_value_that_was_printed_without_its_credentials_is_refused() -> None:
    config = load_config("demo", [f"data.shards={mask_secrets(URIS[2])}"])
    with pytest.raises(UserError, match=r"^data\.shards=.*give the whole value"):
        make_paths_absolute(config)


@pytest.fixture
def handlers() -> Iterator[None]:
    """Restore the signal handlers that the command line sets."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


FTP = f"ftp://u:{SECRET}@127.0.0.1/x"
NO_TRACKING = "tracking.uri=null"


@pytest.mark.parametrize(
    "arguments",
    [
        [
            "config",
            "show",
            "demo",
            *(f"data.shards={uri}" for uri in URIS[:1]),
            f"model.name={FTP}",
        ],
        ["ui", "demo", f"tracking.uri=http://u:{SECRET}@host"],
        ["train", "demo", f"tracking.uri=ftp://u:{SECRET}@host"],
        ["train", "demo", f"tracking.uri=http://u:{SECRET}@127.0.0.1:9"],
        ["train", "demo", NO_TRACKING, f"data.shards={FTP}"],
        ["evaluate", "demo", NO_TRACKING, f"train.output_dir={FTP}"],
        ["train", "demo", FTP],
        ["train", f"{FTP}.yaml"],
        ["train", "demo", f"={FTP}"],
        ["train", "demo", f"train.max_steps={FTP}"],
        ["demo", f"train.output_dir={FTP}"],
        ["prepare", FTP, "--out", "out"],
        ["prepare", "scenes:9", "--out", FTP],
    ],
)
@pytest.mark.usefixtures("handlers")
def test_a_command_prints_no_secret(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with contextlib.suppress(SystemExit):  # of the argument parser
        main(arguments)
    printed = capsys.readouterr()
    assert "***" in printed.out + printed.err
    assert SECRET not in printed.out + printed.err


def test_the_ui_command_of_a_database_has_no_secret(free_port: int) -> None:
    config = TrackingConfig(uri=f"postgresql://u:{SECRET}@db/mlflow")
    assert SECRET not in " ".join(build_ui_command(config, port=free_port))
