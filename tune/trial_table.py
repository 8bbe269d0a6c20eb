"""Table of the trials of a search: redrawn on a terminal, printed at the end in a log."""

import contextlib
import math
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TextIO, cast

from tune.campaign import format_params
from tune.outcome import State

EVERY_SECONDS = 0.5
"""Shortest time between two drawings."""
_HEADER = ("trial", "state", "step", "loss", "left", "parameters")


@dataclass
class _Row:
    params: Mapping[str, Any]
    num_steps: int
    """Steps to the end of the trial: of its data, or the limit of all trials."""
    started_at: float
    state: State | str = "running"
    first_step: int | None = None
    step: int = 0
    loss: float = math.inf
    """Lowest evaluation loss."""


class TrialTable:
    """Trials with step, loss, state and time left. Its methods may be called from any thread."""

    def __init__(
        self, num_trials: int, trial_steps: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._num_trials, self._trial_steps, self._clock = num_trials, trial_steps, clock
        self._started_at = clock()
        self._rows: dict[str, _Row] = {}

    def start(self, trial_id: str, params: Mapping[str, Any]) -> None:
        """Add a trial that starts, or that runs again."""
        self._rows[trial_id] = _Row(params, self._trial_steps, self._clock())

    def report(self, trial_id: str, step: int, loss: float, progress: float | None = None) -> None:
        """Note an evaluation of a running trial, of which the share `progress` is done."""
        row = self._rows[trial_id]
        if progress:
            row.num_steps = round(step / progress)
        if row.first_step is None:
            row.first_step, row.started_at = step, self._clock()
        row.step = step
        if math.isfinite(loss):
            row.loss = min(row.loss, loss)

    def end(self, trial_id: str, state: State) -> None:
        """Note the end of a trial."""
        self._rows[trial_id].state = state

    def render(self, width: int = 100, height: int = 1000) -> list[str]:
        """Return the lines of the table, the running trials first and then by loss.

        No line is longer than `width`. More trials than `height` lines are counted in the last one.
        """
        started = list(self._rows.items())
        rows = sorted(started, key=lambda item: (item[1].state != "running", item[1].loss))
        shown = rows[: max(1, height - 3)]
        cells = [_HEADER, *(self._format_row(trial_id, row) for trial_id, row in shown)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(_HEADER))]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
        hidden = f", {len(rows) - len(shown)} more not shown" if len(rows) > len(shown) else ""
        return [line[:width] for line in (*lines, self._format_summary() + hidden)]

    def _format_row(self, trial_id: str, row: _Row) -> tuple[str, ...]:
        loss = "" if row.loss == math.inf else f"{row.loss:.4f}"
        left = _format_seconds(self._estimate_trial(row)) if row.state == "running" else ""
        step = f"{row.step}/{row.num_steps}"
        return trial_id, row.state, step, loss, left, format_params(row.params)

    def _estimate_trial(self, row: _Row) -> float | None:
        """Return the seconds until the trial's last step, None if its speed is not known yet."""
        if row.first_step is None or row.step <= row.first_step:
            return None
        seconds_per_step = (self._clock() - row.started_at) / (row.step - row.first_step)
        return max(0.0, seconds_per_step * (row.num_steps - row.step))

    def _format_summary(self) -> str:
        running = [row for row in list(self._rows.values()) if row.state == "running"]
        num_ended = len(self._rows) - len(running)
        seconds = self._clock() - self._started_at
        text = f"{num_ended} of {self._num_trials} trials ended in {_format_seconds(seconds)}"

        # time left, from the share of the work that is done
        shares = sum(row.step / row.num_steps for row in running)
        done = (num_ended + shares) / self._num_trials
        if 0 < done < 1:
            text += f", about {_format_seconds(seconds * (1 - done) / done)} left"
        return text


@contextlib.contextmanager
def show_table(table: TrialTable) -> Iterator[None]:
    """Redraw the table below all output of this process, if standard output is a terminal.

    At the end the last table stays; without a terminal it is printed once, then.
    """
    try:
        if sys.stdout.isatty():
            with _Screen(table, sys.stdout):
                yield
        else:
            yield
    finally:
        width = shutil.get_terminal_size((160, 24)).columns
        print("\n".join(table.render(width)), flush=True)


class _Screen:
    """Context in which the table is at the bottom of a terminal, below all other output."""

    def __init__(self, table: TrialTable, terminal: TextIO) -> None:
        self._table, self._terminal = table, terminal
        self._num_lines = 0  # lines of the drawn table
        self._is_line_open = False  # True: the other output has not ended its line
        self._lock = threading.RLock()
        self._stopped = threading.Event()
        self._redraw = threading.Thread(target=self._run, daemon=True)
        self._redirects = contextlib.ExitStack()

    def __enter__(self) -> None:
        out, err = (cast(TextIO, _Above(self, stream)) for stream in (sys.stdout, sys.stderr))
        self._redirects.enter_context(contextlib.redirect_stdout(out))
        self._redirects.enter_context(contextlib.redirect_stderr(err))
        self._redraw.start()

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        self._redraw.join()
        self._redirects.close()
        self._erase()

    def write_above(self, stream: TextIO, text: str) -> int:
        """Write text in the place of the table, and draw the table below it."""
        with self._lock:
            self._erase()
            written = stream.write(text)
            stream.flush()
            self._is_line_open = not text.endswith("\n")
            self._draw()
            return written

    def _run(self) -> None:
        while not self._stopped.wait(EVERY_SECONDS):
            with self._lock:
                self._erase()
                self._draw()

    def _erase(self) -> None:
        if self._num_lines:
            self._terminal.write(f"\x1b[{self._num_lines}F\x1b[J")  # up to its first line; clear
            self._terminal.flush()
            self._num_lines = 0

    def _draw(self) -> None:
        if self._is_line_open:
            return
        size = shutil.get_terminal_size()
        lines = self._table.render(size.columns - 1, size.lines - 1)
        self._terminal.write("\n".join(lines) + "\n")
        self._terminal.flush()
        self._num_lines = len(lines)


class _Above:
    """Text stream whose text appears above the table, and is otherwise the given one."""

    def __init__(self, screen: _Screen, stream: TextIO) -> None:
        self._screen, self._stream = screen, stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write the text above the table. Return the number of characters of `text`."""
        return self._screen.write_above(self._stream, text)


def _format_seconds(seconds: float | None) -> str:
    """Return a duration such as `45 s`, `12 min` or `3.5 h`; empty if it is not known."""
    if seconds is None:
        return ""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
