"""The report: its page, its charts, and what it reads of a job's folder and its MLflow run."""

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from app.arguments import parse_arguments
from app.config import Config, load_config
from app.errors import UserError
from app.evaluation.report import render_report
from app.evaluation.report_charts import (
    Curve,
    Range,
    choose_ticks,
    draw_curves,
    draw_ranges,
    format_number,
)
from app.evaluation.report_views import RunView
from app.jobs.report import run_report, write_report
from app.jobs.trained_model import save_config
from app.tracking import TrackingConfig, open_run
from app.tracking.history import read_history
from data_pipeline.sources.scenes import generate_scenes
from tests.checkpoints import write_checkpoint_files

# MLflow's use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

OTHER_COLOUR = {"red": "blue", "blue": "red"}


def swap_colours(caption: str) -> str:
    return re.sub("red|blue", lambda found: OTHER_COLOUR[found[0]], caption)


def make_evaluation(*, swapped: bool) -> dict[str, Any]:
    """Return the report of an evaluation of 12 scenes; captions are right, or swap colours."""
    score = {"value": 0.42, "low": 0.3, "high": 0.55, "n": 12}
    scenes = list(generate_scenes(12, seed=4))
    return {
        "split": "test",
        "dataset_digest": "1f",
        "metrics": {
            "rouge_l": {**score, "target": None, "holds": None, "beats_baselines": False},
            "bleu4": {**score, "target": 0.18, "holds": True, "beats_baselines": True},
            "eval_loss": {"value": 8.25, "low": 8.0, "high": 8.5, "n": 12, "target": None},
            "meteor": {"value": None, "low": None, "high": None, "n": 0, "target": None},
        },
        "by_source": {"scenes": {"bleu4": {"value": 0.25, "low": 0.1, "high": 0.4, "n": 7}}},
        "signature": "tok:13a",
        "compared_with": {
            "constant": {"bleu4": {"value": 0.125}},
            "base": {
                "rouge_l": {"value": 0.5, "lead_low": -0.2, "lead_high": -0.1},
                "bleu4": {"value": 0.25, "lead_low": -0.1, "lead_high": 0.1},
            },
        },
        "drawings": [
            {
                "id": scene.id,
                "svg": scene.svg,
                "reference": scene.caption,
                "tuned": swap_colours(scene.caption) if swapped else scene.caption,
                "faults": ["repetition"] if swapped and i == 0 else [],
            }
            for i, scene in enumerate(scenes)
        ],
    }


