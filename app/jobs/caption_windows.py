"""Windows of drawings: read from any source, and captioned together."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from app.jobs.caption_journal import CaptionedDrawing
from data_pipeline.config import DataConfig, DrawingsConfig
from data_pipeline.masking import mask_secrets
from data_pipeline.sources.read import read_source
from data_pipeline.svg import SVGRefused, canonicalise

if TYPE_CHECKING:
    from app.jobs.open_captioner import CaptionEngine

BATCHES_PER_WINDOW = 4
"""A longer window sorts more drawings by length, and a kill loses at most one window."""
MAX_WINDOW_BYTES = 1 << 22
"""A window ends at about this size of its raw drawings."""


class Drawing(NamedTuple):
    """A drawing as its source gives it."""

    source: str
    id: str
    svg: str | bytes


def read_drawings(inputs: Sequence[str], config: DrawingsConfig) -> Iterator[Drawing]:
    """Return the drawings of all inputs. Raises DataError now if an input cannot be read."""
    sources = [(mask_secrets(spec), read_source(spec, config)) for spec in inputs]
    return (
        Drawing(name, record.id.encode("utf-8", "replace").decode(), record.svg)
        for name, records in sources
        for record in records
    )


def split_into_windows(records: Iterator[Drawing], num_drawings: int) -> Iterator[list[Drawing]]:
    """Yield lists of `num_drawings` drawings, or fewer that are large. Nothing is read ahead."""
    window: list[Drawing] = []
    num_bytes = 0
    for record in records:
        window.append(record)
        num_bytes += len(record.svg)
        if len(window) == num_drawings or num_bytes >= MAX_WINDOW_BYTES:
            yield window
            window, num_bytes = [], 0
    if window:
        yield window


def caption_window(
    captioner: "CaptionEngine",
    window: Sequence[Drawing],
    data: DataConfig,
    *,
    on_progress: Callable[[int], None] | None = None,
) -> list[CaptionedDrawing]:
    """Return the caption of each drawing, or the reason why it has none, in their order.

    `on_progress` is called with the number of captions so far.
    """
    canonical: dict[int, str] = {}
    errors: dict[int, str] = {}
    for i, drawing in enumerate(window):
        try:
            svg = canonicalise(drawing.svg)
            _require_fit(captioner.count_prompt_tokens(svg), data)
        except SVGRefused as refusal:
            errors[i] = str(refusal).encode("utf-8", "replace").decode()
        else:
            canonical[i] = svg

    captions = captioner.caption(list(canonical.values()), on_progress=on_progress)
    by_number = dict(zip(canonical, captions, strict=True))
    return [
        CaptionedDrawing(drawing.source, drawing.id, by_number.get(i), errors.get(i))
        for i, drawing in enumerate(window)
    ]


def _require_fit(num_tokens: int, data: DataConfig) -> None:
    """Raise SVGRefused if the model was trained without drawings of this length."""
    if num_tokens > data.sequence_tokens and data.too_long == "drop":
        raise SVGRefused(
            "too_long",
            f"its prompt has {num_tokens} tokens, more than data.sequence_tokens="
            f"{data.sequence_tokens}; data.too_long=truncate would cut it",
        )
