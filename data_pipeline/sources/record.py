"""The one record that every source yields, and the split it belongs to. Knows no format and no tokenizer."""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Record:
    """A drawing as it was found: raw SVG (text or bytes), its caption, and what must not straddle the splits.

    `id` is unique within its source; `source` names the file or the set it came from, for counts and reports;
    all rows of one `concept` land in the same split.
    """

    id: str
    svg: str | bytes
    caption: str
    source: str
    concept: str


def stable_hash(seed: int, text: str) -> int:
    """64 bits that are the same in every process (Python's hash() is not)."""
    data = f"{seed}:{text}".encode("utf-8", "replace")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())
