"""What could let a model score without looking: a caption inside its own drawing, a drawing on both sides."""

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
    """Do the caption's words stand in the SVG's text, in their order, whatever their case and punctuation?

    Several words are looked for between the tags and in each attribute's value; a single one only between the
    tags, because `red` and `square` are also values of SVG's own.

    >>> tells_its_caption('<svg><text>Stop, here!</text></svg>', "stop here")
    True
    >>> tells_its_caption('<svg><circle fill="red"/></svg>', "red")
    False
    """
    words = _WORD.findall(caption.lower())
    svg = svg.lower()
    if (
        not words or max(words, key=len) not in svg
    ):  # nearly always, and a hundred times cheaper than the rest
        return False
    texts = [" ".join(_CHARACTER_DATA.findall(svg))] + (
        _VALUE.findall(svg) if len(words) > 1 else []
    )
    phrase = f" {' '.join(words)} "
    return any(phrase in f" {' '.join(_WORD.findall(unescape(text)))} " for text in texts)


@dataclass(frozen=True)
class Leakage:
    """Counts of distinct things per split and of those that are in both, of what was written."""

    train_drawings: int
    validation_drawings: int
    drawings_in_both: int
    train_examples: int
    validation_examples: int
    examples_in_both: int  # same drawing and same caption
    captions_in_both: int


def measure_leakage(train: Iterable[ShardRecord], validation: Iterable[ShardRecord]) -> Leakage:
    """Reads each split once; holds 24 bytes a row."""
    sides = [_hashes(rows) for rows in (train, validation)]
    drawings, captions, examples = zip(*sides, strict=True)
    return Leakage(
        train_drawings=len(drawings[0]),
        validation_drawings=len(drawings[1]),
        drawings_in_both=_shared(drawings),
        train_examples=len(examples[0]),
        validation_examples=len(examples[1]),
        examples_in_both=_shared(examples),
        captions_in_both=_shared(captions),
    )


def _hashes(rows: Iterable[ShardRecord]) -> list[Any]:
    """Sorted distinct hashes of the drawings, the captions and both together, each uint64 [num_distinct]."""
    texts = (text for row in rows for text in (row.svg, row.caption, f"{row.svg}\0{row.caption}"))
    hashes = np.fromiter((stable_hash(0, text) for text in texts), np.uint64).reshape(-1, 3)
    return [np.unique(column) for column in hashes.T]


def _shared(sides: tuple[Any, ...]) -> int:
    train, validation = sides
    return len(np.intersect1d(train, validation, assume_unique=True))
