"""Caption drawings of any source with a trained model, one window of drawings after another.

Memory holds one window, whatever the number of drawings. A run that was killed continues after its
last window.
"""

import argparse
import hashlib
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from app.config import Config
from app.errors import UserError
from app.jobs.caption_journal import CaptionedDrawing, Journal, require_new_file
from app.jobs.trained_model import TrainedModel, find_configured_model
from app.overrides import is_override
from data_pipeline.config import DataConfig, DrawingsConfig
from data_pipeline.masking import mask_secrets
from data_pipeline.sources.read import count_drawings, read_source
from data_pipeline.svg import SVGRefused, canonicalise

if TYPE_CHECKING:
    from app.evaluation.captioner import Captioner

BATCHES_PER_WINDOW = 4
"""A longer window sorts more drawings by length, and a kill loses at most one window."""
MAX_WINDOW_BYTES = 1 << 22
"""A window ends at about this size of its raw drawings."""


class _Drawing(NamedTuple):
    source: str
    id: str
    svg: str | bytes


class CaptionProgress:
    """Count drawings, and print the progress and the time left every few seconds."""

    EVERY_SECONDS = 5.0

    def __init__(self, total: int | None) -> None:
        self.num_captions = 0
        self.refused: Counter[str] = Counter()
        self._total = total
        self._num_before = 0
        self._started_at = self._printed_at = time.monotonic()

    @property
    def num_drawings(self) -> int:
        """Number of drawings with a caption or a reason."""
        return self.num_captions + self.refused.total()

    def add(self, drawing: CaptionedDrawing) -> None:
        """Count one drawing."""
        if drawing.error is None:
            self.num_captions += 1
        else:
            self.refused[drawing.error.partition(":")[0]] += 1

    def start(self) -> None:
        """Start the clock: the drawings counted so far are of an earlier process."""
        self._num_before = self.num_drawings
        self._started_at = self._printed_at = time.monotonic()

    def print(self, num_more: int = 0) -> None:
        """Print one line to stderr, unless the last one is recent.

        `num_more` drawings of the window have a caption, but are not written yet.
        """
        now = time.monotonic()
        if now - self._printed_at < self.EVERY_SECONDS:
            return
        self._printed_at = now
        num_done = self.num_drawings + num_more
        per_second = (num_done - self._num_before) / (now - self._started_at)
        line = f"{num_done} drawings, {self.refused.total()} refused, {per_second:.1f} a second"
        if self._total is not None and per_second:
            seconds = max(self._total - num_done, 0) / per_second
            line = f"{line.replace(' ', f' of {self._total} ', 1)}, about {seconds:.0f} s left"
        print(line, file=sys.stderr, flush=True)


