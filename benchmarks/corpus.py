"""Raw drawings for the data benchmarks, and measurement in a separate process in CPU seconds."""

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
SEQUENCE_TOKENS, SHUFFLE_BLOCK_EXAMPLES = 4096, 1024

Figures = dict[str, Any]


@dataclass(frozen=True)
class Corpus:
    """Raw records (id, svg, caption) in one Parquet file, and the tokenizer for them."""

    parquet: Path
    tokenizer: str
    description: str
    """Origin of the drawings and name of the tokenizer."""


def data_config(shards: str, **changes: Any) -> DataConfig:
    """Return the data section of all data benchmarks."""
    return DataConfig(
        shards=shards,
        sequence_tokens=SEQUENCE_TOKENS,
        shuffle_block_examples=SHUFFLE_BLOCK_EXAMPLES,
        **changes,
    )


def open_corpus(folder: Path, num_records: int) -> Corpus:
    """Write the first raw drawings and the tokenizer to the folder."""
    # drawings
    files = sorted((SHARED / "icons-large").glob("*.parquet"))
    if files:
        table = pa.concat_tables(
            [pq.read_table(file, columns=["id", "svg", "caption"]) for file in files]
        )
        origin = "../shared/data/icons-large"
    else:
        records = []
        for record in read_phosphor():
            svg = record.svg if isinstance(record.svg, str) else record.svg.decode()
            records.append((record.id, svg, record.caption))
        table = pa.table([*zip(*records, strict=True)], names=["id", "svg", "caption"])
        origin = "the icons of py-phosphor-icons, since ../shared/data/icons-large is absent"
    table = table.slice(0, num_records)
    parquet = folder / "raw.parquet"
    pq.write_table(table, parquet, row_group_size=SHUFFLE_BLOCK_EXAMPLES)

    # tokenizer
    real = SHARED / "tokenizer-gemma3" / "tokenizer.json.xz"
    if real.exists():
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "tokenizer.json").write_bytes(lzma.decompress(real.read_bytes()))
    tokenizer = str(folder / "tokenizer") if real.exists() else str(TINY)
    named = "Gemma 3's tokenizer" if real.exists() else "the tiny tokenizer"
    description = f"{table.num_rows} drawings of {origin}, tokens by {named}"
    return Corpus(parquet, tokenizer, description)


def run_in_new_process(measure: Callable[..., Figures], *arguments: Any) -> Figures:
    """Run `measure` in a new process on one core, so that its memory starts empty."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_on_one_core, measure, *arguments).result()


def _on_one_core(measure: Callable[..., Figures], *arguments: Any) -> Figures:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    return measure(*arguments)


def cpu_seconds() -> float:
    """Return user and system time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)
