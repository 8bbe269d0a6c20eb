"""Find leakage: a caption inside its own drawing, and one drawing in both splits."""

import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.prepare.partitions import Partitions
from data_pipeline.shards import ShardRecord
from data_pipeline.sources.record import stable_hash

_WORD = re.compile(r"\w+")
_VALUE = re.compile(r'="([^"]*)"')
_CHARACTER_DATA = re.compile(r">([^<]+)<")
_FLAG = {"validation": "?"}


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
    """Numbers of distinct drawings, records and captions in each split and in both.

    Two records are equal if they have the same drawing and the same caption.
    """

    num_train_drawings: int
    num_validation_drawings: int
    num_drawings_in_both: int
    num_train_records: int
    num_validation_records: int
    num_records_in_both: int
    num_captions_in_both: int


def measure_leakage(train: Iterable[ShardRecord], validation: Iterable[ShardRecord]) -> Leakage:
    """Count the drawings, records and captions of the two splits.

    Reads each split once, and divides the hashes on disk; memory holds about half a byte a record.
    """
    with tempfile.TemporaryDirectory(prefix="svgscribe-") as name:
        # Equal records have equal drawings, so they are in one partition.
        contents = Partitions(Path(name) / "contents", {"drawing": "u8", "content": "u8"} | _FLAG)
        captions = Partitions(Path(name) / "captions", {"caption": "u8"} | _FLAG)
        for is_held_out, records in enumerate((train, validation)):
            for record in records:
                drawing, caption = stable_hash(0, record.svg), stable_hash(0, record.caption)
                contents.add(drawing, stable_hash(drawing, str(caption)), is_held_out)
                captions.add(caption, is_held_out)

        drawings = _count(contents, "drawing")
        counts = _count(contents, "content")
        return Leakage(
            num_train_drawings=drawings[0],
            num_validation_drawings=drawings[1],
            num_drawings_in_both=drawings[2],
            num_train_records=counts[0],
            num_validation_records=counts[1],
            num_records_in_both=counts[2],
            num_captions_in_both=_count(captions, "caption")[2],
        )


def _count(partitions: Partitions, column: str) -> Any:
    """Return the numbers of distinct values in training, in validation and in both."""
    numbers = np.zeros(3, np.int64)
    for rows in partitions.read():
        train = np.unique(rows[column][~rows["validation"]])
        validation = np.unique(rows[column][rows["validation"]])
        shared = np.intersect1d(train, validation, assume_unique=True)
        numbers += len(train), len(validation), len(shared)
    return numbers.tolist()
