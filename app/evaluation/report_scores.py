"""Scores of a report: a card for each, with a line for each run."""

from collections.abc import Mapping, Sequence
from typing import Any

from app.evaluation.gallery import escape_text
from app.evaluation.report_charts import Range, draw_ranges, format_number
from app.evaluation.report_views import RunView, name_run
from app.evaluation.scores import BASE, LOWER_IS_BETTER

BASELINES = {"base": "base model", "constant": "constant caption", "nearest": "nearest drawing"}


def render_scores(runs: Sequence[RunView]) -> str:
    """Return a card for each score; those with a target come first."""
    names = dict.fromkeys(name for run in runs for name in run.metrics)
    ordered = sorted(names, key=lambda name: _get_target(runs, name) is None)
    return "".join(_render_score(runs, name) for name in ordered)


def _render_score(runs: Sequence[RunView], name: str) -> str:
    """Return the card of one score: a line with interval and marks for each run."""
    measured = [
        (i, run.metrics[name])
        for i, run in enumerate(runs)
        if run.metrics.get(name, {}).get("value") is not None
    ]
    if not measured:
        return ""

    target, marks = _get_target(runs, name), _get_marks(runs, name)
    is_loss = name in LOWER_IS_BETTER  # which has no upper end for a scale
    bars = draw_ranges([_get_range(i, one) for i, one in measured], target, marks)
    lines = "".join(
        f"<li>{name_run(i, runs[i])}<b>{format_number(one['value'])}</b> {_describe_interval(one)}"
        f"{_render_badges(one, _is_worse(runs[i], name))}{'' if is_loss else bar}</li>"
        for (i, one), bar in zip(measured, bars, strict=True)
    )

    compared = " · ".join(
        f"{escape_text(key)} {format_number(value)}" for key, value in marks.items()
    )
    notes = ["lower is better"] if is_loss else []
    notes += [] if target is None else [f"target {format_number(target)}"]
    wanted = f" <small>{', '.join(notes)}</small>" if notes else ""
    return (
        f'<article class="score"><h3>{escape_text(name.replace("_", " "))}{wanted}</h3>'
        f"<ul>{lines}</ul><p>{compared}</p></article>"
    )


def _get_range(run: int, metric: Mapping[str, Any]) -> Range:
    """Return the interval of a score, which is its value alone if it has none."""
    value, low, high = (metric.get(key) for key in ("value", "low", "high"))
    assert value is not None
    return Range(run, value if low is None else low, value, value if high is None else high)


def _get_target(runs: Sequence[RunView], name: str) -> float | None:
    targets = (run.metrics.get(name, {}).get("target") for run in runs)
    return next((target for target in targets if target is not None), None)


def _get_marks(runs: Sequence[RunView], name: str) -> dict[str, float]:
    """Return the score of the base model and of the baselines, from the first run that has it."""
    marks: dict[str, float] = {}
    for run in runs:
        for kind, title in BASELINES.items():
            value = run.compared_with.get(kind, {}).get(name, {}).get("value")
            if value is not None:
                marks.setdefault(title, value)
    return marks


def _describe_interval(metric: Mapping[str, Any]) -> str:
    low, high, num = metric.get("low"), metric.get("high"), metric.get("n")
    interval = ""
    if low is not None and high is not None:
        interval = f"[{format_number(low)}, {format_number(high)}]"
    count = "" if num is None else f" n&nbsp;=&nbsp;{num:,}"
    return f"<small>{interval}{count}</small>"


def _is_worse(run: RunView, name: str) -> bool:
    """Return whether the paired interval of the lead over the base model is below 0."""
    lead = run.compared_with.get(BASE, {}).get(name, {}).get("lead_high")
    return lead is not None and lead < 0


def _render_badges(metric: Mapping[str, Any], is_worse: bool) -> str:
    """Return pass or fail of the target, and the marks of a score that beats no other."""
    badges = ""
    if metric.get("holds") is not None:
        badges += '<i class="good">pass</i>' if metric["holds"] else '<i class="bad">fail</i>'
    if metric.get("beats_baselines") is False:
        badges += '<i class="bad">does not beat the baselines</i>'
    if is_worse:
        badges += '<i class="bad">worse than the base model</i>'
    return badges
