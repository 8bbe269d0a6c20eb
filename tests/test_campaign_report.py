"""The report of a search on a real MLflow: its artifacts, its pages in Chromium, its model."""

import json
import math
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from campaigns import LR, RANK, SPACE, draw_campaign
from chromium import CHROMIUM, Page, open_chromium
from mlflow import MlflowClient
from tiny import save_trained_model

from app.config import Config, load_config
from app.jobs.campaign_report import STATE, report_campaign
from app.jobs.job_dir import find_lowest_checkpoint
from app.tracking import (
    Tracker,
    TrackingConfig,
    build_comparison_link,
    build_ui_command,
    check_tracking,
    describe_ui_command,
    open_run,
)
from tune.outcome import SearchResult, TrialOutcome, find_best

# MLflow's use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("campaign")
    config = load_config(
        "demo",
        {
            "tracking.uri": f"sqlite:///{folder}/mlflow.db",
            "train.output_dir": str(folder),
            "train.run_name": "search",
            "quantization.kind": "none",
            "search.space": {path: domain.model_dump() for path, domain in SPACE.items()},
        },
    )
    check_tracking(config.tracking)
    return config


def track_campaign(config: Config, folder: Path) -> tuple[Tracker, SearchResult]:
    """Write the runs of a drawn campaign through the tracking client, as the trials do."""
    parent = open_run(config.tracking, run_name="search", job_dir=str(folder))
    parent.log_params({LR: 1e-4})
    outcomes = []
    for each in draw_campaign(12):
        run = open_run(
            config.tracking, run_name=each.name, job_dir=str(folder / "trials" / each.name),
            parent_run_id=parent.run_id, tags={STATE: each.state, "device": "1 × CPU"},
        )  # fmt: skip
        run.log_params({**each.params, "log10_lr": round(math.log10(each.params[LR]), 3)})
        for step, loss in each.curve:
            run.log_metrics(int(step), {"eval/loss": loss})
        run.finish("KILLED" if each.state == "pruned" else "FINISHED")
        trial_id = each.name.removeprefix("trial-")
        outcomes.append(
            TrialOutcome(trial_id, dict(each.params), each.state, each.step, each.loss, None)
        )
    outcomes.append(TrialOutcome("bad", {LR: 1.0, RANK: 8}, "failed", 0, None, "a reason"))
    return parent, SearchResult(tuple(outcomes), find_best(outcomes), "all")


@pytest.fixture(scope="module")
def campaign(config: Config) -> tuple[Tracker, SearchResult]:
    return track_campaign(config, Path(config.train.output_dir, "search"))


def read_artifact(tracker: Tracker, config: Config, name: str) -> str:
    return Path(
        MlflowClient(config.tracking.uri).download_artifacts(str(tracker.run_id), name)
    ).read_text()


def test_a_finished_search_logs_its_table_its_figures_and_its_best_checkpoint(
    config: Config, campaign: tuple[Tracker, SearchResult], capsys: pytest.CaptureFixture[str]
) -> None:
    parent, result = campaign
    job_dir = Path(config.train.output_dir, "search")
    client = MlflowClient(config.tracking.uri)
    run_file = job_dir / "trials" / f"trial-{result.best.trial_id}" / "mlflow_run.json"
    run_id = json.loads(run_file.read_text())["run_id"]
    for number, (loss, owner) in enumerate(
        ((1.5, run_id), (1.25, run_id), (1.75, run_id), (0.5, "of another trial"))
    ):
        folder = job_dir / "tune" / "trial" / f"checkpoint_{number}"
        save_trained_model(folder, config)
        state = {"state": {"step": 10 * number}, "eval_loss": loss, "run_id": owner}
        (folder / "state.json").write_text(json.dumps(state))
    found = find_lowest_checkpoint(str(job_dir), run_id)
    assert found is not None
    assert found.folder == str(job_dir / "tune" / "trial" / "checkpoint_1")
    assert found.metrics == {"step": 10, "eval_loss": 1.25}
    assert find_lowest_checkpoint(str(job_dir / "never"), run_id) is None

    paragraph = report_campaign(config, str(job_dir), result, parent)
    again = report_campaign(config, str(job_dir), result, parent)

    printed = capsys.readouterr().out
    table = json.loads(read_artifact(parent, config, "leaderboard.json"))
    assert len(table["data"]) == 13
    assert table["data"][0][1] == f"trial-{result.best.trial_id}"
    child = client.get_run(table["data"][0][-1])
    assert child.data.tags["mlflow.parentRunId"] == parent.run_id
    tags = client.get_run(str(parent.run_id)).data.tags
    assert tags["device"] == "1 × CPU"
    assert json.loads(tags["mlflow.loggedArtifacts"]) == [
        {"path": "leaderboard.json", "type": "table"}
    ]
    figures = {
        Path(each.path).name for each in client.list_artifacts(str(parent.run_id), "figures")
    }
    assert figures == {
        "learning_curves.html", "parallel_coordinates.html", "heat_map.html", "importance.html"
    }  # fmt: skip
    assert paragraph == again
    assert paragraph in printed
    (version,) = client.search_model_versions("name = 'svgscribe'")  # once, though reported twice
    assert version.aliases == []
    assert printed.count("best checkpoint: models:/svgscribe/1 (step 10, evaluation loss 1.25") == 2
    assert "compare the trials: http://127.0.0.1:5000/#/compare-runs?" in printed
    assert f"ui {job_dir}/best.yaml tracking.uri={config.tracking.uri}" in printed


