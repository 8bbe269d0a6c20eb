"""Commands of the command line in the process of a test: a Python of their own takes seconds."""

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path

from app.__main__ import main


@dataclass(frozen=True)
class Done:
    """End of a command."""

    returncode: int
    stdout: str
    stderr: str


def run_command(*arguments: str, cwd: Path | None = None) -> Done:
    """Run one command in `cwd`; None: in the folder of the tests' process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd or Path.cwd()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            code = main(arguments)
        except SystemExit as exit:  # argparse refuses the arguments, or has printed its help
            code = int(exit.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


def refuse_command(*arguments: str, cwd: Path | None = None) -> str:
    """Return the one sentence with which the command is refused."""
    done = run_command(*arguments, cwd=cwd)
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("svgscribe: "), done.stderr
    return last
