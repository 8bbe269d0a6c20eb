"""The record that every source yields, and a hash that is the same in every process."""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Record:
    """A drawing as found in a source: raw SVG (text or bytes), caption and concept.

    `id` is unique within its source. `source` names the file or the set, for counts and reports.
    All records of one `concept` are in the same split. `problem` is the reason of an empty caption.
    """

    id: str
    svg: str | bytes
    caption: str
    source: str
    concept: str
    problem: str = ""


def stable_hash(seed: int, text: str) -> int:
    """Return a 64-bit hash that is the same in every process, unlike Python's `hash`."""
    data = f"{seed}:{text}".encode("utf-8", "replace")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())