def test_a_search_whose_server_is_gone_is_reported_without_it(
    config: Config, campaign: tuple[Tracker, SearchResult], tmp_path: Path,
    capsys: pytest.CaptureFixture[str], free_port: int,
) -> None:  # fmt: skip
    parent, result = campaign
    uri = f"http://user:secret@127.0.0.1:{free_port}"
    gone = config.model_copy(update={"tracking": TrackingConfig(uri=uri, timeout_seconds=1)})
    paragraph = report_campaign(gone, str(tmp_path), result, parent)
    printed = capsys.readouterr().out
    assert "the search has ended without its learning curves and comparison page (" in printed
    assert "secret" not in printed
    assert "compare the trials" not in printed
    assert paragraph.startswith("13 trials: 8 finished, 4 pruned and 1 failed.")


@pytest.mark.parametrize(
    ("uri", "start", "command"),
    [
        ("https://user:pw@host/mlflow/", "https://host/mlflow/#/compare-runs?", None),
        ("http://head:5000", "http://head:5000/#/compare-runs?", None),
        (
            "postgresql://user:pw@host/db", "http://127.0.0.1:5000/#/compare-runs?",
            "python -m app ui best.yaml 'tracking.uri=postgresql://***@host/db'",
        ),
    ],
)  # fmt: skip
def test_a_comparison_link_names_the_runs_and_no_credentials(
    uri: str, start: str, command: str | None
) -> None:
    config = TrackingConfig(uri=uri)
    link = build_comparison_link(config, "7", ["ab", "cd"])
    assert link.startswith(start)
    query = parse_qs(urlsplit(urlsplit(link).fragment).query)
    assert {name: json.loads(unquote(values[0])) for name, values in query.items()} == {
        "runs": ["ab", "cd"], "experiments": ["7"],
    }  # fmt: skip
    assert describe_ui_command(config, "best.yaml") == command
    many = build_comparison_link(config, "7", [f"{n:032x}" for n in range(1000)])
    assert len(many) < 8000


@pytest.fixture
def server(config: Config, free_port: int) -> Iterator[str]:
    """`mlflow server` of the campaign's database."""
    command = build_ui_command(config.tracking, port=free_port)
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            assert process.stderr is not None
            assert any("Uvicorn running on" in line for line in process.stderr)
            yield f"http://127.0.0.1:{free_port}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def page() -> Iterator[Page]:
    with open_chromium() as page:
        yield page


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")
def test_mlflow_shows_the_compared_trials_the_leaderboard_and_the_figures(
    config: Config, campaign: tuple[Tracker, SearchResult], server: str, page: Page, tmp_path: Path
) -> None:
    parent, result = campaign
    report_campaign(config, config.train.output_dir, result, parent)
    client = MlflowClient(config.tracking.uri)
    experiment_id = client.get_run(str(parent.run_id)).info.experiment_id
    children = client.search_runs([experiment_id], f"tags.mlflow.parentRunId = '{parent.run_id}'")
    shots = Path(os.environ.get("SHOTS", tmp_path))

    def show(url: str, script: str, name: str) -> None:
        page.open("about:blank", 1280, 800)
        page.open(url, 1280, 800)
        page.wait(script)
        page.screenshot(shots / f"{name}.png")

    at_server = TrackingConfig(uri=server)
    link = build_comparison_link(at_server, experiment_id, [run.info.run_id for run in children])
    text = "document.body.innerText"
    plot = "document.querySelector('.js-plotly-plot .main-svg') !== null"
    show(link, f"{text}.includes('Comparing {len(children)} Runs') && {plot}", "comparison")
    assert page.run(f"{text}.includes('trial-{result.best.trial_id}')")

    artifacts = f"{server}/#/experiments/{experiment_id}/runs/{parent.run_id}/artifacts"
    show(f"{artifacts}/leaderboard.json", f"{text}.includes('eval_loss')", "leaderboard")
    for name in ("learning_curves", "parallel_coordinates", "heat_map", "importance"):
        show(f"{artifacts}/figures/{name}.html", f"{text}.includes('{name}.html')", name)
        # the figure draws itself inside the sandboxed frame
        page.wait_in_frame("document.querySelectorAll('.main-svg text').length > 5")
        page.screenshot(shots / f"{name}.png")
    assert all(url.startswith((server, "blob:", "about:")) for url in page.requests)
