"""How benchmarks measure: CPU seconds of candidates that take turns, and peak resident memory in a fresh process."""

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
    """One thread: CPU time is then time, however busy the machine is."""
    torch.set_num_threads(1)


def medians(candidates: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Median CPU seconds of each candidate; they alternate, after one round that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(REPEATS + 1):
        for name, run in candidates.items():
            started = time.process_time()
            run()
            taken[name].append(time.process_time() - started)
    return {name: statistics.median(seconds[1:]) for name, seconds in taken.items()}


def peak_bytes(prepare: Callable[..., Callable[[], Any]], *arguments: Any) -> int:
    """Resident bytes that `prepare(*arguments)()` adds at its peak, in a process of its own."""
    return peak_and_final_bytes(prepare, *arguments)[0]


def peak_and_final_bytes(
    prepare: Callable[..., Callable[[], Any]], *arguments: Any
) -> tuple[int, int]:
    """The same, and the bytes that what it returns keeps."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_and_final, prepare, *arguments).result()


def _peak_and_final(prepare: Callable[..., Callable[[], Any]], *arguments: Any) -> tuple[int, int]:
    one_thread()
    run = prepare(*arguments)
    run()  # what libraries keep after their first use is not counted
    before = settled_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    kept = run()
    peak = status("VmHWM")
    final = settled_bytes()
    del kept
    return peak - before, final - before


def settled_bytes() -> int:
    """Resident bytes without what is free already."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return status("VmRSS")


def status(field: str) -> int:
    """Bytes of one line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def write(report: Mapping[str, Any], path: Path) -> None:
    """To the file, and to the screen."""
    text = json.dumps(
        {**report, "clock": f"CPU seconds, 1 thread, medians of {REPEATS}, alternating"}, indent=2
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
    print(text)
