"""Caption drawings of any source with a trained model, on this machine or on a Ray cluster.

Memory holds a few windows, whatever the number of drawings. A run that was killed continues with
the drawings that are not in its journal.
"""

import argparse
import hashlib
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from app.config import Config
from app.errors import UserError
from app.jobs.caption_journal import CaptionedDrawing, Journal, require_new_file
from app.jobs.caption_windows import (
    BATCHES_PER_WINDOW,
    Drawing,
    caption_window,
    read_drawings,
    split_into_windows,
)
from app.jobs.trained_model import TrainedModel, find_configured_model
from app.overrides import is_override
from data_pipeline.config import DrawingsConfig
from data_pipeline.masking import mask_secrets
from data_pipeline.sources.read import count_drawings


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

    def print(self) -> None:
        """Print one line to stderr, unless the last one is recent."""
        now = time.monotonic()
        if now - self._printed_at < self.EVERY_SECONDS:
            return
        self._printed_at = now
        num_done = self.num_drawings
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
    on_ray = arguments.ray or bool(os.environ.get("RAY_ADDRESS"))
    return caption_drawings(inputs, drawings, model, out, on_ray=on_ray)


def caption_drawings(
    inputs: Sequence[str],
    drawings: DrawingsConfig,
    model: TrainedModel,
    out: Path,
    *,
    on_ray: bool = False,
) -> dict[str, Any]:
    """Write the captions of all drawings to a new file; return counts and seconds.

    `inputs` are files, folders or URIs that `read_source` reads. The same call continues a run that
    was killed, `on_ray` or not. A drawing that is refused or too long gets its reason instead of a
    caption.

    Raises UserError or DataError if the inputs, the model or the output cannot be used, and
    UserError if no drawing got a caption.
    """
    started = time.monotonic()
    records = read_drawings(inputs, drawings)
    counts = [count_drawings(spec) for spec in inputs]
    total = None if None in counts else sum(count or 0 for count in counts)
    progress = CaptionProgress(total)

    # seconds: after the checks of the inputs
    from app.jobs.open_captioner import find_adapter_folder, require_engine

    require_engine(model.config, model.adapter)
    header = _describe_run(inputs, model, find_adapter_folder(model.adapter))
    with Journal(out, header) as journal, _say_how_to_continue(journal, progress):
        missed = _skip_captioned(records, journal, progress)
        write = partial(_write_batch, journal, progress)
        if on_ray:
            from app.jobs.caption_on_ray import caption_on_ray

            progress.start()
            numbers = frozenset(drawing.number for drawing in missed)
            num_read = progress.num_drawings + len(missed)
            caption_on_ray(inputs, drawings, model, num_read, numbers, write)
        else:
            _caption_here(chain(missed, records), model, progress, write)
        journal.finish()

    if not progress.num_captions:
        raise UserError(
            f"none of {progress.num_drawings} drawings got a caption: {out} has reasons"
        )
    return {
        "out": str(out),
        "captions": progress.num_captions,
        "refused": dict(progress.refused.most_common()),
        "seconds": round(time.monotonic() - started, 1),
    }


@contextmanager
def _say_how_to_continue(journal: Journal, progress: CaptionProgress) -> Iterator[None]:
    """On an interrupt print how many drawings are captioned, and that the command continues."""
    try:
        yield
    except KeyboardInterrupt:
        print(
            f"{progress.num_drawings} drawings are in {journal.path}: the same command "
            "continues with the others",
            file=sys.stderr,
        )
        raise


def _caption_here(
    records: Iterator[Drawing],
    model: TrainedModel,
    progress: CaptionProgress,
    write: Callable[[list[CaptionedDrawing]], None],
) -> None:
    """Caption the drawings with a model in this process, and write each batch."""
    from app.jobs.open_captioner import open_engine

    config = model.config
    captioner = open_engine(config, model.adapter)
    progress.start()
    size = BATCHES_PER_WINDOW * config.evaluate.generation_batch_size
    for window in split_into_windows(records, size):
        caption_window(captioner, window, config.data, write)


def _write_batch(
    journal: Journal, progress: CaptionProgress, captioned: list[CaptionedDrawing]
) -> None:
    journal.append(captioned)
    for drawing in captioned:
        progress.add(drawing)
    progress.print()


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
        "evaluate.caption_engine": config.evaluate.caption_engine,
        "evaluate.max_new_tokens": config.evaluate.max_new_tokens,
    }


def _skip_captioned(
    records: Iterator[Drawing], journal: Journal, progress: CaptionProgress
) -> list[Drawing]:
    """Skip the drawings in the journal. Return those before its last one that are not in it.

    Raises UserError if the inputs have changed.
    """
    missed: list[Drawing] = []
    for captioned in journal.read():
        record = next(records, None)
        while record is not None and record.number < captioned.number:
            missed.append(record)
            record = next(records, None)
        if record is None or record[:3] != captioned[:3]:
            raise UserError(
                f"drawing {captioned.number + 1} is {record.id if record else 'missing'!r}, but "
                f"{captioned.id!r} in {journal.path}: restore the inputs to continue, or remove "
                "the file to begin again"
            )
        progress.add(captioned)
    if progress.num_drawings:
        print(f"{progress.num_drawings} drawings are done already", file=sys.stderr)
    return missed
