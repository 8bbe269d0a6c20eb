"""What the data pipeline delivers, beside Hugging Face datasets with the same functions, in one run.

    python -m benchmarks.data --json outputs/bench/data.json

On ../shared/data/icons-large where it is, else on the pip-installed icons. Everything that is compared runs in
turns; a ratio is the median over the turns. CPU seconds are the process's own: other work on the machine counts
for little.
"""

import argparse
import dataclasses
import json
import lzma
import math
import multiprocessing
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from app.gemma.base import TINY
from data_pipeline.config import DataConfig, PrepareConfig
from data_pipeline.encode import IGNORED, Example, PromptEncoder
from data_pipeline.icons import phosphor_icons
from data_pipeline.pack import pack
from data_pipeline.prepare import prepare
from data_pipeline.stream import batches, dataset
from data_pipeline.svg import SVGRefused, canonicalise
from data_pipeline.windows import Position, Stream

SHARED = Path(__file__).parents[2] / "shared" / "data"
ROW_TOKENS, WINDOW_ROWS = 4096, 1024
COMPARED_ROWS, TURNS, RESUMES = 4_000, 3, 6
LOGICAL_CPUS = 4
TRAINER_STEPS = 60

Figures = dict[str, Any]


@dataclass(frozen=True)
class Corpus:
    """Raw rows (id, svg, caption) in one Parquet file, and the tokenizer for them."""

    parquet: Path
    tokenizer: str
    says: str


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
        stream = Stream(data_config(shards), corpus.tokenizer, epochs=1)
        parts = [
            ("against datasets.map", lambda: apart(compare, corpus, folder)),
            ("prepare the long pass", lambda: prepare_all(corpus, shards)),
            ("the long pass", lambda: apart(long_pass, stream)),
            ("tokens from the cache", lambda: apart(cached_pass, stream, str(folder / "cache"))),
            ("resuming, and a trainer that waits", lambda: on_ray(stream, folder)),
            ("drawings", canonical),
        ]
        for number, (part, measure) in enumerate(parts, 1):
            print(f"[{number}/{len(parts)}] {part} ({time.monotonic() - started:.0f} s so far)", flush=True)
            measured = measure()
            for name, value in measured.items():
                print(f"      {name} {value:.4g}" if isinstance(value, float) else f"      {name} {value}", flush=True)
            figures |= measured
    report = {"figures": figures, "corpus": corpus.says, "seconds": round(time.monotonic() - started, 1)}
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


def canonical() -> Figures:
    from benchmarks.canonical import figures

    return figures()


def data_config(shards: str, **changes: Any) -> DataConfig:
    return DataConfig(shards=shards, max_row_tokens=ROW_TOKENS, window_rows=WINDOW_ROWS, **changes)


def open_corpus(folder: Path, num_rows: int) -> Corpus:
    files = sorted((SHARED / "icons-large").glob("*.parquet"))
    if files:
        table = pa.concat_tables([pq.read_table(file, columns=["id", "svg", "caption"]) for file in files])
        origin = "../shared/data/icons-large"
    else:
        texts = ((row, row.svg if isinstance(row.svg, str) else row.svg.decode()) for row in phosphor_icons())
        rows = [(row.id, svg, row.caption) for row, svg in texts]
        table = pa.table([*zip(*rows, strict=True)], names=["id", "svg", "caption"])
        origin = "the icons of py-phosphor-icons, since ../shared/data/icons-large is absent"
    table = table.slice(0, num_rows)
    parquet = folder / "raw.parquet"
    pq.write_table(table, parquet, row_group_size=WINDOW_ROWS)
    real = SHARED / "tokenizer-gemma3" / "tokenizer.json.xz"
    if real.exists():
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "tokenizer.json").write_bytes(lzma.decompress(real.read_bytes()))
    tokenizer = str(folder / "tokenizer") if real.exists() else str(TINY)
    named = "Gemma 3's tokenizer" if real.exists() else "the tiny tokenizer"
    return Corpus(parquet, tokenizer, f"{table.num_rows} drawings of {origin}, tokens by {named}")


def apart(measure: Callable[..., Figures], *arguments: Any) -> Figures:
    """In a process of its own, on one core, with nothing in its memory yet."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_on_one_core, measure, *arguments).result()


def _on_one_core(measure: Callable[..., Figures], *arguments: Any) -> Figures:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    return measure(*arguments)


def cpu_seconds() -> float:
    """User and system time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


# read → canonicalise → encode → pack, ours and theirs


