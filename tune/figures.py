"""Figures of a search as HTML pages that work without a network, drawn by Plotly.

Every function raises ImportError if Plotly is not installed.
"""

import math
import re
from bisect import bisect
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from tune.campaign import Range, Trial, format_params, list_measured, list_paths

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

LEARNING_RATE, RANK = "optim.learning_rate", "lora.rank"
_COLOURS = {
    "finished": "#1b6ca8",
    "pruned": "#e08e45",
    "failed": "#b3261e",
    "interrupted": "#8a8f98",
}
_NUM_BANDS, _NUM_TICKS = 6, 5
"""Bands of a range in the heat map, and ticks of a range in the parallel coordinates."""
_SCALE = "Viridis"
"""Colour scale of losses: the darkest is the lowest."""
_LOSS = "evaluation loss"
_HEAD = """<head>
    <meta name="viewport" content="width=device-width" />
    <style>body {margin: 0}</style>"""


def draw_figures(
    trials: Sequence[Trial], ranges: Mapping[str, Range], importances: Mapping[str, float]
) -> dict[str, str]:
    """Return the HTML page of each figure that the trials allow, by file name.

    The learning curves need one measured trial, the other figures need two with different values.
    """
    measured = list_measured(trials)
    figures = {"learning_curves.html": draw_curves(trials)} if any(t.curve for t in trials) else {}
    paths = [path for path in list_paths(measured) if _count_values(measured, path) > 1]
    if len(measured) > 1 and paths:
        figures["parallel_coordinates.html"] = draw_parallel_coordinates(measured, paths, ranges)
    pair = _choose_pair(paths, importances)
    if len(measured) > 1 and pair:
        figures["heat_map.html"] = draw_heat_map(measured, *pair, ranges)
    if importances:
        figures["importance.html"] = draw_importances(importances, len(measured))
    return {name: _render(figure) for name, figure in figures.items()}


def draw_curves(trials: Sequence[Trial]) -> "Figure":
    """Return the evaluation losses of all trials over the steps, coloured by state."""
    import plotly.graph_objects as go

    figure = go.Figure()
    shown = set()
    for trial in trials:
        if not trial.curve:
            continue
        steps, losses = zip(*trial.curve, strict=True)
        values = "<br>".join(format_params(trial.params).split(", "))
        figure.add_scatter(
            x=steps,
            y=losses,
            mode="lines+markers",
            name=trial.state,
            legendgroup=trial.state,
            showlegend=trial.state not in shown,
            line={"color": _COLOURS[trial.state], "width": 1.5},
            marker={"size": 4},
            hovertemplate=f"<b>{trial.name}</b><br>{values}<br>step %{{x}}: %{{y:.4f}}"
            "<extra></extra>",
        )
        shown.add(trial.state)

    _set_title(figure, "Learning curves", "by state: click on a state to hide its trials")
    figure.update_layout(legend={"orientation": "h", "y": 1.0, "yanchor": "bottom"})
    figure.update_xaxes(title="optimizer step")
    figure.update_yaxes(title=f"{_LOSS} (nats per token)", type="log")
    return figure


def draw_parallel_coordinates(
    trials: Sequence[Trial], paths: Sequence[str], ranges: Mapping[str, Range]
) -> "Figure":
    """Return one line for each measured trial across its values and its loss.

    Trials without a value of one of the paths are left out.
    """
    import plotly.graph_objects as go

    whole = [trial for trial in trials if all(path in trial.params for path in paths)]
    losses = [float(trial.loss or 0.0) for trial in whole]
    axes = [_make_axis(path, [t.params[path] for t in whole], ranges.get(path)) for path in paths]
    axes.append(_make_axis(_LOSS, losses, Range(min(losses), max(losses))))
    line = {"color": losses, "colorscale": _SCALE}  # its bar would repeat the axis of the loss

    figure = go.Figure(go.Parcoords(dimensions=axes, line=line, labelside="bottom"))
    hint = "drag along an axis to select trials; dark: low loss"
    _set_title(figure, "Parallel coordinates", hint)
    return figure


def draw_heat_map(
    trials: Sequence[Trial], column_path: str, row_path: str, ranges: Mapping[str, Range]
) -> "Figure":
    """Return the lowest loss of each pair of two settings, with the number of its trials.

    Pruned trials count only where no trial finished, because their losses are of earlier steps.
    """
    import plotly.graph_objects as go

    columns, column_of = _make_bands(trials, column_path, ranges.get(column_path))
    rows, row_of = _make_bands(trials, row_path, ranges.get(row_path))
    cells: dict[tuple[Any, Any], list[Trial]] = {}
    for trial, column, row in zip(trials, column_of, row_of, strict=True):
        cells.setdefault((row, column), []).append(trial)

    # text and loss of each cell
    losses: list[list[float | None]] = [[None] * len(columns) for _ in rows]
    texts = [[""] * len(columns) for _ in rows]
    for (row, column), members in cells.items():
        if row is None or column is None:
            continue
        finished = [trial for trial in members if trial.state == "finished"]
        loss = min(float(trial.loss or 0.0) for trial in finished or members)
        number = f"({len(finished)} of {len(members)})"
        losses[row][column], texts[row][column] = loss, f"{loss:.4f}<br>{number}"

    figure = go.Figure(
        go.Heatmap(
            x=columns, y=rows, z=losses, text=texts, texttemplate="%{text}", colorscale=_SCALE,
            showscale=False, textfont_size=12, xgap=2, ygap=2, hoverongaps=False,
            hovertemplate=f"{column_path} %{{x}}<br>{row_path} %{{y}}<br>%{{text}}<extra></extra>",
        )
    )  # fmt: skip
    _set_title(figure, f"Lowest {_LOSS}", "in brackets: finished of all trials; dark: low loss")
    figure.update_xaxes(title=column_path, type="category", showgrid=False)
    figure.update_yaxes(title=row_path, type="category", showgrid=False)
    return figure


