"""Choose which captions of a drawing become records."""

from collections.abc import Iterable, Iterator

from data_pipeline.config import PrepareConfig
from data_pipeline.sources.record import Record, stable_hash

MAX_CAPTION_BYTES = 1 << 20

Captions = list[tuple[str, object]]
"""Name and text of each caption of one drawing."""


def make_records(
    id_: str,
    svg: object,
    captions: Iterable[tuple[str, object]],
    source: str,
    config: PrepareConfig,
) -> Iterator[Record]:
    """Yield one record for each caption of the drawing that `config.captions` chooses.

    Records whose first captions are equal, except for case and spacing, are one concept. A drawing
    without a caption yields a record with an empty caption. A value that is neither text nor bytes
    yields a record with an empty SVG. `prepare` puts both into quarantine.
    """
    texts = [(name, _to_text(value)) for name, value in captions]
    texts = [(name, text) for name, text in texts if text.strip()] or [("", "")]
    drawing = svg if isinstance(svg, str | bytes) else ""
    concept = " ".join(texts[0][1].lower().split())

    if config.captions == "all" and len(texts) > 1:
        for name, text in texts:
            yield Record(f"{id_}:{name}", drawing, text, source, concept)
        return
    chosen = stable_hash(config.seed, id_) % len(texts) if config.captions == "random" else 0
    yield Record(id_, drawing, texts[chosen][1], source, concept)


def _to_text(value: object) -> str:
    """Return the text of a caption; keywords may be a list."""
    if isinstance(value, list):
        return ", ".join(str(part) for part in value)
    return "" if value is None else str(value)


def decode_caption(data: bytes) -> str:
    """Decode the text of a caption file; a byte that is not UTF-8 becomes U+FFFD."""
    return data.decode("utf-8-sig", "replace").strip()
