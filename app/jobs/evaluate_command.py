"""The command `evaluate`: find the model that the user names, and the folder for its report.

torch and Ray are imported after the arguments are valid.
"""

import argparse
import json
import os
from collections.abc import Sequence

from app.config import Config, load_config, make_paths_absolute, override_config
from app.config_files import CONFIGS
from app.errors import UserError
from app.jobs.job_dir import find_adapter, get_job_dir, read_snapshot
from app.jobs.precision import resolve_precision
from app.jobs.trained_model import find_model
from app.storage import check_json_file, write_json
from app.tracking import check_tracking

LONG_PARTS = ("compared_with", "by_source", "by_length", "drawings")
"""Parts of the report that only the files have."""


def run_evaluate(arguments: argparse.Namespace) -> int:
    """Evaluate base and tuned model. Print a table of their scores and the report as JSON."""
    # before the imports, which take seconds
    check_json_file(arguments.json)
    config, adapter = find_evaluated(arguments.model, arguments.adapter, arguments.overrides)
    check_tracking(config.tracking)
    config = resolve_precision(config)
    from app.evaluation.score_table import format_scores
    from app.jobs.check import check_evaluation
    from app.jobs.evaluate import evaluate_job, use_split
    from app.jobs.fit import get_memory_limit, require_evaluation_fit
    from app.jobs.job import connect_workers
    from data_pipeline.shards import open_shards

    shards = open_shards(config.data.shards)
    check_evaluation(*use_split(config, shards, arguments.split))
    require_evaluation_fit(config, get_memory_limit(config))
    with connect_workers(config, 1, with_data_task=False):
        report = evaluate_job(config, shards, adapter, split=arguments.split, name=arguments.model)

    if arguments.json:
        write_json(os.path.abspath(arguments.json), report)
    print(f"{report['num_captions']} drawings of the {report['split']} split")
    print(format_scores(report))
    short = {name: value for name, value in report.items() if name not in LONG_PARTS}
    print(json.dumps(short))
    return 0


def find_evaluated(
    source: str, adapter: str | None, overrides: Sequence[str]
) -> tuple[Config, str]:
    """Return the config, whose job's folder gets the report, and the adapter.

    `source` is a config, or a reference of `find_model`. `adapter` is the checkpoint of a config's
    job. Raises UserError if there is no such model.
    """
    if not _is_model(source):
        config = make_paths_absolute(load_config(source, overrides))
        return config, find_adapter(config, adapter)
    if adapter is not None:
        raise UserError(
            f"--adapter {adapter} is for a config, but {source} is a model: give one of the two"
        )

    given = make_paths_absolute(load_config(None, overrides))
    model = find_model(source, given.tracking)
    placed = override_config(model.config, _find_folder(model.config, model.adapter))
    return make_paths_absolute(override_config(placed, overrides)), model.adapter


def _is_model(source: str) -> bool:
    if (CONFIGS / f"{source}.yaml").is_file():
        return False
    is_file = source.partition("?")[0].endswith((".yaml", ".yml"))
    return (
        source.startswith("models:/")
        or ("://" in source and not is_file)
        or os.path.isdir(os.path.expanduser(source))
    )


def _find_folder(config: Config, adapter: str) -> dict[str, str]:
    """Return the settings of the folder of the job that saved the adapter.

    It is the folder around the checkpoint, or that of the config if it exists, or a new one below
    the current folder.
    """
    path, mark, query = adapter.partition("?")
    job_dir = path.rstrip("/").rpartition("/")[0]
    output_dir, _, name = job_dir.rpartition("/")
    if read_snapshot(job_dir + mark + query) is not None:
        return {"train.output_dir": output_dir + mark + query, "train.run_name": name}
    if "://" in config.train.output_dir or os.path.isdir(get_job_dir(config)):
        return {}
    return {"train.output_dir": os.path.abspath("outputs/evaluations")}
