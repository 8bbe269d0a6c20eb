"""Measure CPU seconds of candidates in turns, and peak resident memory in a new process."""

import ctypes
import gc
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

REPEATS = 5


def one_thread() -> None:
    """Use one thread, so that CPU seconds equal the seconds on an idle machine."""
    torch.set_num_threads(1)


def medians(candidates: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Return the median CPU seconds of each candidate.

    The candidates alternate. The first round is a warm-up and does not count.
    """
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(REPEATS + 1):
        for name, run in candidates.items():
            started = time.process_time()
            run()
            taken[name].append(time.process_time() - started)
    return {name: statistics.median(seconds[1:]) for name, seconds in taken.items()}


def peak_bytes(prepare: Callable[..., Callable[[], Any]], *arguments: Any) -> int:
    """Return the resident bytes that `prepare(*arguments)()` adds at its peak, in a new process."""
    return peak_and_final_bytes(prepare, *arguments)[0]


def peak_and_final_bytes(
    prepare: Callable[..., Callable[[], Any]], *arguments: Any
) -> tuple[int, int]:
    """Return the bytes of `peak_bytes`, and the bytes that the returned object keeps."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_and_final, prepare, *arguments).result()


def _peak_and_final(prepare: Callable[..., Callable[[], Any]], *arguments: Any) -> tuple[int, int]:
    one_thread()
    run = prepare(*arguments)
    run()  # memory that libraries keep after their first use does not count

    before = settled_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    kept = run()
    peak = status("VmHWM")
    final = settled_bytes()
    del kept
    return peak - before, final - before


def settled_bytes() -> int:
    """Return the resident bytes, after freed memory went back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return status("VmRSS")


def status(field: str) -> int:
    """Return the bytes in one line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def write(report: Mapping[str, Any], path: Path) -> None:
    """Write the report to the file and to the screen."""
    text = json.dumps(
        {**report, "clock": f"CPU seconds, 1 thread, medians of {REPEATS}, alternating"}, indent=2
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
    print(text)