def run_caption(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the command `caption`. Return the counts of `caption_drawings`."""
    out = require_new_file(arguments.out)
    overrides = [path for path in arguments.paths if is_override(path, Config)]
    inputs = [path for path in arguments.paths if path not in overrides]
    overrides += arguments.overrides

    model = find_configured_model(arguments.model, arguments.config, overrides)
    drawings = DrawingsConfig(svg_column=arguments.svg_column, id_column=arguments.id_column)
    return caption_drawings(inputs, drawings, model, out)


def caption_drawings(
    inputs: Sequence[str], drawings: DrawingsConfig, model: TrainedModel, out: Path
) -> dict[str, Any]:
    """Write the captions of all drawings to a new file; return counts and seconds.

    `inputs` are files, folders or URIs that `read_source` reads. The same call continues a run that
    was killed. A drawing that is refused or too long gets its reason instead of a caption.

    Raises UserError or DataError if the inputs, the model or the output cannot be used, and
    UserError if no drawing got a caption.
    """
    started = time.monotonic()
    records = _read_drawings(inputs, drawings)
    counts = [count_drawings(spec) for spec in inputs]
    total = None if None in counts else sum(count or 0 for count in counts)
    progress = CaptionProgress(total)

    # seconds: after the checks of the inputs
    from app.jobs.open_captioner import find_adapter_folder, open_captioner

    header = _describe_run(inputs, model, find_adapter_folder(model.adapter))
    with Journal(out, header) as journal:
        _skip_captioned(records, journal, progress)
        captioner = open_captioner(model.config, model.adapter)

        # windows
        progress.start()
        size = BATCHES_PER_WINDOW * model.config.evaluate.generation_batch_size
        try:
            for window in _split_into_windows(records, size):
                captioned = caption_window(captioner, window, model.config.data, progress)
                journal.append(captioned)
                for drawing in captioned:
                    progress.add(drawing)
        except KeyboardInterrupt:
            print(
                f"{progress.num_drawings} drawings are in {journal.path}: the same command "
                "continues after them",
                file=sys.stderr,
            )
            raise
        journal.finish()

    refused = dict(progress.refused.most_common())
    if not progress.num_captions:
        raise UserError(
            f"none of {progress.num_drawings} drawings got a caption: {out} has reasons"
        )
    seconds = round(time.monotonic() - started, 1)
    return {
        "out": str(out),
        "captions": progress.num_captions,
        "refused": refused,
        "seconds": seconds,
    }


def caption_window(
    captioner: "Captioner", window: Sequence[_Drawing], data: DataConfig, progress: CaptionProgress
) -> list[CaptionedDrawing]:
    """Return the caption of each drawing, or the reason why it has none, in their order."""
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

    captions = captioner.caption(list(canonical.values()), on_progress=progress.print)
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


def _read_drawings(inputs: Sequence[str], config: DrawingsConfig) -> Iterator[_Drawing]:
    """Return the drawings of all inputs. Raises DataError now if an input cannot be read."""
    sources = [(mask_secrets(spec), read_source(spec, config)) for spec in inputs]
    return (
        _Drawing(name, record.id.encode("utf-8", "replace").decode(), record.svg)
        for name, records in sources
        for record in records
    )


def _describe_run(inputs: Sequence[str], model: TrainedModel, adapter: Path) -> dict[str, Any]:
    """Return all that the captions depend on: a continued run must have the same."""
    digest = hashlib.sha256()
    for file in sorted(adapter.glob("adapter_*")):
        digest.update(file.read_bytes())
    config = model.config
    return {
        "inputs": [mask_secrets(spec) for spec in inputs],
        "the sha256 of the adapter": digest.hexdigest(),
        "model.name": mask_secrets(config.model.name),
        "quantization.kind": config.quantization.kind,
        "model.attention_softcap": config.model.attention_softcap,
        "model.logit_softcap": config.model.logit_softcap,
        "data.system_prompt": config.data.system_prompt,
        "data.sequence_tokens": config.data.sequence_tokens,
        "data.too_long": config.data.too_long,
        "evaluate.max_new_tokens": config.evaluate.max_new_tokens,
    }


def _skip_captioned(
    records: Iterator[_Drawing], journal: Journal, progress: CaptionProgress
) -> None:
    """Skip the drawings in the journal. Raises UserError if the inputs have changed."""
    for captioned in journal.read():
        record = next(records, None)
        if record is None or (record.source, record.id) != (captioned.source, captioned.id):
            number = progress.num_drawings + 1
            raise UserError(
                f"drawing {number} is {record.id if record else 'missing'!r}, but "
                f"{captioned.id!r} in {journal.path}: restore the inputs to continue, or remove "
                "the file to begin again"
            )
        progress.add(captioned)
    if progress.num_drawings:
        print(f"{progress.num_drawings} drawings are done already", file=sys.stderr)


def _split_into_windows(records: Iterator[_Drawing], num_drawings: int) -> Iterator[list[_Drawing]]:
    window: list[_Drawing] = []
    num_bytes = 0
    for record in records:
        window.append(record)
        num_bytes += len(record.svg)
        if len(window) == num_drawings or num_bytes >= MAX_WINDOW_BYTES:
            yield window
            window, num_bytes = [], 0
    if window:
        yield window
