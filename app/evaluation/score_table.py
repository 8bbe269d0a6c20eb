"""Table of the scores in a report, for a terminal."""

from collections.abc import Mapping
from typing import Any

from app.evaluation.scores import BASE, BASELINES

COLUMNS = (BASE, *BASELINES)


def format_scores(report: Mapping[str, Any]) -> str:
    """Return one line for each score: interval, base model, baselines, target.

    A score that does not beat both baselines is marked with a star.
    """
    metrics, compared = report["metrics"], report["compared_with"]
    lines = [
        f"{'score':<28} {'tuned':>8} {'95 % interval':>18} {'n':>6}"
        + "".join(f" {column:>9}" for column in COLUMNS)
        + "  target"
    ]
    for name, metric in metrics.items():
        if metric["value"] is None:
            continue
        star = "*" if metric["beats_baselines"] is False else " "
        interval = f"[{metric['low']:.3f}, {metric['high']:.3f}]"
        others = (compared.get(column, {}).get(name, {}).get("value") for column in COLUMNS)
        cells = (" " * 10 if other is None else f" {other:9.3f}" for other in others)
        lines.append(
            f"{name:<28} {metric['value']:8.3f}{star}{interval:>18} {metric['n']:6}"
            + "".join(cells)
            + f"  {_format_target(metric)}"
        )

    # notes
    if any(metric["beats_baselines"] is False for metric in metrics.values()):
        lines.append("* does not beat both baselines: the interval of a difference is not above 0")
    lines += [f"{name} not measured: {reason}" for name, reason in report["not_measured"].items()]
    return "\n".join(line.rstrip() for line in lines)


def _format_target(metric: Mapping[str, Any]) -> str:
    """Return the target with pass or fail; "not certain" if the interval holds the target."""
    target = metric["target"]
    if target is None:
        return ""
    verdict = "pass" if metric["holds"] else "fail"
    is_certain = not metric["low"] <= target <= metric["high"]
    return f"{target:g} {verdict}" + ("" if is_certain else ", not certain")
