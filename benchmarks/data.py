"""What the data pipeline delivers, beside Hugging Face datasets with the same functions, in one run.

    python -m benchmarks.data --json outputs/bench/data.json

On ../shared/data/icons-large where it is, else on the pip-installed icons. Everything that is compared runs in
turns; a ratio is the median over the turns. CPU seconds are the process's own: other work on the machine counts
for little.
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

from benchmarks.corpus import Corpus, Figures, apart, cpu_seconds, data_config, open_corpus
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=50_000, help="drawings of the long pass")
    arguments = parser.parse_args()
    started = time.monotonic()
    figures: Figures = {}
    parts: list[tuple[str, Callable[[], Figures]]] = []
    with tempfile.TemporaryDirectory(prefix="bench-data-") as name:
        folder = Path(name)
        corpus = open_corpus(folder, arguments.rows)
        print(corpus.says, flush=True)
        shards = str(folder / "shards")
        stream = Stream(open_shards(shards), data_config(shards), corpus.tokenizer, num_epochs=1)
        parts = [
            ("against datasets.map", lambda: apart(compare, corpus, folder)),
            ("prepare the long pass", lambda: prepare_all(corpus, shards)),
            ("the long pass", lambda: apart(long_pass, stream)),
            ("tokens from the cache", lambda: apart(cached_pass, stream, str(folder / "cache"))),
            ("resuming, and a trainer that waits", lambda: on_ray(stream, folder)),
            ("drawings", canonical),
        ]
        for number, (part, measure) in enumerate(parts, 1):
            print(
                f"[{number}/{len(parts)}] {part} ({time.monotonic() - started:.0f} s so far)",
                flush=True,
            )
            measured = measure()
            for name, value in measured.items():
                print(
                    f"      {name} {value:.4g}"
                    if isinstance(value, float)
                    else f"      {name} {value}",
                    flush=True,
                )
            figures |= measured
    report = {
        "figures": figures,
        "corpus": corpus.says,
        "seconds": round(time.monotonic() - started, 1),
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


def canonical() -> Figures:
    from benchmarks.canonical import figures

    return figures()


# A long pass


def prepare_all(corpus: Corpus, shards: str) -> Figures:
    """Not measured: what the parts after it read."""
    prepare_dataset([str(corpus.parquet)], PrepareConfig(out=shards, validation_share=0.0))
    return {}


def long_pass(stream: Stream) -> Figures:
    """How full rows are, and by how much resident memory exceeds that at 20 % until the end of the pass."""
    resident, num_tokens, num_slots = [], 0, 0
    for number in range(stream.num_shuffle_blocks):
        block = stream.shuffle_block(number)
        num_tokens += int(block["num_tokens"].sum())
        num_slots += block["input_ids"].size
        resident.append(_resident_bytes())
        if number % 8 == 0:
            print(
                f"      block {number} of {stream.num_shuffle_blocks}: {resident[-1] / 2**20:.0f} MiB",
                flush=True,
            )
    later = resident[math.ceil(0.2 * len(resident)) - 1 :]
    return {"fill": num_tokens / num_slots, "rss_growth": max(later) / later[0] - 1}


def cached_pass(stream: Stream, cache: str) -> Figures:
    """CPU seconds of blocks that are encoded, over those of blocks whose tokens are read, in turns."""
    cached = dataclasses.replace(stream, config=stream.config.model_copy(update={"cache": cache}))
    ratios = []
    for number in range(min(stream.num_shuffle_blocks, 2 * TURNS)):
        cached.shuffle_block(number)
        spent = []
        for each in (stream, cached):
            before = cpu_seconds()
            each.shuffle_block(number)
            spent.append(cpu_seconds() - before)
        ratios.append(spent[0] / spent[1])
    return {"cache_speedup": statistics.median(ratios)}


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


# With Ray


def on_ray(stream: Stream, folder: Path) -> Figures:
    from app.jobs.cluster import connect

    with connect(num_cpus=LOGICAL_CPUS):
        return resume_cost(stream) | trainer(folder)


def resume_cost(stream: Stream) -> Figures:
    """Seconds from building the pipeline to its first batch, amid a block at 95 % of an epoch and at its start."""
    block = int(0.95 * stream.num_shuffle_blocks)
    num_rows = len(stream.shuffle_block(block)["index"])
    starts = {"start": Position(), "late": Position(block, num_rows // 2, num_rows)}
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
    """Once the pipeline before has ended: what it still had to do would be counted as this one's."""
    while ray.available_resources().get("CPU", 0.0) < LOGICAL_CPUS:
        time.sleep(0.1)
    began = time.monotonic()
    (shard,) = build_dataset(stream, start=start, num_workers=1).streaming_split(1, equal=True)
    batch, _ = next(iterate_batches(shard, micro_batch_size=1, rank=0, num_workers=1, prefetch=4))
    assert (int(batch["shuffle_block"][0]), int(batch["index"][0])) == (
        start.shuffle_block,
        start.index,
    )
    return time.monotonic() - began


def trainer(folder: Path) -> Figures:
    """The demo's trainer on the demo's icons: what share of its time it waits for data after the first batch."""
    from mlflow import MlflowClient

    from app.config import load_config, make_paths_absolute
    from app.jobs.train import train_job
    from app.tracking import check_tracking

    prepare_dataset(
        ["phosphor"], PrepareConfig(out=str(folder / "icons"), max_records=3000), progress=False
    )
    config = make_paths_absolute(load_config("demo", {
        "data.shards": str(folder / "icons"), "data.max_validation_examples": 8, "train.output_dir": str(folder / "job"),
        "train.max_steps": TRAINER_STEPS, "train.eval_steps": 1000, "train.save_steps": None,
        "tracking.uri": f"sqlite:///{folder}/mlflow.db",
    }))  # fmt: skip
    check_tracking(config.tracking)
    run_id = train_job(config, open_shards(config.data.shards)).run_id
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
