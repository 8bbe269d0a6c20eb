"""A corpus of drawings with known lengths, and a tokenizer with one token per byte."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from data_pipeline.shards import ShardRecord, ShardWriter


def save_tokenizer(folder: Path) -> str:
    """Save a tokenizer with one token per byte and Gemma's control tokens; return its folder."""
    control = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
    vocabulary = {
        token: i for i, token in enumerate([*control, *sorted(pre_tokenizers.ByteLevel.alphabet())])
    }
    bytes_only = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bytes_only.decoder = decoders.ByteLevel()
    bytes_only.add_special_tokens(control)
    bytes_only.save(str(folder / "tokenizer.json"))
    return str(folder)


def write_shards(folder: Path, *, train: Sequence[int], validation: Sequence[int] = ()) -> None:
    """Write records with the id `i`, the caption `icon i` and an SVG of the i-th length (bytes)."""
    writer = ShardWriter(str(folder), shard_records=64)
    for split, lengths in (("train", train), ("validation", validation)):
        writer.add(
            split,
            make_records(
                [
                    ShardRecord(str(i), svg_of(length), f"icon {i}", "test")
                    for i, length in enumerate(lengths)
                ]
            ),
        )
    counts = {"digest": writer.close(), "duplicates": 0, "quarantined": {}}
    writer.commit(counts, counts)


def make_records(records: Sequence[ShardRecord]) -> pa.Table:
    """Return a table of the records, as `ShardWriter.add` takes it."""
    columns = zip(*records, strict=True) if records else [()] * len(ShardRecord._fields)
    return pa.table([pa.array(c, pa.string()) for c in columns], names=ShardRecord._fields)


def svg_of(length: int) -> str:
    """Return an SVG of the given length (bytes)."""
    return f"<svg>{'x' * (length - 11)}</svg>"
