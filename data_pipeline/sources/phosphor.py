"""Phosphor icons of the package `py-phosphor-icons` (MIT), with captions from their metadata.

A caption gives the icon's name, weight, category and tags.
"""

import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.sources.record import Record

WEIGHTS = {
    "thin": "drawn in hairline outlines",
    "light": "drawn in light, fine outlines",
    "regular": "drawn in regular outlines of medium width",
    "bold": "drawn in bold, heavy outlines",
    "fill": "drawn as a solid filled shape",
    "duotone": "drawn in duotone, outlined over a translucent tint",
}
"""The weights of every icon, with the phrase that describes each."""

NUM_CAPTION_TAGS = 3


@cache
def _load_metadata() -> tuple[dict[str, Any], ...]:
    try:
        text = (files("py_phosphor_icons") / "search" / "metadata.json").read_text(encoding="utf-8")
    except ModuleNotFoundError:
        raise DataError(
            "the source 'phosphor' needs a package: pip install py-phosphor-icons==0.1.1"
        ) from None
    return tuple(json.loads(text))


def _get_category(entry: dict[str, Any]) -> str:
    categories = entry["categories"] or [entry["figma_category"] or ""]
    return str(categories[0]).lower()


def list_categories() -> list[str]:
    """Return every category that a caption can name, sorted.

    Raises DataError without the package.
    """
    return sorted({_get_category(entry) for entry in _load_metadata()} - {""})


def compose_caption(name: str, weight: str, category: str, tags: list[str]) -> str:
    """Compose one sentence from the metadata of an icon.

    >>> compose_caption("cat-head", "bold", "nature", ["pets", "*new*"])
    'A bold icon of cat head, drawn in bold, heavy outlines, from the nature category, about pets.'
    """
    words = name.replace("-", " ")
    sentence = f"A {weight} icon of {words}, {WEIGHTS[weight]}"
    if category:
        sentence += f", from the {category} category"

    topics = [tag for tag in tags if not tag.startswith("*") and tag != words][:NUM_CAPTION_TAGS]
    if len(topics) > 1:
        topics = [", ".join(topics[:-1]), topics[-1]]
    if topics:
        sentence += f", about {' and '.join(topics)}"
    return f"{sentence}."


def derive_concept(name: str) -> str:
    """Return the first word of the name, without the s of a plural.

    `airplane`, `airplane-landing` and `airplane-in-flight` are one concept, and so are `arrow-up`
    and `arrows-in`. Therefore no variant of a validation icon, in any weight, is trained on.
    """
    return name.split("-")[0].removesuffix("s")


def read_phosphor() -> Iterator[Record]:
    """Return the records of every icon in every weight, by name.

    Raises DataError before the first record without the package.
    """
    return _make_phosphor_records(_load_metadata())


def _make_phosphor_records(metadata: tuple[dict[str, Any], ...]) -> Iterator[Record]:
    folder = files("py_phosphor_icons") / "svgs" / "flat"
    for entry in metadata:
        name = entry["name"]
        for weight in WEIGHTS:
            suffix = "" if weight == "regular" else f"-{weight}"
            yield Record(
                id=f"phosphor:{name}-{weight}",
                svg=(folder / weight / f"{name}{suffix}.svg").read_bytes(),
                caption=compose_caption(name, weight, _get_category(entry), entry["tags"]),
                source="phosphor",
                concept=f"phosphor:{derive_concept(name)}",
            )
