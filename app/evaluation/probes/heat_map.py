"""Draw the statistics of each layer and head as heat maps in one SVG."""

import math
from collections.abc import Sequence
from html import escape

from app.evaluation.probes.model import LayerProbe, ModelProbe

CELL, LEFT, TOP, GAP = 16, 64, 64, 28
"""Size of a cell, width of the row labels, height of the titles, and distance of the panels."""
MIN_PANEL = 168
"""Least width of a panel, so that its title fits."""
LIGHT, DARK = (240, 244, 236), (18, 64, 90)
"""Colours of the least and of the largest value."""
PANELS = (
    ("entropy", "attention entropy (nats)"),
    ("window_mass", "attention inside window"),
    ("bent_share", "scores beyond cap / 2"),
    ("gradient_lost", "gradient lost to cap"),
    ("largest_score", "largest score"),
)


def render_heat_map(probe: ModelProbe, *, title: str) -> str:
    """Return an SVG with a panel for each statistic: rows are layers, columns are query heads.

    A cell has its value as a tooltip. Each panel has a scale of its own, which its second line
    names. A layer with a window is marked `w`.
    """
    num_heads = len(probe.layers[0].entropy)
    panel_width = max(num_heads * CELL, MIN_PANEL)
    width = LEFT + len(PANELS) * (panel_width + GAP)
    height = TOP + len(probe.layers) * CELL + GAP

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="8" y="18" font-size="14">{escape(title)}</text>',
    ]
    for i, layer in enumerate(probe.layers):
        mark = "" if layer.window is None else " w"
        parts.append(f'<text x="8" y="{TOP + i * CELL + 12}">layer {i}{mark}</text>')
    for number, (name, label) in enumerate(PANELS):
        left = LEFT + number * (panel_width + GAP)
        parts += _render_panel(probe.layers, name, label, left)
    return "\n".join([*parts, "</svg>"])


def _render_panel(layers: Sequence[LayerProbe], name: str, label: str, left: int) -> list[str]:
    rows: list[list[float]] = [getattr(layer, name) for layer in layers]
    values = [value for row in rows for value in row]
    low, high = min(values), max(values)

    parts = [
        f'<text x="{left}" y="{TOP - 22}">{label}</text>',
        f'<text x="{left}" y="{TOP - 7}" fill="#666">{low:.3g} to {high:.3g}</text>',
    ]
    for i, row in enumerate(rows):
        for head, value in enumerate(row):
            share = (value - low) / (high - low) if high > low else 0.0
            parts.append(
                f'<rect x="{left + head * CELL}" y="{TOP + i * CELL}" width="{CELL - 1}" '
                f'height="{CELL - 1}" fill="{_mix_colour(share)}">'
                f"<title>layer {i}, head {head}: {value:.4g}</title></rect>"
            )
    return parts


def _mix_colour(share: float) -> str:
    """Return the colour of a value at this share of the scale; grey if it is not a number."""
    if not math.isfinite(share):
        return "#999999"
    mixed = (round(a + (b - a) * share) for a, b in zip(LIGHT, DARK, strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)
