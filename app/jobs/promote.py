"""Compare a trained model with the champion of the registry, and promote it if it is better.

Both models measure the loss of the same examples of the test split. The champion is replaced only
if the paired bootstrap interval of the difference excludes zero.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from app.config import Config, load_config, make_paths_absolute, override_config
from app.errors import UserError
from app.jobs.trained_model import CONFIG_FILE, TrainedModel, find_model, save_config
from app.tracking import (
    REGISTRY_SCHEME,
    TrackingConfig,
    check_tracking,
    find_champion,
    find_registered_version,
    register_model,
    resolve_uri,
    set_champion,
)
from data_pipeline.masking import mask_secrets
from data_pipeline.shards import ShardRecord, Shards, open_shards

MIN_EXAMPLES = 20
"""Resamples of fewer examples are too alike for an interval."""
MAX_EXAMPLES = 2000
"""`prepare` has shuffled the test split, so its first records are a sample of it."""
_EVERY_SECONDS = 5.0


class IsChampionError(UserError):
    """The challenger has the weights of the champion."""


@dataclass(frozen=True)
class Comparison:
    """Losses on the test split (nats a token), and the interval of their difference."""

    challenger_loss: float
    champion_loss: float | None = None
    """This and the next three are None if there is no champion."""
    gain: float | None = None
    """Loss of the champion minus that of the challenger."""
    low: float | None = None
    high: float | None = None
    num_examples: int = 0
    """Number of test examples that fit into a sequence of both models."""

    @property
    def is_better(self) -> bool:
        """Return whether the challenger may replace the champion."""
        return self.low is None or self.low > 0


def run_promote(arguments: argparse.Namespace) -> int:
    """Run the command `promote`. Return 0 if the model is the champion then, else 1."""
    given = load_config(arguments.config, arguments.overrides)
    training = given if arguments.config else None
    challenger = find_model(arguments.challenger, given.tracking, config=training)
    config = make_paths_absolute(override_config(challenger.config, arguments.overrides))
    is_registered = arguments.challenger.startswith(REGISTRY_SCHEME)
    tracking = resolve_uri(given.tracking) if is_registered else config.tracking

    if tracking.uri is None:
        raise UserError("tracking.uri=null has no registry: set tracking.uri to that of the jobs")
    shards = open_shards(config.data.shards)
    _require_test_split(shards)
    check_tracking(tracking)
    try:
        report = promote(
            challenger, shards, tracking, overrides=arguments.overrides, force=arguments.force
        )
    except IsChampionError as same:
        print(f"{same}: there is nothing to do", file=sys.stderr)
        report = {
            "promoted": False,
            "challenger": challenger.name,
            "champion": find_champion(tracking),
        }
        print(mask_secrets(json.dumps(report)))
        return 0
    print(json.dumps(report))
    return 0 if report["promoted"] else 1


def promote(
    challenger: TrainedModel,
    shards: Shards,
    tracking: TrackingConfig,
    *,
    overrides: Sequence[str] = (),
    force: bool = False,
) -> dict[str, Any]:
    """Make the challenger the champion if it is better, or with `force`. Return the report.

    `overrides` change settings of both models. The challenger becomes a version of the registered
    model only if it is promoted. Prints the result in one sentence.

    Raises IsChampionError if the challenger is the champion, and UserError if the two cannot be
    compared, or if the alias has moved since the comparison began.
    """
    from app.jobs.open_captioner import find_adapter_folder  # imports torch

    # compare
    version = find_champion(tracking)
    champion = None if version is None else find_model(version, tracking)
    folder = find_adapter_folder(challenger.adapter)
    adapter_sha256 = _hash_adapter(folder)
    if champion and _hash_adapter(find_adapter_folder(champion.adapter)) == adapter_sha256:
        raise IsChampionError(f"{challenger.name} is the champion already, as {version}")
    records = shards.read("test", 0, min(shards.num_records("test"), MAX_EXAMPLES))
    compared = _compare(challenger, champion, records, overrides)

    # promote
    is_promoted = compared.is_better or force
    tags = {
        **{f"test/{name}": value for name, value in asdict(compared).items() if value is not None},
        "test/digest": shards.digest,
        "before": version or "none",
        "forced": not compared.is_better,
    }
    promoted = version
    if is_promoted:
        promoted = _find_own_version(challenger)
        if promoted is None:
            promoted = register_checkpoint(tracking, folder, challenger.config)
        set_champion(tracking, promoted, tags, before=version)

    print(_describe(challenger.name, version, promoted, compared), file=sys.stderr)
    return {
        "promoted": is_promoted,
        "forced": is_promoted and not compared.is_better,
        "challenger": mask_secrets(challenger.name),
        "champion": promoted,
        "champion_before": version,
        **asdict(compared),
        "dataset_digest": shards.digest,
        "trained_on_other_data": _find_other_data(shards, challenger, champion),
    }


def _require_test_split(shards: Shards) -> None:
    num_records = shards.num_records("test")
    if num_records < MIN_EXAMPLES:
        raise UserError(
            f"the test split of {shards.folder!r} has {num_records} records, and a comparison "
            f"needs {MIN_EXAMPLES}: prepare more with --test-share or --test, or give other shards "
            "with data.shards=…"
        )


def _compare(
    challenger: TrainedModel,
    champion: TrainedModel | None,
    records: Sequence[ShardRecord],
    overrides: Sequence[str],
) -> Comparison:
    """Return the comparison on the records. Raises UserError if the losses do not compare."""
    from app.evaluation.bootstrap import Bootstrap, Score

    losses, tokenizer = _measure(challenger, records, overrides)
    fits = losses[:, 1] > 0
    if champion is not None:
        champion_losses, champion_tokenizer = _measure(champion, records, overrides)
        fits &= champion_losses[:, 1] > 0
        if champion_tokenizer != tokenizer:
            raise UserError(
                f"{challenger.name} and the champion have different tokenizers, so their losses a "
                "token do not compare: give another challenger, or remove the alias"
            )
    num_examples = int(fits.sum())
    if num_examples < MIN_EXAMPLES:
        raise UserError(
            f"only {num_examples} test examples fit into a sequence of the models, and a "
            f"comparison needs {MIN_EXAMPLES}: raise data.sequence_tokens"
        )

    score = Score(losses[fits])
    loss = float(score.combine(score.statistics.sum(axis=0)))
    if champion is None:
        return Comparison(loss, num_examples=num_examples)
    other = Score(champion_losses[fits])
    champion_loss = float(other.combine(other.statistics.sum(axis=0)))
    interval = Bootstrap(num_examples).compare(other, score)
    assert interval is not None  # every example has targets
    return Comparison(loss, champion_loss, champion_loss - loss, *interval, num_examples)


def _measure(
    model: TrainedModel, records: Sequence[ShardRecord], overrides: Sequence[str]
) -> tuple[Any, str]:
    """Return the losses of the records (see `measure_losses`), and the hash of the tokenizer."""
    from app.jobs.open_captioner import open_captioner

    config = make_paths_absolute(override_config(model.config, overrides))
    captioner = open_captioner(config, model.adapter)
    printed_at = time.monotonic()

    def print_progress(num_done: int) -> None:
        nonlocal printed_at
        if time.monotonic() - printed_at >= _EVERY_SECONDS:
            printed_at = time.monotonic()
            print(f"{model.name}: {num_done}/{len(records)} test examples", file=sys.stderr)

    pairs = [(record.svg, record.caption) for record in records]
    losses = captioner.measure_losses(pairs, on_progress=print_progress)
    return losses, captioner.tokenizer_sha256


def _hash_adapter(folder: Path) -> str:
    from app.gemma.adapter import find_weights, hash_file  # imports torch

    return hash_file(find_weights(folder, str(folder)))


def _find_own_version(challenger: TrainedModel) -> str | None:
    """Return the name of a challenger that is a version of the registered model already."""
    prefix, _, number = challenger.name.rpartition("/")
    is_version = prefix == f"{REGISTRY_SCHEME}svgscribe" and number.isdigit()
    return challenger.name if is_version else None


def register_checkpoint(tracking: TrackingConfig, folder: Path, config: Config) -> str:
    """Register the files of a checkpoint that a user of the model needs. Return the version.

    The optimizer's moments are not among them. An adapter of the same run that is registered
    already keeps its version. `config` is that of a checkpoint without one.
    """
    from app.jobs.materials import list_materials  # imports torch

    materials = list_materials(folder) | {"adapter.sha256": _hash_adapter(folder)}
    version = find_registered_version(tracking, materials)
    if version is not None:
        return version
    with tempfile.TemporaryDirectory(prefix="svgscribe-") as name:
        copy = Path(name) / "model"
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("optimizer.safetensors"))
        if not (copy / CONFIG_FILE).is_file():
            save_config(copy, config)
        return register_model(tracking, copy, materials)


def _find_other_data(
    shards: Shards, challenger: TrainedModel, champion: TrainedModel | None
) -> list[str]:
    """Return the models whose training data are other shards, which may hold drawings of the test.

    Print a warning for each.
    """
    from app.jobs.materials import list_materials
    from app.jobs.open_captioner import find_adapter_folder

    found = []
    for model in (challenger, champion):
        if model is not None:
            digest = list_materials(find_adapter_folder(model.adapter)).get("data.digest")
            if digest != shards.digest:
                found.append(model.name)
                print(
                    f"{model.name} was trained on other shards than those of the test, which may "
                    "hold the same drawings: its loss may be too low",
                    file=sys.stderr,
                )
    return found


def _describe(name: str, before: str | None, after: str | None, compared: Comparison) -> str:
    """Return the result in one sentence."""
    loss = f"its loss on {compared.num_examples} test examples is {compared.challenger_loss:.4f}"
    if compared.gain is None:
        return f"{name} is the first champion, as {after}: {loss}"

    side = "below" if compared.gain > 0 else "above"
    difference = (
        f"{abs(compared.gain):.4f} {side} that of {before} (paired 95 % interval of the gain: "
        f"{compared.low:.4f} to {compared.high:.4f})"
    )
    if compared.is_better:
        return f"{name} is the champion, as {after}: {loss}, {difference}"
    if after != before:
        return f"{name} is the champion by --force, as {after}: {loss}, {difference}"
    return f"{before} stays the champion: {name} is not better, {loss}, {difference}"
