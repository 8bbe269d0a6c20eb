"""Measure the data pipeline beside Hugging Face datasets with the same functions, in one run.

    python -m benchmarks.data --json outputs/bench/data.json

The benchmark reads ../shared/data/icons-large, or the pip-installed icons if that is absent. All
candidates of a comparison run in turns, and a ratio is the median over the turns. CPU seconds are
those of the process, so that other work on the machine has little effect.
"""

import argparse
import dataclasses
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ray

from benchmarks.corpus import (
    Corpus,
    Figures,
    cpu_seconds,
    data_config,
    open_corpus,
    run_in_new_process,
)
from benchmarks.datasets_map import compare
from data_pipeline.config import PrepareConfig
from data_pipeline.prepare.dataset import prepare_dataset
from data_pipeline.shards import open_shards
from data_pipeline.stream.ray_dataset import build_dataset, iterate_batches
from data_pipeline.stream.token_stream import Position, Stream

TURNS, RESUMES = 3, 6
LOGICAL_CPUS = 4
TRAINER_STEPS = 60


def main() -> None:
    """Run the benchmark and write its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=50_000, help="drawings of the long pass")
    arguments = parser.parse_args()

    started = time.monotonic()

    with tempfile.TemporaryDirectory(prefix="bench-data-") as name:
        folder = Path(name)
        corpus = open_corpus(folder, arguments.rows)
        print(corpus.description, flush=True)
        figures = measure_parts(corpus, folder, started)

    report = {
        "figures": figures,
        "corpus": corpus.description,
        "seconds": round(time.monotonic() - started, 1),
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


def measure_parts(corpus: Corpus, folder: Path, started: float) -> Figures:
    """Run the parts of the benchmark one after another and print the figures of each."""
    shards, cache = str(folder / "shards"), str(folder / "cache")

    def prepared() -> Stream:
        return Stream(open_shards(shards), data_config(shards), corpus.tokenizer, num_epochs=1)

    parts: list[tuple[str, Callable[[], Figures]]] = [
        ("against datasets.map", lambda: run_in_new_process(compare, corpus, folder)),
        ("prepare the long pass", lambda: prepare_all(corpus, shards)),
        ("the long pass", lambda: run_in_new_process(long_pass, prepared())),
        ("tokens from the cache", lambda: run_in_new_process(cached_pass, prepared(), cache)),
        ("resuming, and a trainer that waits", lambda: on_ray(prepared(), folder)),
        ("drawings", canonical),
    ]

    figures: Figures = {}
    for number, (part, measure) in enumerate(parts, 1):
        seconds = time.monotonic() - started
        print(f"[{number}/{len(parts)}] {part} ({seconds:.0f} s so far)", flush=True)
        measured = measure()
        for name, value in measured.items():
            text = f"{value:.4g}" if isinstance(value, float) else f"{value}"
            print(f"      {name} {text}", flush=True)
        figures |= measured
    return figures


def canonical() -> Figures:
    """Return the figures of `benchmarks.canonical`."""
    from benchmarks.canonical import figures

    return figures()


# A long pass


def prepare_all(corpus: Corpus, shards: str) -> Figures:
    """Write the shards that the later parts read, without a measurement."""
    prepare_dataset(
        [str(corpus.parquet)], PrepareConfig(out=shards, validation_share=0, test_share=0)
    )
    return {}


def long_pass(stream: Stream) -> Figures:
    """Return the filled share of sequences, and the growth of resident memory.

    The growth is the peak from 20 % of the pass on, over the memory at 20 %, less 1.
    """
    resident, num_tokens, num_slots = [], 0, 0
    for number in range(stream.num_shuffle_blocks):
        block = stream.pack_shuffle_block(number)
        num_tokens += int(block["num_tokens"].sum())
        num_slots += block["input_ids"].size
        resident.append(_resident_bytes())
        if number % 8 == 0:
            mebibytes = resident[-1] / 2**20
            print(
                f"      block {number} of {stream.num_shuffle_blocks}: {mebibytes:.0f} MiB",
                flush=True,
            )

    later = resident[math.ceil(0.2 * len(resident)) - 1 :]
    return {"fill": num_tokens / num_slots, "rss_growth": max(later) / later[0] - 1}


def cached_pass(stream: Stream, cache: str) -> Figures:
    """Return CPU seconds of encoding a block over those of reading its tokens, in turns."""
    cached = dataclasses.replace(
        stream, config=stream.config.model_copy(update={"cache_dir": cache})
    )
    ratios = []
    for number in range(min(stream.num_shuffle_blocks, 2 * TURNS)):
        cached.pack_shuffle_block(number)
        spent = []
        for each in (stream, cached):
            before = cpu_seconds()
            each.pack_shuffle_block(number)
            spent.append(cpu_seconds() - before)
        ratios.append(spent[0] / spent[1])
    return {"cache_speedup": statistics.median(ratios)}


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


# With Ray


def on_ray(stream: Stream, folder: Path) -> Figures:
    """Return the figures of the parts that need Ray."""
    from app.jobs.cluster import connect_ray

    with connect_ray(num_cpus=LOGICAL_CPUS):
        return resume_cost(stream) | trainer(folder)


def resume_cost(stream: Stream) -> Figures:
    """Return the seconds from building the pipeline to its first batch.

    One start is in the middle of a block at 95 % of an epoch, the other is the start of the epoch.
    """
    block = int(0.95 * stream.num_shuffle_blocks)
    num_sequences = len(stream.pack_shuffle_block(block)["index"])
    starts = {"start": Position(), "late": Position(block, num_sequences // 2, num_sequences)}
    seconds: dict[str, list[float]] = {name: [] for name in starts}
    for turn in range(RESUMES + 1):
        for name, start in sorted(starts.items(), reverse=turn % 2 == 0):
            spent = first_batch_seconds(stream, start)
            if turn:  # the first starts Ray's processes
                seconds[name].append(spent)
    print(f"      seconds to the first batch: {seconds}", flush=True)
    at_start, late = (statistics.median(seconds[name]) for name in ("start", "late"))
    return {"resume_cost_ratio": late / at_start, "first_batch_seconds": at_start}


def first_batch_seconds(stream: Stream, start: Position) -> float:
    """Return the seconds to the first batch, once the previous pipeline has ended.

    Its remaining work would otherwise add to the seconds of this one.
    """
    while ray.available_resources().get("CPU", 0.0) < LOGICAL_CPUS:
        time.sleep(0.1)
    began = time.monotonic()
    dataset = build_dataset(stream, start=start, micro_batch_size=1, num_workers=1)
    (shard,) = dataset.streaming_split(1, equal=True)
    batch, _ = next(iterate_batches(shard, micro_batch_size=1, num_workers=1, prefetch=4))
    assert (int(batch["shuffle_block"][0]), int(batch["index"][0])) == (
        start.shuffle_block,
        start.index,
    )
    return time.monotonic() - began


def trainer(folder: Path) -> Figures:
    """Return the share of its time that the demo's trainer waits for data after the first batch."""
    from mlflow import MlflowClient

    from app.config import load_config, make_paths_absolute
    from app.jobs.precision import resolve_precision
    from app.jobs.train import train_job
    from app.tracking import check_tracking

    prepare_dataset(
        ["phosphor"], PrepareConfig(out=str(folder / "icons"), max_records=3000), progress=False
    )
    config = resolve_precision(make_paths_absolute(load_config("demo", {
        "data.shards": str(folder / "icons"), "data.max_validation_records": 8,
        "train.output_dir": str(folder / "job"),
        "train.max_steps": TRAINER_STEPS, "train.eval_steps": 1000, "train.save_steps": None,
        "tracking.uri": f"sqlite:///{folder}/mlflow.db",
    })))  # fmt: skip
    check_tracking(config.tracking)

    # train
    run_id = train_job(config, open_shards(config.data.shards)).run_id

    # read the seconds of each step
    client = MlflowClient(config.tracking.uri)
    waits, steps = (
        {
            point.step: point.value
            for point in client.get_metric_history(run_id, f"speed/{name}_seconds")
        }
        for name in ("data_wait", "step")
    )
    waited, worked = (
        sum(seconds for step, seconds in part.items() if step > 1) for part in (waits, steps)
    )
    return {
        "wait_share": waited / (waited + worked),
        "longest_wait_seconds": max(list(waits.values())[1:]),
    }


if __name__ == "__main__":
    main()
