"""The command `prepare`: check its arguments, and clean on this machine or on Ray."""

import argparse
import dataclasses
import json
import os
from collections.abc import Sequence

from app.config import validate_values
from app.errors import UserError
from app.storage import check_json_file
from data_pipeline.config import PrepareConfig
from data_pipeline.prepare.dataset import PrepareReport, prepare_dataset


def run_prepare(arguments: argparse.Namespace) -> PrepareReport:
    """Write the shards, and the counts into the file of `--json`.

    Raises UserError if an argument is wrong, and DataError if the sources cannot be read.
    """
    check_json_file(arguments.json)
    values = {name: getattr(arguments, name) for name in PrepareConfig.model_fields}
    config = validate_values(PrepareConfig, values)
    _require_no_source(arguments.json, [*arguments.source, *config.validation, *config.test])
    on_ray = arguments.ray or os.environ.get("RAY_ADDRESS")
    if on_ray and config.processes:
        raise UserError(
            f"--processes {config.processes} counts processes of this machine, but Ray uses all "
            "CPUs of its cluster: leave out --processes, or leave out --ray and unset RAY_ADDRESS"
        )

    map_batches = None
    if on_ray:
        from app.jobs.prepare import map_on_ray

        map_batches = map_on_ray
    report = prepare_dataset(arguments.source, config, map_batches=map_batches)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(dataclasses.asdict(report), file, indent=2)
    return report


def _require_no_source(json_file: str | None, sources: Sequence[str]) -> None:
    """Raise UserError if the file of `--json` is one of the sources."""
    for source in sources if json_file is not None and os.path.exists(json_file) else ():
        path = source if os.path.exists(source) else source.rpartition("@")[0]  # @ a weight
        if os.path.exists(path) and os.path.samefile(path, str(json_file)):
            raise UserError(f"--json {json_file} is a source, which it would replace: give another")
