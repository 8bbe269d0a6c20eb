"""Command line of SVGScribe: validate the config and run the command.

Each command handler imports torch and Ray only after the arguments and the config are valid, so
that an error in them appears within two seconds.
"""

import argparse
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from app import config as configs
from app.arguments import parse_arguments
from app.config_reference import render_reference
from app.errors import UserError
from app.gemma.config import ModelConfig, QuantizationConfig
from app.tracking import build_ui_command, check_tracking
from data_pipeline.config import PrepareConfig
from data_pipeline.errors import DataError
from tune.errors import SearchError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0: done. 2: an error that the user can fix, printed to stderr in one sentence. 130: interrupted.
    `doctor` returns 1 if a check failed.
    """
    arguments = parse_arguments(argv)
    # SIGTERM raises KeyboardInterrupt, so that the MLflow run of a stopped job ends as KILLED.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _HANDLERS[arguments.command](arguments)
    except (UserError, DataError, SearchError) as error:
        print(f"svgscribe: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("svgscribe: interrupted", file=sys.stderr)
        return 130


def _train(arguments: argparse.Namespace) -> int:
    """Train the job of the config, or continue it. Print its result as JSON."""
    config = _load_job_config(arguments)
    from app.jobs.cluster import connect_ray
    from app.jobs.fit import get_memory_limit, require_fit
    from app.jobs.job import require_workers
    from app.jobs.train import train_job
    from data_pipeline.shards import open_shards

    shards = open_shards(config.data.shards)
    require_fit(config, get_memory_limit(config))
    with connect_ray():
        require_workers(config, config.scaling.num_workers)
        result = train_job(config, shards)
    print(json.dumps({**result.metrics, "adapter": result.adapter, "run_id": result.run_id}))
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    """Print the memory of one optimizer step, the number of steps and the size of a checkpoint."""
    config = _load_config(arguments)
    from app.jobs import plan

    gpus = [plan.parse_gib(text) for text in arguments.gpu]
    made = plan.make_plan(
        config, gpus, max_context=arguments.max_context, speed=arguments.tokens_per_second
    )
    print(json.dumps(made) if arguments.json else plan.format_plan(made))
    return 0


def _tune(arguments: argparse.Namespace) -> int:
    """Search over `search.space`. Print the best trial as JSON."""
    config = _load_job_config(arguments)
    from app.jobs.cluster import connect_ray
    from app.jobs.job import require_workers
    from app.jobs.tune import tune_job
    from data_pipeline.shards import open_shards

    shards = open_shards(config.data.shards)
    with connect_ray():
        require_workers(config, config.search.max_concurrent * config.search.workers_per_trial)
        searched = tune_job(config, shards)

    best = searched.result.best
    report = {
        "best": best.overrides,
        "eval_loss": best.eval_loss,
        "config": searched.best_config,
        "trials": len(searched.result.trials),
        "run_id": searched.run_id,
    }
    print(json.dumps(report))
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    """Evaluate the base and the tuned model on the held-out split. Print the report as JSON."""
    config = _load_job_config(arguments)
    from app.jobs.cluster import connect_ray
    from app.jobs.evaluate import evaluate_job, find_adapter
    from data_pipeline.shards import open_shards

    adapter = arguments.adapter or find_adapter(config)
    shards = open_shards(config.data.shards)
    with connect_ray():
        report = evaluate_job(config, shards, adapter)
    print(json.dumps(report))
    return 0


def _prepare(arguments: argparse.Namespace) -> int:
    """Write Parquet shards of the given sources. Print the counts."""
    if arguments.json and not os.path.isdir(os.path.dirname(os.path.abspath(arguments.json))):
        raise UserError(f"--json {arguments.json}: its folder does not exist; create it first")
    values = {name: getattr(arguments, name) for name in PrepareConfig.model_fields}
    config = configs.validate_values(PrepareConfig, values)
    on_ray = arguments.ray or os.environ.get("RAY_ADDRESS")
    if on_ray and config.processes:
        raise UserError(
            f"--processes {config.processes} counts processes of this machine, but Ray uses all "
            "CPUs of its cluster: leave out --processes, or leave out --ray and unset RAY_ADDRESS"
        )

    from data_pipeline.prepare.dataset import prepare_dataset

    if on_ray:
        from app.jobs.prepare import map_on_ray

    map_batches = map_on_ray if on_ray else None
    report = prepare_dataset(arguments.source, config, map_batches=map_batches)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(dataclasses.asdict(report), file, indent=2)
    print(report)
    return 0


def _quantize(arguments: argparse.Namespace) -> int:
    """Write a 4-bit base model to a new folder. Print its hash and size as JSON."""
    quantization = configs.validate_values(
        QuantizationConfig, {"kind": arguments.kind, "double_quant": arguments.double_quant}
    )
    from app.jobs.quantize import quantize_model

    model = ModelConfig(name=arguments.model, revision=arguments.revision)
    print(json.dumps(quantize_model(model, quantization, Path(arguments.out))))
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    """Run prepare, tune, train and evaluate on real icons."""
    config = configs.make_paths_absolute(configs.load_config("demo", arguments.overrides))
    from app.jobs.demo import run_demo

    return run_demo(config)


def _show(arguments: argparse.Namespace) -> int:
    """Print the resolved config as YAML."""
    print(configs.config_to_yaml(_load_config(arguments)), end="")
    return 0


def _docs(arguments: argparse.Namespace) -> int:
    """Print the Markdown reference of every setting."""
    print(render_reference(configs.Config))
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    """Check that the job of the config can run on this machine."""
    config = _load_config(arguments)
    from app.jobs.doctor import run_doctor

    return run_doctor(config)


def _ui(arguments: argparse.Namespace) -> int:
    """Start the MLflow UI of the tracking database, or print the address of the server."""
    command = build_ui_command(_load_config(arguments).tracking, port=arguments.port)
    print(" ".join(command), flush=True)
    if len(command) > 1:
        os.execv(command[0], command)
    return 0


def _load_config(arguments: argparse.Namespace) -> configs.Config:
    return configs.load_config(arguments.config, arguments.overrides)


def _load_job_config(arguments: argparse.Namespace) -> configs.Config:
    """Load the config, make its paths absolute and check that its tracking server answers."""
    config = configs.make_paths_absolute(_load_config(arguments))
    check_tracking(config.tracking)
    return config


_HANDLERS: dict[str, Callable[[argparse.Namespace], int]] = {
    "prepare": _prepare,
    "plan": _plan,
    "quantize": _quantize,
    "train": _train,
    "tune": _tune,
    "evaluate": _evaluate,
    "doctor": _doctor,
    "ui": _ui,
    "demo": _demo,
    "config show": _show,
    "config docs": _docs,
}


if __name__ == "__main__":
    sys.exit(main())
