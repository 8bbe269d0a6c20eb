"""The table of a running search: its lines, and its place on a terminal."""

import io
import re
import sys

import pytest

from tune.trial_table import TrialTable, show_table


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def make_table() -> tuple[TrialTable, Clock]:
    clock = Clock()
    table = TrialTable(4, 100, clock)
    for name, rank in (("a", 8), ("b", 16), ("c", 32)):
        table.start(name, {"lora.rank": rank, "optim.learning_rate": 0.00034567})
    clock.now = 10.0  # the first evaluation, at step 0, comes after the start of the worker
    for name in "abc":
        table.report(name, 0, 5.0)
    clock.now = 30.0
    table.report("a", 20, 2.0)
    table.report("a", 20, float("nan"))
    table.report("b", 40, 1.5)
    table.end("b", "pruned")
    return table, clock


def test_a_table_has_a_line_for_each_trial_with_its_time_left() -> None:
    table, _ = make_table()
    assert table.render() == [
        "trial  state    step    loss    left  parameters",
        "a      running  20/100  2.0000  80 s  lora.rank=8, optim.learning_rate=0.0003457",
        "c      running  0/100   5.0000        lora.rank=32, optim.learning_rate=0.0003457",
        "b      pruned   40/100  1.5000        lora.rank=16, optim.learning_rate=0.0003457",
        "1 of 4 trials ended in 30 s, about 70 s left",
    ]


def test_the_steps_of_a_trial_end_where_its_data_end() -> None:
    table, clock = make_table()
    table.report("a", 20, 2.0, progress=0.5)
    assert table.render()[1].split()[:6] == ["a", "running", "20/40", "2.0000", "20", "s"]
    assert table.render()[-1] == "1 of 4 trials ended in 30 s, about 50 s left"
    clock.now = 50.0
    table.report("a", 39, 1.75, progress=1.0)
    table.end("a", "finished")
    assert table.render()[3].startswith("a      finished  39/39   1.7500")


def test_a_table_fits_its_terminal_and_counts_the_trials_that_it_hides() -> None:
    table, clock = make_table()
    clock.now = 3000.0
    lines = table.render(width=40, height=4)
    assert [len(line) <= 40 for line in lines] == [True] * 3
    assert lines[1].startswith("a      running")
    table = TrialTable(200, 10)
    for number in range(200):
        table.start(f"{number:03d}", {})
        table.report(f"{number:03d}", 10, 1.0 + number)
        table.end(f"{number:03d}", "finished")
    lines = table.render(100, 24)
    assert len(lines) == 23
    assert lines[-1].startswith("200 of 200 trials ended in 0 s, 179 more not shown")


def show(output: str) -> list[str]:
    """Return the lines that a terminal shows after this output."""
    lines, row = [""], 0
    for part in re.findall(r"\x1b\[\d*[A-Z]|\n|[^\x1b\n]+", output):
        if part == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif part == "\x1b[J":
            lines[row:] = [""]
        elif part.startswith("\x1b["):
            row -= int(part[2:-1])
            assert row >= 0
        else:
            lines[row] += part
    return lines


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_other_output_stays_whole_above_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)  # set by pytest-xdist
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    table, _ = make_table()
    with show_table(table):
        print("one line")
        print("an error", file=sys.stderr)
        sys.stdout.write("a line in ")
        sys.stdout.write("two parts\n")
        table.end("a", "failed")
        print("the last")
        drawn = show(terminal.getvalue())
    others = ["one line", "an error", "a line in two parts", "the last"]
    assert drawn[:4] == others
    assert drawn[4:] == [line[:79] for line in table.render()] + [""]
    assert show(terminal.getvalue()) == [*others, *table.render(), ""]
    assert sys.stdout is terminal


def test_a_log_gets_the_table_once_and_no_control_codes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)  # set by pytest-xdist
    table, _ = make_table()

    def stop() -> None:
        with show_table(table):
            print("one line")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert capsys.readouterr().out.splitlines() == ["one line", *table.render()]