def compare(corpus: Corpus, folder: Path) -> Figures:
    """Tokens per CPU second from raw Parquet to packed rows, ours over theirs; one process each, in turns."""
    few = folder / "few.parquet"
    pq.write_table(pq.read_table(corpus.parquet).slice(0, COMPARED_ROWS), few, row_group_size=WINDOW_ROWS)
    runs = {"ours": run_ours, "hf": run_theirs, "hf_fused": run_theirs_fused}
    rows: dict[str, list[float]] = {who: [] for who in runs}
    tokens: dict[str, list[float]] = {who: [] for who in runs}
    for turn in range(TURNS + 1):
        shutil.rmtree(folder / "turn", ignore_errors=True)
        for who, run in runs.items():
            before = cpu_seconds()
            num_rows, num_tokens = run(few, corpus.tokenizer, folder / "turn")
            spent = cpu_seconds() - before
            print(f"      turn {turn}: {who} {num_tokens / spent:.0f} tokens per CPU second", flush=True)
            if turn:  # the first warms all up
                rows[who].append(num_rows / spent)
                tokens[who].append(num_tokens / spent)
    ratios = {who: statistics.median(np.divide(tokens["ours"], tokens[who]).tolist()) for who in ("hf", "hf_fused")}
    return {
        "throughput_vs_hf_datasets": ratios["hf"],
        "throughput_vs_hf_datasets_fused": ratios["hf_fused"],
        "rows_per_core_second": statistics.median(rows["ours"]),
        "tokens_per_core_second": statistics.median(tokens["ours"]),
        "hf_rows_per_core_second": statistics.median(rows["hf"]),
        "hf_tokens_per_core_second": statistics.median(tokens["hf"]),
    }


def run_ours(parquet: Path, tokenizer: str, folder: Path) -> tuple[int, int]:
    """`prepare`, and one pass over the stream; (rows read, tokens packed)."""
    shards = str(folder / "ours")
    report = prepare([str(parquet)], PrepareConfig(out=shards, validation_share=0.0), progress=False)
    stream = Stream(data_config(shards), tokenizer, epochs=1)
    windows = (stream.window(number) for number in range(stream.num_windows))
    return report.read, sum(int(window["num_tokens"].sum()) for window in windows)


def run_theirs(parquet: Path, tokenizer: str, folder: Path) -> tuple[int, int]:
    """`datasets.map` with each of the same functions in turn, in batches."""
    clean, num_rows = _cleaned_by_map(parquet, folder)
    encoded = _mapped(clean, _encoded, encoder=_encoder(tokenizer))
    packed = _mapped(encoded.with_format("numpy"), _packed, encoder=_encoder(tokenizer))
    return num_rows, sum(packed.with_format(None)["num_tokens"][:])


def run_theirs_fused(parquet: Path, tokenizer: str, folder: Path) -> tuple[int, int]:
    """The same, with encoding and packing as one function, so that examples need not go through Arrow."""
    clean, num_rows = _cleaned_by_map(parquet, folder)
    packed = _mapped(clean, _encoded_and_packed, encoder=_encoder(tokenizer))
    return num_rows, sum(packed["num_tokens"][:])


def _cleaned_by_map(parquet: Path, folder: Path) -> tuple[Any, int]:
    import datasets

    datasets.disable_caching()
    datasets.disable_progress_bars()
    cache = str(folder / f"theirs-{time.monotonic_ns()}")
    raw = datasets.load_dataset("parquet", data_files=str(parquet), split="train", cache_dir=cache)
    return _mapped(raw, _clean), len(raw)


def _mapped(rows: Any, function: Callable[..., Any], **arguments: Any) -> Any:
    return rows.map(
        function, batched=True, batch_size=WINDOW_ROWS, remove_columns=rows.column_names, fn_kwargs=arguments
    )


_encoders: dict[str, PromptEncoder] = {}


def _encoder(tokenizer: str) -> PromptEncoder:
    if tokenizer not in _encoders:
        _encoders[tokenizer] = PromptEncoder(tokenizer, DataConfig().system)
    return _encoders[tokenizer]


def _clean(batch: dict[str, list[str]]) -> dict[str, list[str]]:
    clean: dict[str, list[str]] = {"svg": [], "caption": []}
    for svg, caption in zip(batch["svg"], batch["caption"], strict=True):
        try:
            clean["svg"].append(canonicalise(svg))
        except SVGRefused:
            continue
        clean["caption"].append(caption)
    return clean


def _encoded(batch: dict[str, list[str]], encoder: PromptEncoder) -> dict[str, Any]:
    examples = encoder.encode_batch([*zip(batch["svg"], batch["caption"], strict=True)])
    return {name: [getattr(example, name) for example in examples] for name in ("input_ids", "targets")}


