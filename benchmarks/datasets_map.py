"""Read → canonicalise → encode → pack, by us and by datasets.map with the same functions."""

import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks.corpus import (
    SEQUENCE_TOKENS,
    SHUFFLE_BLOCK_EXAMPLES,
    Corpus,
    Figures,
    cpu_seconds,
    data_config,
)
from data_pipeline.config import DataConfig, PrepareConfig
from data_pipeline.prepare.dataset import prepare_dataset
from data_pipeline.shards import open_shards
from data_pipeline.stream.encode import IGNORE_INDEX, Example, PromptEncoder
from data_pipeline.stream.pack import pack_examples
from data_pipeline.stream.token_stream import Stream
from data_pipeline.svg import SVGRefused, canonicalise

NUM_COMPARED, TURNS = 4_000, 3


def compare(corpus: Corpus, folder: Path) -> Figures:
    """Return tokens per CPU second from raw Parquet to packed sequences, ours over theirs.

    The candidates run in turns.
    """
    few = folder / "few.parquet"
    pq.write_table(
        pq.read_table(corpus.parquet).slice(0, NUM_COMPARED),
        few,
        row_group_size=SHUFFLE_BLOCK_EXAMPLES,
    )
    runs = {"ours": run_ours, "hf": run_theirs, "hf_fused": run_theirs_fused}
    records: dict[str, list[float]] = {who: [] for who in runs}
    tokens: dict[str, list[float]] = {who: [] for who in runs}

    for turn in range(TURNS + 1):
        shutil.rmtree(folder / "turn", ignore_errors=True)
        for who, run in runs.items():
            before = cpu_seconds()
            num_records, num_tokens = run(few, corpus.tokenizer, folder / "turn")
            spent = cpu_seconds() - before
            print(
                f"      turn {turn}: {who} {num_tokens / spent:.0f} tokens per CPU second",
                flush=True,
            )
            if turn:  # the first turn warms up
                records[who].append(num_records / spent)
                tokens[who].append(num_tokens / spent)

    ratios = {
        who: statistics.median(np.divide(tokens["ours"], tokens[who]).tolist())
        for who in ("hf", "hf_fused")
    }
    return {
        "throughput_vs_hf_datasets": ratios["hf"],
        "throughput_vs_hf_datasets_fused": ratios["hf_fused"],
        "rows_per_core_second": statistics.median(records["ours"]),
        "tokens_per_core_second": statistics.median(tokens["ours"]),
        "hf_rows_per_core_second": statistics.median(records["hf"]),
        "hf_tokens_per_core_second": statistics.median(tokens["hf"]),
    }


def run_ours(parquet: Path, tokenizer: str, folder: Path) -> tuple[int, int]:
    """Run `prepare` and one pass over the stream; return (records read, tokens packed)."""
    shards = str(folder / "ours")
    report = prepare_dataset(
        [str(parquet)], PrepareConfig(out=shards, validation_share=0, test_share=0), progress=False
    )
    stream = Stream(open_shards(shards), data_config(shards), tokenizer, num_epochs=1)
    blocks = (stream.pack_shuffle_block(number) for number in range(stream.num_shuffle_blocks))
    return report.num_read, sum(int(block["num_tokens"].sum()) for block in blocks)


def run_theirs(parquet: Path, tokenizer: str, folder: Path) -> tuple[int, int]:
    """Call `datasets.map` with each of the same functions in turn, in batches."""
    clean, num_records = _clean_by_map(parquet, folder)
    encoded = _map(clean, _encode, encoder=_encoder(tokenizer))
    packed = _map(encoded.with_format("numpy"), _pack, encoder=_encoder(tokenizer))
    return num_records, sum(packed.with_format(None)["num_tokens"][:])


def run_theirs_fused(parquet: Path, tokenizer: str, folder: Path) -> tuple[int, int]:
    """Encode and pack in one function, so that examples do not pass through Arrow."""
    clean, num_records = _clean_by_map(parquet, folder)
    packed = _map(clean, _encode_and_pack, encoder=_encoder(tokenizer))
    return num_records, sum(packed["num_tokens"][:])


def _clean_by_map(parquet: Path, folder: Path) -> tuple[Any, int]:
    import datasets

    datasets.disable_caching()
    datasets.disable_progress_bars()
    cache = str(folder / f"theirs-{time.monotonic_ns()}")
    raw = datasets.load_dataset("parquet", data_files=str(parquet), split="train", cache_dir=cache)
    return _map(raw, _clean), len(raw)


def _map(dataset: Any, function: Callable[..., Any], **arguments: Any) -> Any:
    return dataset.map(
        function,
        batched=True,
        batch_size=SHUFFLE_BLOCK_EXAMPLES,
        remove_columns=dataset.column_names,
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


def _encode(batch: dict[str, list[str]], encoder: PromptEncoder) -> dict[str, Any]:
    examples = encoder.encode_batch([*zip(batch["svg"], batch["caption"], strict=True)])
    return {
        name: [getattr(example, name) for example in examples] for name in ("input_ids", "targets")
    }


def _pack(batch: dict[str, Any], encoder: PromptEncoder) -> dict[str, Any]:
    examples = [
        Example(ids, targets)
        for ids, targets in zip(batch["input_ids"], batch["targets"], strict=True)
    ]
    fitting = [example for example in examples if len(example.input_ids) <= SEQUENCE_TOKENS]
    sequences = pack_examples(fitting, SEQUENCE_TOKENS)

    columns: dict[str, Any] = {
        "num_tokens": np.array([len(sequence.input_ids) for sequence in sequences], np.int32)
    }
    for name, fill in (
        ("input_ids", encoder.pad_id),
        ("position_ids", 0),
        ("targets", IGNORE_INDEX),
    ):
        columns[name] = np.full((len(sequences), SEQUENCE_TOKENS), fill, np.int32)
        for i, sequence in enumerate(sequences):
            columns[name][i, : len(sequence.input_ids)] = getattr(sequence, name)
    return columns


def _encode_and_pack(batch: dict[str, list[str]], encoder: PromptEncoder) -> dict[str, Any]:
    return _pack(_encode(batch, encoder), encoder)
