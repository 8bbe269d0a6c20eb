"""Find the split that a source gives its records: a value of a column, or a folder or file name."""

import posixpath
import re
from collections.abc import Sequence

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""Known names, in lower case, and our names of their splits."""


def parse_split(value: object) -> str | None:
    """Return our name of a split, "" for an empty value, and None for an unknown one.

    >>> [parse_split(value) for value in ("Val", b"test", None, "holdout")]
    ['validation', 'test', '', None]
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if value is None or value == "":
        return ""
    return SPLIT_NAMES.get(value.strip().lower()) if isinstance(value, str) else None


def find_layout(names: Sequence[str], *, are_drawings: bool) -> dict[str, str]:
    """Map each file to the split that its folder or its own name gives, as hubs lay out datasets.

    The folder is the first that the files do not share. A table's name counts up to its first
    `-`, `_` or `.`; a drawing's does not count. Returns {} unless all files have a split, and at
    least one other than that of training has files.

    >>> find_layout(["data/train-0.parquet", "data/test-0.parquet"], are_drawings=False)
    {'data/train-0.parquet': 'train', 'data/test-0.parquet': 'test'}
    >>> find_layout(["train.svg", "test.svg"], are_drawings=True)
    {}
    """
    shared = posixpath.commonpath([posixpath.dirname(name) for name in names]) if names else ""
    layout = {}
    for name in names:
        first, slash, _ = posixpath.relpath(name, shared or ".").partition("/")
        word = first if slash or are_drawings else re.split(r"[-_.]", first)[0]
        layout[name] = parse_split(word) if slash or not are_drawings else None
    splits = {split for split in layout.values() if split}
    is_layout = len(splits) > 1 and "train" in splits and all(layout.values())
    return {name: split for name, split in layout.items() if split} if is_layout else {}
