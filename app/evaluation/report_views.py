"""Contents of a report: runs, drawings and captions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.evaluation.gallery import escape_text
from app.evaluation.report_charts import Points


@dataclass(frozen=True)
class CaptionView:
    """The caption of one run, with its wrong claims (words, finding in the drawing)."""

    caption: str
    wrong: Sequence[tuple[str, str]] = ()
    faults: Sequence[str] = ()


@dataclass(frozen=True)
class DrawingView:
    """A drawing with its reference caption, and the caption of each run (None: it has none)."""

    id: str
    svg: str
    reference: str
    captions: Sequence[CaptionView | None]


@dataclass(frozen=True)
class RunView:
    """All that the page shows of one job. Every part may be empty."""

    name: str
    settings: Mapping[str, str] = field(default_factory=dict)
    """Value of each setting by dotted path."""
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Scores, as in evaluation.json: value, low, high, n, target, holds, beats_baselines."""
    compared_with: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    """Scores of the base model and of the baselines, by their kind."""
    groups: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    """Scores of the drawings of one source, or of similar lengths, by the group's name."""
    curves: Mapping[str, Points] = field(default_factory=dict)
    figures: Mapping[str, str] = field(default_factory=dict)
    """Cost, time and other figures, with their units."""
    notices: Sequence[str] = ()
    """Sentences about parts that are missing."""


def name_run(number: int, run: RunView) -> str:
    """Return the name of a run as HTML, after a dot in its colour."""
    return f'<span class="name r{number}">{escape_text(run.name)}</span>'
