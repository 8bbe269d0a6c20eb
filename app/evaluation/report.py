"""One HTML page about one or more jobs: curves, scores, captions, settings, cost and time."""

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

from app.evaluation.gallery import escape_text, mark_words
from app.evaluation.report_charts import Curve, draw_curves, format_number
from app.evaluation.report_scores import render_scores
from app.evaluation.report_style import PAGE, STYLE
from app.evaluation.report_views import CaptionView, DrawingView, RunView, name_run

GENERATOR = "svgscribe report"
"""Value in the page's header, by which a report is recognised."""
CURVES = {
    "eval/loss": "Evaluation loss (nats a token)",
    "train/loss": "Training loss (nats a token)",
    "train/learning_rate": "Learning rate",
    "speed/tokens_per_second": "Tokens a second",
}
"""Metrics that have a chart, and its title."""


def render_report(
    runs: Sequence[RunView], drawings: Sequence[DrawingView], *, defaults: Mapping[str, str]
) -> str:
    """Return a self-contained page, in which nothing can run or load anything (see the gallery).

    The settings of several runs are compared with each other, those of one run with `defaults`.
    """
    parts = [
        _render_runs(runs),
        _render_section("Model, cost and time", _render_figures(runs)),
        _render_section("Scores", render_scores(runs), _SCORE_NOTE),
        _render_section("Scores of groups of drawings", _render_groups(runs)),
        _render_section("Curves", _render_curves(runs)),
        _render_section(*_render_settings(runs, defaults)),
        _render_section(
            "Drawings",
            "".join(_render_drawing(runs, drawing) for drawing in drawings),
            _DRAWING_NOTE,
        ),
    ]
    title = escape_text(f"Report: {', '.join(run.name for run in runs)}")
    return PAGE.format(title=title, generator=GENERATOR, style=STYLE, content="\n".join(parts))


def _render_runs(runs: Sequence[RunView]) -> str:
    """Return the names of the runs with their colours, and the notices."""
    names = "".join(f"<li>{name_run(i, run)}</li>" for i, run in enumerate(runs))
    notices = "".join(
        f"<li>{escape_text(run.name)}: {escape_text(text)}</li>"
        for run in runs
        for text in run.notices
    )
    return f'<ul class="runs">{names}</ul>' + (
        f'<ul class="notices">{notices}</ul>' if notices else ""
    )


def _render_section(title: str, content: str, note: str = "") -> str:
    if not content:
        return ""
    note = f'<p class="note">{note}</p>' if note else ""
    return f'<section><h2>{title}</h2>{note}<div class="grid">{content}</div></section>'


def _render_groups(runs: Sequence[RunView]) -> str:
    """Return one table for each run: a row for each group, a column for each score."""
    tables = []
    for i, run in enumerate(runs):
        names = list(dict.fromkeys(name for scores in run.groups.values() for name in scores))
        rows = [
            (group, [_describe_value(scores.get(name, {})) for name in names])
            for group, scores in run.groups.items()
        ]
        table = _render_table(["", *(name.replace("_", " ") for name in names)], rows)
        if table:
            tables.append(f"<details><summary>{name_run(i, run)}</summary>{table}</details>")
    return "".join(tables)


def _describe_value(metric: Mapping[str, Any]) -> str:
    value, num = metric.get("value"), metric.get("n")
    return "–" if value is None else f"{format_number(value)} (n = {num})"


def _render_curves(runs: Sequence[RunView]) -> str:
    charts = {
        title: draw_curves(
            [
                Curve(i, run.curves[name], with_dots=name == "eval/loss")
                for i, run in enumerate(runs)
                if run.curves.get(name)
            ]
        )
        for name, title in CURVES.items()
    }
    return "".join(
        f"<article><h3>{title}</h3>{chart}</article>" for title, chart in charts.items() if chart
    )


def _render_figures(runs: Sequence[RunView]) -> str:
    names = dict.fromkeys(name for run in runs for name in run.figures)
    rows = [(name, [run.figures.get(name, "–") for run in runs]) for name in names]
    return _render_table(["", *(run.name for run in runs)], rows)


def _render_settings(runs: Sequence[RunView], defaults: Mapping[str, str]) -> tuple[str, str]:
    """Return the title and the table of the settings that differ."""
    if len(runs) == 1:
        title, columns = "Settings that differ from the defaults", [defaults, runs[0].settings]
        heads = ["setting", "default", runs[0].name]
    else:
        title, columns = "Settings that differ", [run.settings for run in runs]
        heads = ["setting", *(run.name for run in runs)]
    if not all(columns):
        return title, ""
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [(name, [column.get(name, "–") for column in columns]) for name in names]
    differing = [(name, values) for name, values in rows if len(set(values)) > 1]
    return title, _render_table(heads, differing)


def _render_table(heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{escape_text(text)}</th>" for text in heads)
    body = "".join(
        f"<tr><th>{escape_text(name)}</th>"
        + "".join(f"<td>{escape_text(value)}</td>" for value in values)
        + "</tr>"
        for name, values in rows
    )
    return f'<div class="table"><table><thead><tr>{head}</tr></thead>{body}</table></div>'


def _render_drawing(runs: Sequence[RunView], drawing: DrawingView) -> str:
    image = base64.b64encode(drawing.svg.encode("utf-8", errors="replace")).decode("ascii")
    name = escape_text(drawing.id)
    captions = "".join(
        f"<dt>{name_run(i, run)}</dt><dd>{_render_caption(view, drawing.reference)}</dd>"
        for i, (run, view) in enumerate(zip(runs, drawing.captions, strict=True))
    )
    return (
        f'<article class="drawing"><img src="data:image/svg+xml;base64,{image}" '
        f'alt="drawing {name}"><dl><dt>Reference</dt>'
        f"<dd>{escape_text(drawing.reference)}</dd>{captions}</dl><footer>{name}</footer></article>"
    )


def _render_caption(view: CaptionView | None, reference: str) -> str:
    """Return a caption with its wrong claims struck out, and the findings below it."""
    if view is None:
        return "<i>no caption</i>"
    claims = sorted({text for text, _ in view.wrong if text}, key=len, reverse=True)
    text = mark_words(view.caption, reference)
    if claims:
        pattern = "|".join(map(re.escape, claims))
        parts = re.split(rf"\b({pattern})\b", view.caption, flags=re.IGNORECASE)
        text = "".join(
            f"<s>{escape_text(part)}</s>"
            if i % 2
            else (mark_words(part, reference) if part else "")
            for i, part in enumerate(parts)
        )

    findings = "".join(
        f"<li><b>{escape_text(claim)}</b>: {escape_text(finding)}</li>"
        for claim, finding in view.wrong
    )
    faults = "".join(f'<i class="bad">{escape_text(fault)}</i>' for fault in view.faults)
    return text + faults + (f'<ul class="wrong">{findings}</ul>' if findings else "")


_SCORE_NOTE = (
    "Lines are bootstrap 95 % intervals, on a scale from 0 to 1, or to the largest value above 1. "
    "The dashed line is the target. Grey marks are the base model (b), the constant caption (c) "
    "and the caption of the nearest drawing (n)."
)
_DRAWING_NOTE = (
    "<mark>Marked words</mark> are in the reference. <s>Struck words</s> contradict the drawing."
)