def write_job(folder: Path, config: Config, evaluation: dict[str, Any]) -> str:
    """Write the small files of a finished job."""
    checkpoint = folder / "checkpoint_8"
    write_checkpoint_files(checkpoint, {"state": {"step": 8}})
    save_config(checkpoint, config)
    result = {"step": 8, "best_step": 8, "adapter": str(checkpoint), "num_tokens": 12_345}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "evaluation-test.json").write_text(json.dumps(evaluation))
    return str(folder)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two jobs; the first one was tracked."""
    root = tmp_path_factory.mktemp("jobs")
    tracked = TrackingConfig(uri=f"sqlite:///{root}/mlflow.db")
    config = load_config("demo", ["lora.rank=16"])
    folders = [
        write_job(root / "one", config, make_evaluation(swapped=False)),
        write_job(
            root / "two", load_config("demo", ["lora.rank=8"]), make_evaluation(swapped=True)
        ),
    ]
    tracker = open_run(tracked, run_name="one", job_dir=folders[0])
    for step in range(1, 9):
        tracker.log_metrics(
            step,
            {
                "train/loss": 8.0 / step,
                "speed/step_seconds": 450.0,
                "speed/data_wait_seconds": 0.0,
                "memory/peak_mib": 100.0 * step,
            },
        )
    tracker.log_metrics(8, {"eval/loss": 1.5})
    tracker.finish("FINISHED")
    return folders


def write_page(folders: list[str], out: Path) -> str:
    write_report(folders, out)
    return out.read_text()


class Outline(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def test_a_page_shows_scores_captions_settings_cost_and_curves(
    jobs: list[str], tmp_path: Path
) -> None:
    page = write_page(jobs, tmp_path / "report.html")
    text = Outline(page).text
    assert text.index("bleu4 target 0.18") < text.index("rouge l")  # those with a target first
    assert "0.42 [0.3, 0.55] n = 12 pass" in text
    assert "does not beat the baselines" in text
    assert "constant caption 0.125" in text
    assert text.count("worse than the base model") == 2  # rouge_l of both jobs
    assert "eval loss lower is better" in text
    for row in ("base model tiny tiny", "digest of the data 1f 1f", "sacrebleu tok:13a tok:13a"):
        assert row in text
    assert "checkpoint checkpoint_8" in text
    assert re.search(r"started 20\d\d-\d\d-\d\d \d\d:\d\d UTC", text)
    assert "meteor" not in text
    assert "bleu4 scenes 0.25 (n = 7)" in text
    assert "lora.rank 16 8" in text
    assert "train.run_name" not in text
    assert "in training steps 1 h 0 min –" in text
    assert "worker-hours 2 –" in text
    assert "tokens 12,345 12,345" in text
    assert "peak memory of a worker 800 MiB" in text
    assert "Evaluation loss (nats a token)" in text
    assert len(re.findall("<polyline", page)) == 2


def test_wrong_claims_are_struck_with_the_finding_and_right_ones_are_not(
    jobs: list[str], tmp_path: Path
) -> None:
    right = write_page(jobs[:1], tmp_path / "right.html")
    wrong = write_page(jobs[1:], tmp_path / "wrong.html")
    note = "<s>Struck words</s>"
    assert right.replace(note, "").count("<s>") == 0
    num_swapped = sum(
        "red" in scene.caption or "blue" in scene.caption for scene in generate_scenes(12, seed=4)
    )
    assert num_swapped > 3
    assert wrong.count('<ul class="wrong">') == num_swapped
    assert wrong.replace(note, "").count("<s>") >= num_swapped
    assert wrong.count('<i class="bad">repetition</i>') == 1


def test_the_settings_of_one_job_are_compared_with_the_defaults(
    jobs: list[str], tmp_path: Path
) -> None:
    text = Outline(write_page(jobs[:1], tmp_path / "report.html")).text
    assert "Settings that differ from the defaults" in text
    assert f"data.sequence_tokens {Config().data.sequence_tokens} 768" in text
    assert not re.search(r"None|True|False", text)  # written as in a config file
    assert "train.max_steps null 800" in text
    assert "evaluate.fields.weight" in text
    assert "evaluate.fields {}" not in text


def test_bars_of_scores_share_the_scale_from_0_to_1() -> None:
    (bar,) = draw_ranges([Range(0, 0.25, 0.5, 1.0)], 0.75, {"base model": 0.0})
    assert [float(x) for x in re.findall('<line class="r0" x1="(.*?)" x2="(.*?)"', bar)[0]] == [
        78,
        294,
    ]
    assert 'cx="150.0"' in bar
    assert '<text class="middle" x="6.0" y="29">b</text>' in bar
    (bar,) = draw_ranges([Range(0, 1.0, 2.0, 4.0)], None, {})
    assert 'cx="150.0"' in bar


def test_nothing_in_a_page_can_run_or_load(jobs: list[str], tmp_path: Path) -> None:
    hostile = '"><script>alert(1)</script><img src=http://127.0.0.1/x onerror=alert(1)>'
    evaluation = make_evaluation(swapped=False)
    for drawing in evaluation["drawings"]:
        drawing |= {"id": hostile, "tuned": hostile, "reference": hostile, "faults": [hostile]}
    evaluation["metrics"][hostile] = evaluation["metrics"].pop("bleu4")
    folder = tmp_path / "a<b>"
    write_job(folder, load_config("demo", [f"tracking.experiment={hostile}"]), evaluation)
    outline = Outline(write_page([str(folder)], tmp_path / "report.html"))
    assert {tag for tag, _ in outline.tags}.isdisjoint({"script", "link", "iframe", "object"})
    for _, attributes in outline.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert (attributes.get("src") or "data:image/svg+xml;").startswith("data:image/svg+xml;")
        assert "href" not in attributes
    policies = [each["content"] for _, each in outline.tags if "http-equiv" in each]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_a_job_without_evaluation_config_and_run_has_a_page_with_notices(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "result.json").write_text('{"step": 3, "adapter": "/nowhere/checkpoint_3"}')
    text = Outline(write_page([str(folder)], tmp_path / "report.html")).text
    assert "old: it was not evaluated" in text
    assert "old: its settings are not known" in text
    assert "steps 3" in text


def test_jobs_of_other_drawings_are_not_compared_in_silence(
    jobs: list[str], tmp_path: Path
) -> None:
    other = {**make_evaluation(swapped=False), "dataset_digest": "2e"}
    folder = write_job(tmp_path / "other", load_config("demo"), other)
    text = Outline(write_page([jobs[0], folder], tmp_path / "report.html")).text
    assert "other: it was evaluated on other drawings" in text


def test_a_file_that_is_no_report_is_not_replaced(jobs: list[str], tmp_path: Path) -> None:
    def run(out: Path, *runs: str) -> str:
        return run_report(parse_arguments(["report", *(runs or jobs), "--out", str(out)]))

    mine = tmp_path / "mine.html"
    mine.write_text("<p>mine</p>")
    with pytest.raises(UserError, match="is no report"):
        run(mine)
    assert mine.read_text() == "<p>mine</p>"
    with pytest.raises(UserError, match=r"ends in \.html"):
        run(tmp_path / "absent" / "report.html")
    with pytest.raises(UserError, match="holds no job"):
        run(tmp_path / "report.html", str(tmp_path))
    for _ in range(2):  # an earlier report is replaced
        assert run(tmp_path / "report.html") == str(tmp_path / "report.html")


def test_the_history_of_a_run_is_what_was_logged(jobs: list[str], tmp_path: Path) -> None:
    run = json.loads((Path(jobs[0]) / "mlflow_run.json").read_text())
    config = TrackingConfig(uri=run["tracking_uri"])
    history = read_history(config, run["run_id"], ["train/loss", "eval/loss", "absent"])
    assert history.status == "FINISHED"
    assert history.seconds is not None
    assert history.metrics == {
        "train/loss": [(step, 8.0 / step) for step in range(1, 9)],
        "eval/loss": [(8, 1.5)],
    }
    with pytest.raises(UserError, match="cannot be read"):
        read_history(config, "0" * 32, [])
    absent = TrackingConfig(uri=f"sqlite:///{tmp_path}/absent.db")
    with pytest.raises(UserError, match="is no database"):
        read_history(absent, run["run_id"], [])
    assert not (tmp_path / "absent.db").exists()


def read_points(chart: str) -> list[tuple[float, float]]:
    (line,) = re.findall('points="([^"]+)"', chart)
    return [tuple(map(float, pair.split(","))) for pair in line.split()]


def test_a_curve_is_drawn_to_scale_without_values_that_are_not_finite() -> None:
    chart = draw_curves([Curve(0, [(0, 4.0), (1, float("nan")), (5, 2.0), (10, 0.0)])])
    (x0, y0), (x1, y1), (x2, y2) = read_points(chart)
    assert (x1 - x0, y1 - y0) == pytest.approx(((x2 - x0) / 2, (y2 - y0) / 2), abs=0.1)
    assert x0 < x2
    assert y0 < y2  # down the page
    assert draw_curves([Curve(0, [(0, float("inf"))]), Curve(1, [])]) == ""


def test_a_long_curve_is_thinned_to_the_means_of_neighbours() -> None:
    chart = draw_curves([Curve(0, [(step, float(step % 2)) for step in range(3000)])])
    points = read_points(chart)
    assert len(points) == 300
    assert len({y for _, y in points}) == 1  # the mean of ten steps is 0.5


@pytest.mark.parametrize(
    ("low", "high"), [(0.3, 8.4), (0, 0), (5, 5), (-3, 2), (1e-5, 3e-3), (1e6, 3e6), (0.1, 0.1)]
)
def test_ticks_are_few_and_span_the_values(low: float, high: float) -> None:
    ticks = choose_ticks(low, high)
    assert 2 <= len(ticks) <= 7
    assert ticks[0] <= low
    assert high <= ticks[-1]
    steps = {round(b - a, 12) for a, b in pairwise(ticks)}
    assert len({f"{step:.6g}" for step in steps}) == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.47312, "0.473"), (12.4, "12.4"), (5206.5, "5,206"), (0.00003, "3e-05")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert format_number(value) == text


def test_a_run_without_anything_has_a_page() -> None:
    assert "nothing" in render_report([RunView("nothing")], [], defaults={})
