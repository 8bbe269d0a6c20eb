"""Windows of drawings: read from any source, and captioned together."""

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from app.jobs.caption_journal import CaptionedDrawing
from data_pipeline.config import DataConfig, DrawingsConfig
from data_pipeline.masking import mask_secrets
from data_pipeline.sources.read import read_source
from data_pipeline.sources.record import escape_surrogates
from data_pipeline.svg import SVGRefused, canonicalise

if TYPE_CHECKING:
    from app.jobs.open_captioner import CaptionEngine

BATCHES_PER_WINDOW = 4
"""A longer window sorts more drawings by length."""
MAX_WINDOW_BYTES = 1 << 22
"""A window ends at about this size of its raw drawings."""


class Drawing(NamedTuple):
    """A drawing as its source gives it; `number` is its place in all inputs, from 0."""

    number: int
    source: str
    id: str
    svg: str | bytes
    unreadable: str = ""
    """Reason why its file could not be read."""


def read_drawings(inputs: Sequence[str], config: DrawingsConfig) -> Iterator[Drawing]:
    """Return the drawings of all inputs. Raises DataError now if an input cannot be read."""
    sources = [(mask_secrets(spec), read_source(spec, config)) for spec in inputs]
    numbers = count()
    return (
        Drawing(next(numbers), name, escape_surrogates(record.id), record.svg, record.unreadable)
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
    write: Callable[[list[CaptionedDrawing]], None],
) -> None:
    """Call `write` with the refused drawings, and then with those of each batch of captions."""
    fitting: list[Drawing] = []
    svgs: list[str] = []
    refused: list[CaptionedDrawing] = []
    for drawing in window:
        try:
            if drawing.unreadable:
                raise SVGRefused("unreadable_file", drawing.unreadable)
            svg = canonicalise(drawing.svg)
            _require_fit(captioner.count_prompt_tokens(svg), data)
        except SVGRefused as refusal:
            refused.append(CaptionedDrawing(*drawing[:3], None, escape_surrogates(str(refusal))))
        else:
            fitting.append(drawing)
            svgs.append(svg)

    if refused:
        write(refused)
    captioner.caption(
        svgs,
        on_batch=lambda captions: write(
            [CaptionedDrawing(*fitting[i][:3], text, None) for i, text in captions.items()]
        ),
    )


def _require_fit(num_tokens: int, data: DataConfig) -> None:
    """Raise SVGRefused if the model was trained without drawings of this length."""
    if num_tokens > data.sequence_tokens and data.too_long == "drop":
        raise SVGRefused(
            "too_long",
            f"its prompt has {num_tokens} tokens, more than data.sequence_tokens="
            f"{data.sequence_tokens}; data.too_long=truncate would cut it",
        )
