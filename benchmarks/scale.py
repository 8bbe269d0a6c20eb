"""Measure the costs that could grow with shards, workers, shuffle blocks or records.

    python -m benchmarks.scale --json outputs/bench/scale.json

- `opening_reads_N`: requests to an S3 server on loopback that open N shards.
- `bytes_per_worker_N`: the most bytes that one of N workers is sent in a short epoch. 1 and 8
  workers read through Ray Data. For 64 and 512 the dealer runs without Ray, on more records.
- `bytes_per_worker_ratio_N`: these bytes over the bytes of the tokens that the worker trains on.
- `first_batch_seconds_20000`: from building the pipeline to its first batch, of 20,000 shuffle
  blocks on a connected Ray; median of several starts after the first.
- `prepare_rss_growth`, `driver_ms_per_record`: see `benchmarks.scale_prepare`.
"""

import argparse
import dataclasses
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
from ray.data import DataIterator

from app.gemma.base_model import TINY
from benchmarks.corpus import Figures
from benchmarks.s3_server import serve_s3
from data_pipeline.config import DataConfig
from data_pipeline.shards import ShardRecord, ShardWriter, open_shards
from data_pipeline.stream.ray_dataset import build_dataset, iterate_batches
from data_pipeline.stream.token_stream import Batch, Position, Stream
from data_pipeline.stream.worker_batches import Dealer

NUM_SHARDS = (1, 100, 1000)
REAL_WORKERS, SIMULATED_WORKERS = (1, 8), (64, 512)
BLOCK_EXAMPLES, SIMULATED_RECORDS, READ_RECORDS = 64, 16_384, 2048
NUM_BLOCKS, STARTS = 20_000, 3


def main() -> None:
    """Run the benchmark and write its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()

    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    figures: Figures = {}
    parts: list[Callable[[Path], Figures]] = [measure_opening, measure_stream, measure_prepare]
    for measure in parts:
        with tempfile.TemporaryDirectory(prefix="bench-scale-") as folder:
            measured = measure(Path(folder))
        print(json.dumps(measured, indent=2), flush=True)
        figures |= measured
        arguments.json.write_text(json.dumps({"figures": figures}, indent=2) + "\n")


def measure_prepare(folder: Path) -> Figures:
    """Return the figures of `benchmarks.scale_prepare`."""
    from benchmarks.scale_prepare import measure_prepare

    return measure_prepare()


def write_dataset(folder: Path, num_shards: int, shard_records: int = 1) -> None:
    """Write a dataset of short drawings."""
    writer = ShardWriter(str(folder), shard_records=shard_records)
    records = [
        ShardRecord(str(n), f'<svg><path d="M0 0h{n}"/></svg>', f"line of {n}", "made")
        for n in range(num_shards * shard_records)
    ]
    columns = [*zip(*records, strict=True)]
    writer.add("train", pa.table(columns, names=ShardRecord._fields))
    writer.commit({"digest": writer.close(), "duplicates": 0, "quarantined": {}}, {})


# Opening


def measure_opening(folder: Path) -> Figures:
    """Return the number of requests that open 1, 100 and 1,000 shards."""
    figures: Figures = {}
    with serve_s3(folder / "log") as server:
        server.put("bucket")
        for num_shards in NUM_SHARDS:
            dataset = folder / str(num_shards)
            write_dataset(dataset, num_shards)
            for file in dataset.iterdir():
                server.put(f"bucket/{num_shards}/{file.name}", file.read_bytes())

            before = len(server.list_requests())
            shards = open_shards(server.make_uri(f"bucket/{num_shards}"))
            figures[f"opening_reads_{num_shards}"] = len(server.list_requests()) - before
            assert len(shards.files["train"]) == num_shards
    return figures


# The stream


def measure_stream(folder: Path) -> Figures:
    """Return the figures of the bytes of a worker, and of the first batch."""
    from app.jobs.cluster import connect_ray

    write_dataset(folder / "shards", NUM_SHARDS[-1], shard_records=BLOCK_EXAMPLES)
    config = DataConfig(
        shards=str(folder / "shards"),
        system_prompt="Look:",
        sequence_tokens=256,
        shuffle_block_examples=BLOCK_EXAMPLES,
    )
    num_epochs = NUM_BLOCKS // NUM_SHARDS[-1]
    stream = Stream(open_shards(config.shards), config, str(TINY), num_epochs)
    figures = simulate_bytes(limit_records(stream, SIMULATED_RECORDS))
    with connect_ray(num_cpus=4):
        figures |= read_bytes(limit_records(stream, READ_RECORDS))
        seconds = [first_batch_seconds(stream) for _ in range(STARTS + 1)]
    print(f"seconds to the first batch: {seconds}", flush=True)
    return figures | {"first_batch_seconds_20000": statistics.median(seconds[1:])}


def limit_records(stream: Stream, num_records: int) -> Stream:
    """Return one epoch of the first records."""
    config = stream.config.model_copy(update={"max_train_records": num_records})
    return dataclasses.replace(stream, config=config, num_epochs=1)


def simulate_bytes(stream: Stream) -> Figures:
    """Return the bytes of a worker when the dealer runs without Ray."""
    blocks = [stream.pack_shuffle_block(number) for number in range(stream.num_shuffle_blocks)]
    figures: Figures = {}
    for num_workers in SIMULATED_WORKERS:
        dealer = Dealer(micro_batch_size=1, num_workers=num_workers, start=Position())
        rounds = [shares for block in blocks for shares in dealer.add(block)] + dealer.finish()
        sent = [sum(map(count_bytes, shares)) for shares in zip(*rounds, strict=True)]
        figures |= name_figures(stream, sent)
    return figures


def read_bytes(stream: Stream) -> Figures:
    """Return the bytes of a worker that reads its rows from Ray Data."""

    def read(shard: DataIterator) -> int:
        return sum(map(count_bytes, shard.iter_batches(batch_size=1, batch_format="numpy")))

    figures: Figures = {}
    for num_workers in REAL_WORKERS:
        dataset = build_dataset(
            stream, start=Position(), micro_batch_size=1, num_workers=num_workers
        )
        shards = dataset.streaming_split(num_workers, equal=True)
        with ThreadPoolExecutor(num_workers) as threads:
            figures |= name_figures(stream, list(threads.map(read, shards)))
    return figures


def count_bytes(columns: Batch) -> int:
    """Return the bytes of all columns."""
    return sum(column.nbytes for column in columns.values())


def name_figures(stream: Stream, sent: list[int]) -> Figures:
    """Return the most bytes sent to a worker, and over the tokens that a worker trains on.

    A sequence has three columns of tokens. All workers train on the same number of sequences.
    """
    blocks = (stream.pack_shuffle_block(number) for number in range(stream.num_shuffle_blocks))
    num_sequences = sum(len(block["index"]) for block in blocks)
    needed = math.ceil(num_sequences / len(sent)) * 3 * 4 * stream.config.sequence_tokens
    return {
        f"bytes_per_worker_{len(sent)}": max(sent),
        f"bytes_per_worker_ratio_{len(sent)}": max(sent) / needed,
    }


def first_batch_seconds(stream: Stream) -> float:
    """Return the seconds from building the pipeline to its first batch."""
    began = time.monotonic()
    assert stream.num_shuffle_blocks == NUM_BLOCKS
    dataset = build_dataset(stream, start=Position(), micro_batch_size=1, num_workers=1)
    (shard,) = dataset.streaming_split(1, equal=True)
    next(iterate_batches(shard, micro_batch_size=1, num_workers=1, prefetch=4))
    return time.monotonic() - began


if __name__ == "__main__":
    main()
