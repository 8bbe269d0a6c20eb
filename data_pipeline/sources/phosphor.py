"""The Phosphor icons of the package `py-phosphor-icons` (MIT), with captions composed from their metadata.

A caption names what a picture shows and how: name, weight, category, tags. Knows nothing of SVG's inside.
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
"""Every name is drawn in each of these weights; the phrase says what the weight looks like."""

NUM_CAPTION_TAGS = 3


@cache
def _metadata() -> tuple[dict[str, Any], ...]:
    try:
        text = (files("py_phosphor_icons") / "search" / "metadata.json").read_text(encoding="utf-8")
    except ModuleNotFoundError:
        raise DataError(
            "the source 'phosphor' needs a package: pip install py-phosphor-icons==0.1.1"
        ) from None
    return tuple(json.loads(text))


def _category(entry: dict[str, Any]) -> str:
    categories = entry["categories"] or [entry["figma_category"] or ""]
    return str(categories[0]).lower()


def list_categories() -> list[str]:
    """Every category that a caption can name, sorted. Raises DataError without the package."""
    return sorted({_category(entry) for entry in _metadata()} - {""})


def compose_caption(name: str, weight: str, category: str, tags: list[str]) -> str:
    """One sentence.

    >>> caption("airplane-in-flight", "thin", "map", ["jets", "*new*"])
    'A thin icon of airplane in flight, drawn in hairline outlines, from the map category, about jets.'
    """
    words = name.replace("-", " ")
    sentence = f"A {weight} icon of {words}, {WEIGHTS[weight]}"
    if category:
        sentence += f", from the {category} category"
    about = [tag for tag in tags if not tag.startswith("*") and tag != words][:NUM_CAPTION_TAGS]
    if about:
        sentence += (
            f", about {' and '.join([', '.join(about[:-1]), about[-1]] if about[1:] else about)}"
        )
    return f"{sentence}."


def derive_concept(name: str) -> str:
    """What siblings share: the first word of the name, without a plural's s.

    `airplane`, `airplane-landing` and `airplane-in-flight` are one concept, as are `arrow-up` and
    `arrows-in`, so that no variant of a validation icon, in any weight, is trained on.
    """
    return name.split("-")[0].removesuffix("s")


def read_phosphor() -> Iterator[Record]:
    """Every icon in every weight, by name. Raises DataError without the package (before the first row)."""
    return _rows(_metadata())


def _rows(metadata: tuple[dict[str, Any], ...]) -> Iterator[Record]:
    folder = files("py_phosphor_icons") / "svgs" / "flat"
    for entry in metadata:
        name = entry["name"]
        for weight in WEIGHTS:
            suffix = "" if weight == "regular" else f"-{weight}"
            yield Record(
                id=f"phosphor:{name}-{weight}",
                svg=(folder / weight / f"{name}{suffix}.svg").read_bytes(),
                caption=compose_caption(name, weight, _category(entry), entry["tags"]),
                source="phosphor",
                concept=f"phosphor:{derive_concept(name)}",
            )
