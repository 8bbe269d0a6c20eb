"""The record that every source yields, and a hash that is the same in every process."""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple


class Record(NamedTuple):
    """A drawing as found in a source: raw SVG (text or bytes), caption and concept.

    `id` is unique within its source. `source` names the file or the set, for counts and reports.
    All records of one `concept` are in the same split. `problem` is the reason of an empty caption.
    `split` is that which the source or the user gives; empty or "train": the concept decides it.
    `unreadable` is the reason why the drawing, or a file of the record, could not be read.
    """

    id: str
    svg: str | bytes
    caption: str
    source: str
    concept: str
    problem: str = ""
    split: str = ""
    unreadable: str = ""


def set_split(records: Iterator[Record], split: str) -> Iterator[Record]:
    """Return the records, of which those without a split get this one, if it is not empty."""
    if not split:
        return records
    return (record if record.split else record._replace(split=split) for record in records)


def stable_hash(seed: int, text: str) -> int:
    """Return a 64-bit hash that is the same in every process, unlike Python's `hash`."""
    data = f"{seed}:{text}".encode("utf-8", "replace")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())


def escape_surrogates(text: str) -> str:
    r"""Write lone surrogates, which JSON can express and UTF-8 cannot, as `\ud800`."""
    return text.encode("utf-8", "backslashreplace").decode()