def _packed(batch: dict[str, Any], encoder: PromptEncoder) -> dict[str, Any]:
    examples = [Example(ids, targets) for ids, targets in zip(batch["input_ids"], batch["targets"], strict=True)]
    rows = pack([example for example in examples if len(example.input_ids) <= ROW_TOKENS], ROW_TOKENS)
    columns: dict[str, Any] = {"num_tokens": np.array([len(row.input_ids) for row in rows], np.int32)}
    for name, fill in (("input_ids", encoder.pad_id), ("position_ids", 0), ("targets", IGNORED)):
        columns[name] = np.full((len(rows), ROW_TOKENS), fill, np.int32)
        for i, row in enumerate(rows):
            columns[name][i, : len(row.input_ids)] = getattr(row, name)
    return columns


def _encoded_and_packed(batch: dict[str, list[str]], encoder: PromptEncoder) -> dict[str, Any]:
    return _packed(_encoded(batch, encoder), encoder)


# A long pass


def prepare_all(corpus: Corpus, shards: str) -> Figures:
    """Not measured: what the parts after it read."""
    prepare([str(corpus.parquet)], PrepareConfig(out=shards, validation_share=0.0))
    return {}


def long_pass(stream: Stream) -> Figures:
    """How full rows are, and by how much resident memory exceeds that at 20 % until the end of the pass."""
    resident, num_tokens, num_slots = [], 0, 0
    for number in range(stream.num_windows):
        window = stream.window(number)
        num_tokens += int(window["num_tokens"].sum())
        num_slots += window["input_ids"].size
        resident.append(_resident_bytes())
        if number % 8 == 0:
            print(f"      window {number} of {stream.num_windows}: {resident[-1] / 2**20:.0f} MiB", flush=True)
    later = resident[math.ceil(0.2 * len(resident)) - 1 :]
    return {"fill": num_tokens / num_slots, "rss_growth": max(later) / later[0] - 1}


def cached_pass(stream: Stream, cache: str) -> Figures:
    """CPU seconds of windows that are encoded, over those of windows whose tokens are read, in turns."""
    cached = dataclasses.replace(stream, config=stream.config.model_copy(update={"cache": cache}))
    ratios = []
    for number in range(min(stream.num_windows, 2 * TURNS)):
        cached.window(number)
        spent = []
        for each in (stream, cached):
            before = cpu_seconds()
            each.window(number)
            spent.append(cpu_seconds() - before)
        ratios.append(spent[0] / spent[1])
    return {"cache_speedup": statistics.median(ratios)}


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


# With Ray


def on_ray(stream: Stream, folder: Path) -> Figures:
    from app.cluster import connect

    with connect(num_cpus=LOGICAL_CPUS):
        return resume_cost(stream) | trainer(folder)


def resume_cost(stream: Stream) -> Figures:
    """Seconds from building the pipeline to its first batch, amid a window at 95 % of an epoch and at its start."""
    window = int(0.95 * stream.num_windows)
    num_rows = len(stream.window(window)["index"])
    starts = {"start": Position(), "late": Position(window, num_rows // 2, num_rows)}
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
    (shard,) = dataset(stream, start=start, num_workers=1).streaming_split(1, equal=True)
    batch, _ = next(batches(shard, micro_batch_rows=1, rank=0, num_workers=1, prefetch=4))
    assert (int(batch["window"][0]), int(batch["index"][0])) == (start.window, start.index)
    return time.monotonic() - began


def trainer(folder: Path) -> Figures:
    """The demo's trainer on the demo's icons: what share of its time it waits for data after the first batch."""
    from mlflow import MlflowClient

    from app.config import absolute, load
    from app.tracking import check
    from app.training import driver

    prepare(["phosphor"], PrepareConfig(out=str(folder / "icons"), max_rows=3000), progress=False)
    config = absolute(load("demo", {
        "data.shards": str(folder / "icons"), "data.max_validation_rows": 8, "train.output_dir": str(folder / "job"),
        "train.max_steps": TRAINER_STEPS, "train.evaluate_every_steps": 1000, "train.save_every_steps": None,
        "tracking.uri": f"sqlite:///{folder}/mlflow.db",
    }))  # fmt: skip
    check(config.tracking)
    run_id = driver.train(config).run_id
    client = MlflowClient(config.tracking.uri)
    waits, steps = (
        {point.step: point.value for point in client.get_metric_history(run_id, f"speed/{name}_seconds")}
        for name in ("data_wait", "step")
    )
    waited, worked = (sum(seconds for step, seconds in part.items() if step > 1) for part in (waits, steps))
    return {"wait_share": waited / (waited + worked), "longest_wait_seconds": max(list(waits.values())[1:])}


if __name__ == "__main__":
    main()
