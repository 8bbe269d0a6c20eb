"""Find leakage: a caption inside its own drawing, and one drawing in both splits."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from html import unescape
from typing import Any

import numpy as np

from data_pipeline.shards import ShardRecord
from data_pipeline.sources.record import stable_hash

_WORD = re.compile(r"\w+")
_VALUE = re.compile(r'="([^"]*)"')
_CHARACTER_DATA = re.compile(r">([^<]+)<")


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

    Reads each split once and holds 24 bytes a record in memory.
    """
    hashes = [_hash_columns(records) for records in (train, validation)]
    drawings, captions, contents = zip(*hashes, strict=True)
    return Leakage(
        num_train_drawings=len(drawings[0]),
        num_validation_drawings=len(drawings[1]),
        num_drawings_in_both=_count_shared(drawings),
        num_train_records=len(contents[0]),
        num_validation_records=len(contents[1]),
        num_records_in_both=_count_shared(contents),
        num_captions_in_both=_count_shared(captions),
    )


def _hash_columns(records: Iterable[ShardRecord]) -> list[Any]:
    """Return the sorted distinct hashes of drawings, captions and both together.

    Each is a uint64 array of shape [num_distinct].
    """
    texts = (
        text
        for record in records
        for text in (record.svg, record.caption, f"{record.svg}\0{record.caption}")
    )
    hashes = np.fromiter((stable_hash(0, text) for text in texts), np.uint64).reshape(-1, 3)
    return [np.unique(column) for column in hashes.T]


def _count_shared(hashes: tuple[Any, ...]) -> int:
    train, validation = hashes
    return len(np.intersect1d(train, validation, assume_unique=True))
