"""The raw drawings that the data benchmarks read, and how they are measured: apart, in CPU seconds."""

import lzma
import multiprocessing
import os
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from app.gemma.base_model import TINY
from data_pipeline.config import DataConfig
from data_pipeline.sources.phosphor import read_phosphor

SHARED = Path(__file__).parents[2] / "shared" / "data"
ROW_TOKENS, WINDOW_ROWS = 4096, 1024

Figures = dict[str, Any]


@dataclass(frozen=True)
class Corpus:
    """Raw rows (id, svg, caption) in one Parquet file, and the tokenizer for them."""

    parquet: Path
    tokenizer: str
    says: str


def data_config(shards: str, **changes: Any) -> DataConfig:
    return DataConfig(
        shards=shards, sequence_tokens=ROW_TOKENS, shuffle_block_examples=WINDOW_ROWS, **changes
    )


def open_corpus(folder: Path, num_rows: int) -> Corpus:
    files = sorted((SHARED / "icons-large").glob("*.parquet"))
    if files:
        table = pa.concat_tables(
            [pq.read_table(file, columns=["id", "svg", "caption"]) for file in files]
        )
        origin = "../shared/data/icons-large"
    else:
        texts = (
            (row, row.svg if isinstance(row.svg, str) else row.svg.decode())
            for row in read_phosphor()
        )
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