def draw_importances(importances: Mapping[str, float], num_trials: int) -> "Figure":
    """Return a bar for the importance of each setting, the most important one at the top."""
    import plotly.graph_objects as go

    ranked = sorted(importances.items(), key=lambda item: item[1])
    names, shares = zip(*ranked, strict=True)
    bars = go.Bar(
        x=shares, y=names, orientation="h", text=[f"{share:.0%}" for share in shares],
        textposition="outside", cliponaxis=False, marker_color=_COLOURS["finished"],
    )  # fmt: skip

    figure = go.Figure(bars)
    _set_title(figure, "Importance of each setting", f"by PED-ANOVA, of {num_trials} trials")
    figure.update_xaxes(title="share of the difference<br>between good and other trials")
    figure.update_xaxes(range=[0, 1.08], tickformat=".0%")
    figure.update_yaxes(automargin=True)
    return figure


def _set_title(figure: "Figure", title: str, subtitle: str) -> None:
    """Set two lines that fit into the window of a phone (390 pixels)."""
    figure.update_layout(title={"text": title, "subtitle": {"text": subtitle}})


def _render(figure: "Figure") -> str:
    """Return a page with Plotly's script in it: MLflow shows each page in a frame of its own."""
    margin = {"l": 70, "r": 45, "t": 130, "b": 70}
    figure.update_layout(template="plotly_white", font_size=13, margin=margin)
    config = {"displaylogo": False, "responsive": True}
    page = str(figure.to_html(include_plotlyjs=True, full_html=True, config=config))
    return page.replace("<head>", _HEAD, 1)


def _choose_pair(paths: Sequence[str], importances: Mapping[str, float]) -> tuple[str, str] | None:
    """Return rank and learning rate, or else the two settings that mattered most."""
    if LEARNING_RATE in paths and RANK in paths:
        return RANK, LEARNING_RATE
    ranked = sorted(paths, key=lambda path: -importances.get(path, 0.0))
    return (ranked[0], ranked[1]) if len(ranked) > 1 else None


def _count_values(trials: Sequence[Trial], path: str) -> int:
    return len({str(trial.params[path]) for trial in trials if path in trial.params})


def _make_axis(label: str, values: Sequence[Any], searched: Range | None) -> dict[str, Any]:
    """Return a vertical axis: logarithmic, linear, or with a tick for each choice."""
    label = re.sub(r"([. ])", r"\1<br>", label)  # the axes of a phone are 90 pixels apart
    if searched is None or searched.is_choice:
        choices = _list_choices(values)
        ticks, texts = list(range(len(choices))), [str(choice) for choice in choices]
        places = [float(choices.index(value)) for value in values]
        return {"label": label, "values": places, "tickvals": ticks, "ticktext": texts}

    edges = _divide(searched, _NUM_TICKS - 1)
    return {
        "label": label,
        "values": [_scale(value, searched) for value in values],
        "range": [_scale(edges[0], searched), _scale(edges[-1], searched)],
        "tickvals": [_scale(edge, searched) for edge in edges],
        "ticktext": [f"{edge:.3g}" for edge in edges],
    }


def _make_bands(
    trials: Sequence[Trial], path: str, searched: Range | None
) -> tuple[list[str], list[int | None]]:
    """Return the names of the bands of a setting, and the band of each trial (None: no value)."""
    values = [trial.params.get(path) for trial in trials]
    if searched is None or searched.is_choice:
        choices = _list_choices([value for value in values if value is not None])
        places = [None if value is None else choices.index(value) for value in values]
        return [str(choice) for choice in choices], places

    edges = _divide(searched, _NUM_BANDS)
    names = [f"{low:.2g} to {high:.2g}" for low, high in pairwise(edges)]
    # the highest value belongs to the last band
    bands = [None if value is None else bisect(edges, value, 1, _NUM_BANDS) - 1 for value in values]
    return names, bands


def _scale(value: float, searched: Range) -> float:
    return math.log(value) if searched.is_log else value


def _divide(searched: Range, num: int) -> list[float]:
    """Return the `num + 1` edges of equal parts of a range."""
    low, high = _scale(searched.low, searched), _scale(searched.high, searched)
    edges = [low + (high - low) * i / num for i in range(num + 1)]
    return [math.exp(edge) for edge in edges] if searched.is_log else edges


def _list_choices(values: Sequence[Any]) -> list[Any]:
    """Return the distinct values in order: numbers by size, other values by name."""
    return sorted(set(values), key=lambda value: (isinstance(value, str), value))
