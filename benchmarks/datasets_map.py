"""Read → canonicalise → encode → pack: ours, and Hugging Face datasets with the same functions."""

import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks.corpus import ROW_TOKENS, WINDOW_ROWS, Corpus, Figures, cpu_seconds, data_config
from data_pipeline.config import DataConfig, PrepareConfig
from data_pipeline.prepare.dataset import prepare_dataset
from data_pipeline.shards import open_shards
from data_pipeline.stream.encode import IGNORE_INDEX, Example, PromptEncoder
from data_pipeline.stream.pack import pack_examples
from data_pipeline.stream.token_stream import Stream
from data_pipeline.svg import SVGRefused, canonicalise

COMPARED_ROWS, TURNS = 4_000, 3


def compare(corpus: Corpus, folder: Path) -> Figures:
    """Tokens per CPU second from raw Parquet to packed rows, ours over theirs; one process each, in turns."""
    few = folder / "few.parquet"
    pq.write_table(
        pq.read_table(corpus.parquet).slice(0, COMPARED_ROWS), few, row_group_size=WINDOW_ROWS
    )
    runs = {"ours": run_ours, "hf": run_theirs, "hf_fused": run_theirs_fused}
    rows: dict[str, list[float]] = {who: [] for who in runs}
    tokens: dict[str, list[float]] = {who: [] for who in runs}
    for turn in range(TURNS + 1):
        shutil.rmtree(folder / "turn", ignore_errors=True)
        for who, run in runs.items():
            before = cpu_seconds()
            num_rows, num_tokens = run(few, corpus.tokenizer, folder / "turn")
            spent = cpu_seconds() - before
            print(
                f"      turn {turn}: {who} {num_tokens / spent:.0f} tokens per CPU second",
                flush=True,
            )
            if turn:  # the first warms all up
                rows[who].append(num_rows / spent)
                tokens[who].append(num_tokens / spent)
    ratios = {
        who: statistics.median(np.divide(tokens["ours"], tokens[who]).tolist())
        for who in ("hf", "hf_fused")
    }
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
    report = prepare_dataset(
        [str(parquet)], PrepareConfig(out=shards, validation_share=0.0), progress=False
    )
    stream = Stream(open_shards(shards), data_config(shards), tokenizer, num_epochs=1)
    blocks = (stream.shuffle_block(number) for number in range(stream.num_shuffle_blocks))
    return report.num_read, sum(int(block["num_tokens"].sum()) for block in blocks)


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
        function,
        batched=True,
        batch_size=WINDOW_ROWS,
        remove_columns=rows.column_names,
        fn_kwargs=arguments,
    )


_encoders: dict[str, PromptEncoder] = {}


def _encoder(tokenizer: str) -> PromptEncoder:
    if tokenizer not in _encoders:
        _encoders[tokenizer] = PromptEncoder(tokenizer, DataConfig().system_prompt)
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
    return {
        name: [getattr(example, name) for example in examples] for name in ("input_ids", "targets")
    }


def _packed(batch: dict[str, Any], encoder: PromptEncoder) -> dict[str, Any]:
    examples = [
        Example(ids, targets)
        for ids, targets in zip(batch["input_ids"], batch["targets"], strict=True)
    ]
    rows = pack_examples(
        [example for example in examples if len(example.input_ids) <= ROW_TOKENS], ROW_TOKENS
    )
    columns: dict[str, Any] = {
        "num_tokens": np.array([len(row.input_ids) for row in rows], np.int32)
    }
    for name, fill in (
        ("input_ids", encoder.pad_id),
        ("position_ids", 0),
        ("targets", IGNORE_INDEX),
    ):
        columns[name] = np.full((len(rows), ROW_TOKENS), fill, np.int32)
        for i, row in enumerate(rows):
            columns[name][i, : len(row.input_ids)] = getattr(row, name)
    return columns


def _encoded_and_packed(batch: dict[str, list[str]], encoder: PromptEncoder) -> dict[str, Any]:
    return _packed(_encoded(batch, encoder), encoder)
