"""Find leakage: a caption inside its own drawing, and one drawing in two splits."""

import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipeline.prepare.partitions import Partitions
from data_pipeline.shards import SPLITS

_WORD = re.compile(r"\w+")
_VALUE = re.compile(r'="([^"]*)"')
_CHARACTER_DATA = re.compile(r">([^<]+)<")
_SPLIT = {"split": "u1"}
_ODD = np.uint64(0x9E3779B97F4A7C15)  # any odd number maps distinct hashes to distinct ones


def contains_caption(svg: str, caption: str) -> bool:
    """Return whether the SVG's text contains the caption's words in their order.

    Case and punctuation are ignored. A caption of several words is searched between the tags and in
    the value of each attribute. A single word is searched only between the tags, because words like
    `red` and `square` are also values of SVG attributes.

    >>> contains_caption('<svg><text>Stop, here!</text></svg>', "stop here")
    True
    >>> contains_caption('<svg><circle fill="red"/></svg>', "red")
    False
    """
    words = _WORD.findall(caption.lower())
    svg = svg.lower()
    # This test decides nearly always, and is a hundred times cheaper than the rest.
    if not words or max(words, key=len) not in svg:
        return False

    texts = [" ".join(_CHARACTER_DATA.findall(svg))]
    if len(words) > 1:
        texts += _VALUE.findall(svg)
    phrase = f" {' '.join(words)} "
    return any(phrase in f" {' '.join(_WORD.findall(unescape(text)))} " for text in texts)


@dataclass(frozen=True)
class Leakage:
    """Numbers of distinct drawings and records by split, and of those in more than one split.

    Two records are equal if they have the same drawing and the same caption.
    """

    num_drawings: dict[str, int]
    num_records: dict[str, int]
    num_shared_drawings: int
    num_shared_records: int
    num_shared_captions: int


def measure_leakage(tables: Iterable[tuple[str, pa.Table]]) -> Leakage:
    """Count the drawings, records and captions of the splits.

    `tables` are records with the columns svg and caption, and their split. Divides the hashes on
    disk; memory holds about half a byte a record.
    """
    with tempfile.TemporaryDirectory(prefix="svgscribe-") as name:
        # Equal records have equal drawings, so they are in one partition.
        contents = Partitions(Path(name) / "contents", {"drawing": "u8", "content": "u8"} | _SPLIT)
        captions = Partitions(Path(name) / "captions", {"caption": "u8"} | _SPLIT)
        for split, records in tables:
            drawing, caption = _hash_texts(records["svg"]), _hash_texts(records["caption"])
            content = drawing * _ODD + caption
            number = np.full(len(records), SPLITS.index(split))
            contents.add({"drawing": drawing, "content": content, "split": number})
            captions.add({"caption": caption, "split": number})

        num_drawings, num_shared_drawings = _count(contents, "drawing")
        num_records, num_shared_records = _count(contents, "content")
        return Leakage(
            num_drawings=num_drawings,
            num_records=num_records,
            num_shared_drawings=num_shared_drawings,
            num_shared_records=num_shared_records,
            num_shared_captions=_count(captions, "caption")[1],
        )


def _hash_texts(texts: pa.ChunkedArray) -> Any:
    """Return Python's 64-bit hash of each text, of shape [num_texts]. It differs by process."""
    return np.array([*map(hash, texts.to_pylist())], np.int64).view(np.uint64)


def _count(partitions: Partitions, column: str) -> tuple[dict[str, int], int]:
    """Return the number of distinct values in each split, and of those in more than one."""
    numbers = np.zeros(len(SPLITS), np.int64)
    num_shared = 0
    for rows in partitions.read():
        distinct = [np.unique(rows[column][rows["split"] == n]) for n in range(len(SPLITS))]
        numbers += [len(values) for values in distinct]
        num_in = np.unique(np.concatenate(distinct), return_counts=True)[1]
        num_shared += int((num_in > 1).sum())
    return dict(zip(SPLITS, numbers.tolist(), strict=True)), num_shared
