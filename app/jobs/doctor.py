"""`python -m app doctor`: one line per check, with the fix of a failed one; never a traceback."""

import threading

from app.config import Config
from app.errors import UserError
from app.jobs import doctor_checks as checks
from app.jobs.doctor_checks import Check, Line
from data_pipeline.errors import DataError
from data_pipeline.masking import mask_secrets

_CHECKS: dict[str, tuple[Check, float | None]] = {
    "packages": (checks.check_packages, None),  # imports are slow on a busy machine, but they end
    "gpu": (checks.check_gpu, 15),
    "calibration": (checks.check_calibration, None),
    "bitsandbytes": (checks.check_bitsandbytes, 15),
    "storage": (checks.check_storage, 15),
    "shards": (checks.check_shards, 15),
    "model": (checks.check_model, None),
    "tracking": (checks.check_tracking_server, None),  # obeys tracking.timeout_seconds
    "ray": (checks.check_ray, 15),
}
"""(check, time limit in seconds) by name."""


def run_doctor(config: Config) -> int:
    """Print `ok`, `warn` or `FAIL` lines for each check. Return 1 if a check failed, else 0."""
    failed = False
    for name, (check, limit_seconds) in _CHECKS.items():
        for status, text in run_check(check, config, limit_seconds):
            failed |= status == "FAIL"
            print(f"{status:<5}{name:<13}{text}", flush=True)
    return int(failed)


def run_check(check: Check, config: Config, limit_seconds: float | None) -> list[Line]:
    """Return the lines of one check; an exception or a timeout becomes a FAIL line."""
    lines: list[Line] = []

    def run() -> None:
        try:
            lines.extend(check(config))
        except (UserError, DataError) as error:
            lines.append(("FAIL", str(error)))
        except Exception as error:  # a broken installation or a server may raise any exception
            reason = mask_secrets(" ".join(str(error).split()))[:300]
            lines.append(("FAIL", f"{type(error).__name__}: {reason}"))

    # A daemon thread: a check that hangs does not keep the process alive.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit_seconds)
    if thread.is_alive():
        late = f"no answer in {limit_seconds} s: check the network, the disk or the server"
        return [*lines, ("FAIL", late)]
    return lines
