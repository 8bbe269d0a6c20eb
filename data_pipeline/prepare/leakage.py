"""Find leakage: a caption inside its own drawing, and one drawing in two splits."""

import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import unescape
from pathlib import Path

import numpy as np

from data_pipeline.prepare.partitions import Partitions
from data_pipeline.shards import ShardRecord
from data_pipeline.sources.record import stable_hash

_WORD = re.compile(r"\w+")
_VALUE = re.compile(r'="([^"]*)"')
_CHARACTER_DATA = re.compile(r">([^<]+)<")
_SPLIT = {"split": "u1"}


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


def measure_leakage(splits: Mapping[str, Iterable[ShardRecord]]) -> Leakage:
    """Count the drawings, records and captions of the splits.

    Reads each split once, and divides the hashes on disk; memory holds about half a byte a record.
    """
    with tempfile.TemporaryDirectory(prefix="svgscribe-") as name:
        # Equal records have equal drawings, so they are in one partition.
        contents = Partitions(Path(name) / "contents", {"drawing": "u8", "content": "u8"} | _SPLIT)
        captions = Partitions(Path(name) / "captions", {"caption": "u8"} | _SPLIT)
        for split, records in enumerate(splits.values()):
            for record in records:
                drawing, caption = stable_hash(0, record.svg), stable_hash(0, record.caption)
                contents.add(drawing, stable_hash(drawing, str(caption)), split)
                captions.add(caption, split)

        num_drawings, num_shared_drawings = _count(contents, "drawing", len(splits))
        num_records, num_shared_records = _count(contents, "content", len(splits))
        return Leakage(
            num_drawings=dict(zip(splits, num_drawings, strict=True)),
            num_records=dict(zip(splits, num_records, strict=True)),
            num_shared_drawings=num_shared_drawings,
            num_shared_records=num_shared_records,
            num_shared_captions=_count(captions, "caption", len(splits))[1],
        )


def _count(partitions: Partitions, column: str, num_splits: int) -> tuple[list[int], int]:
    """Return the number of distinct values in each split, and of those in more than one."""
    numbers = np.zeros(num_splits, np.int64)
    num_shared = 0
    for rows in partitions.read():
        distinct = [np.unique(rows[column][rows["split"] == split]) for split in range(num_splits)]
        numbers += [len(values) for values in distinct]
        num_in = np.unique(np.concatenate(distinct), return_counts=True)[1]
        num_shared += int((num_in > 1).sum())
    return numbers.tolist(), num_shared
