"""Report of a finished search: a paragraph, tables and figures, and a registered model."""

import json
import tempfile
from pathlib import Path

from app.config import Config
from app.jobs.job_dir import find_lowest_checkpoint
from app.jobs.open_captioner import find_adapter_folder
from app.jobs.promote import register_checkpoint
from app.storage import join_uri
from app.tracking import (
    ChildRun,
    Tracker,
    build_comparison_link,
    describe_error,
    describe_ui_command,
    read_children,
)
from data_pipeline.masking import mask_secrets
from tune.campaign import (
    Trial,
    describe_campaign,
    list_ranges,
    make_leaderboard,
    rank_trials,
)
from tune.figures import draw_figures
from tune.importance import compute_importances
from tune.outcome import SearchResult, TrialOutcome

STATE = "trial_state"
"""Tag of a trial's run: finished, pruned, failed or interrupted."""
LEADERBOARD = "leaderboard.json"
"""Artifact of the search's run that MLflow shows as a table."""


def report_campaign(config: Config, job_dir: str, result: SearchResult, parent: Tracker) -> str:
    """Print and return a paragraph about the search; log tables and figures to its run.

    Print the address of MLflow's comparison page. The best checkpoint of the best trial becomes a
    version of the registered model; no alias moves.

    The search has ended before, so an error of MLflow is printed and not raised.
    """
    # trials
    experiment_id, children = "", dict[str, ChildRun]()
    if parent.run_id is not None:
        try:
            experiment_id, children = read_children(config.tracking, parent.run_id, "eval/loss")
        except Exception as error:
            _print_loss("learning curves and comparison page", error)
    trials = [_view_trial(outcome, children) for outcome in result.trials]

    # paragraph, leaderboard and figures
    paragraph = _log_views(config, trials, parent)
    print(f"\n{paragraph}", flush=True)

    # registered model and link
    best = children.get(get_run_name(result.best.trial_id))
    if best is not None:
        parent.set_tags({"device": best.tags.get("device", "unknown")})
        _register_best(config, job_dir, best.run_id)
    run_ids = [trial.run_id for trial in rank_trials(trials) if trial.run_id is not None]
    if run_ids:
        link = build_comparison_link(config.tracking, experiment_id, run_ids)
        command = describe_ui_command(config.tracking, join_uri(job_dir, "best.yaml"))
        print(f"compare the trials: {link}", flush=True)
        if command:
            print(f"that page needs the running command: {command}", flush=True)
    return paragraph


def get_run_name(trial_id: str) -> str:
    """Return the name of a trial's run and folder."""
    return f"trial-{trial_id}"


def _view_trial(outcome: TrialOutcome, children: dict[str, ChildRun]) -> Trial:
    """Return a trial without credentials in its values, with the run and curve of its child."""
    name = get_run_name(outcome.trial_id)
    child = children.get(name)
    params = {
        path: mask_secrets(value) if isinstance(value, str) else value
        for path, value in outcome.overrides.items()
    }
    return Trial(
        name, outcome.state, params, outcome.eval_loss, outcome.step,
        run_id=child.run_id if child else None, curve=child.curve if child else (),
    )  # fmt: skip


def _log_views(config: Config, trials: list[Trial], parent: Tracker) -> str:
    """Log the leaderboard and the figures to the search's run. Return the paragraph."""
    missing: list[str] = []
    importances, figures = dict[str, float](), dict[str, str]()
    ranges = list_ranges(config.search.space)
    try:
        importances = compute_importances(trials, config.search.space)
    except ImportError:
        missing.append("importances need optuna")
    except ValueError as error:  # a known-good point may be outside the space
        _print_loss("importances", error)
    try:
        figures = draw_figures(trials, ranges, importances) if parent.run_id else {}
    except ImportError:
        missing.append("figures need plotly")
    if missing:
        print(f"the search has ended; its {' and its '.join(missing)}: pip install '.[search]'")

    # a table that MLflow finds by its tag
    parent.log_text(json.dumps(make_leaderboard(trials)), LEADERBOARD)
    tables = json.dumps([{"path": LEADERBOARD, "type": "table"}])
    parent.set_tags({"mlflow.loggedArtifacts": tables})

    with tempfile.TemporaryDirectory(prefix="svgscribe-") as folder:
        for name, page in figures.items():
            file = Path(folder, name)
            file.write_text(page, encoding="utf-8")
            parent.log_artifact(file, "figures")
    return describe_campaign(trials, ranges, importances)


def _register_best(config: Config, job_dir: str, run_id: str) -> None:
    """Register the best checkpoint of the best trial, and print its version."""
    try:
        saved = find_lowest_checkpoint(job_dir, run_id)
        if saved is None:
            print("the best trial saved no checkpoint: train with best.yaml, then run promote")
            return
        folder = find_adapter_folder(saved.folder)
        version = register_checkpoint(config.tracking, folder, config)
    except Exception as error:
        _print_loss("registered model", error)
        return
    step, loss = saved.metrics["step"], saved.metrics["eval_loss"]
    print(f"best checkpoint: {version} (step {step}, evaluation loss {loss:.4f})", flush=True)


def _print_loss(part: str, error: Exception) -> None:
    print(f"the search has ended without its {part} ({describe_error(error)})", flush=True)
