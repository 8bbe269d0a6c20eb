"""The command line, and the only composition root: parse, validate, hand over.

Nothing heavy is imported before the arguments and the config are known to be right.
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
from app.config_reference import render_reference
from app.errors import UserError
from app.gemma.config import ModelConfig, QuantizationConfig
from app.tracking import check_tracking, ui_command
from data_pipeline.config import PrepareConfig
from data_pipeline.errors import DataError
from tune.errors import SearchError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 done, 2 the user can fix it (one sentence on stderr), 130 interrupted."""
    arguments = _parse(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stopped job's run ends as KILLED
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        return run(arguments)
    except (UserError, DataError, SearchError) as error:
        print(f"svgscribe: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("svgscribe: interrupted", file=sys.stderr)
        return 130


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Overrides may stand behind options: argparse itself takes positional arguments in one place alone."""
    parser = _parser()
    arguments, behind = parser.parse_known_args(argv)
    unknown = [
        text
        for text in behind
        if text.startswith("-") or "=" not in text or "overrides" not in arguments
    ]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if behind:
        arguments.overrides += behind
    return arguments


def _train(arguments: argparse.Namespace) -> int:
    config = _job_config(arguments)
    from app.jobs.cluster import connect
    from app.jobs.job import require_workers
    from app.jobs.plan import get_memory_limit, require_fit
    from app.jobs.train import train_job
    from data_pipeline.shards import open_shards

    shards = open_shards(config.data.shards)
    require_fit(config, get_memory_limit(config))
    with connect():
        require_workers(config, config.scaling.num_workers)
        trained = train_job(config, shards)
    print(json.dumps({**trained.metrics, "adapter": trained.adapter, "run_id": trained.run_id}))
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    config = _config(arguments)
    from app.jobs import plan

    gpus = [plan.parse_gib(text) for text in arguments.gpu]
    found = plan.make_plan(
        config, gpus, max_context=arguments.max_context, speed=arguments.tokens_per_second
    )
    print(json.dumps(found) if arguments.json else plan.format_plan(found))
    return 0


def _tune(arguments: argparse.Namespace) -> int:
    config = _job_config(arguments)
    from app.jobs.cluster import connect
    from app.jobs.job import require_workers
    from app.jobs.tune import tune_job
    from data_pipeline.shards import open_shards

    shards = open_shards(config.data.shards)
    with connect():
        require_workers(config, config.search.max_concurrent * config.search.workers_per_trial)
        searched = tune_job(config, shards)
    best = searched.result.best
    print(json.dumps({"best": best.overrides, "eval_loss": best.eval_loss, "config": searched.best_config,
                      "trials": len(searched.result.trials), "run_id": searched.run_id}))  # fmt: skip
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    config = _job_config(arguments)
    from app.jobs.cluster import connect
    from app.jobs.evaluate import evaluate_job
    from data_pipeline.shards import open_shards

    shards = open_shards(config.data.shards)
    with connect():
        report = evaluate_job(config, shards, arguments.adapter)
    print(json.dumps(report))
    return 0


def _prepare(arguments: argparse.Namespace) -> int:
    from data_pipeline.prepare.dataset import prepare_dataset

    if arguments.json and not os.path.isdir(os.path.dirname(os.path.abspath(arguments.json))):
        raise UserError(f"--json {arguments.json}: its folder does not exist")
    values = {name: getattr(arguments, name) for name in PrepareConfig.model_fields}
    report = prepare_dataset(arguments.source, configs.validate_values(PrepareConfig, values))
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(dataclasses.asdict(report), file, indent=2)
    print(report)
    return 0


def _quantize(arguments: argparse.Namespace) -> int:
    quantization = configs.validate_values(
        QuantizationConfig, {"kind": arguments.kind, "double_quant": arguments.double_quant}
    )
    from app.jobs.quantize import quantize

    model = ModelConfig(name=arguments.model, revision=arguments.revision)
    print(json.dumps(quantize(model, quantization, Path(arguments.out))))
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from app.jobs.demo import run_demo

    return run_demo(configs.make_paths_absolute(configs.load_config("demo", arguments.overrides)))


def _show(arguments: argparse.Namespace) -> int:
    print(configs.config_to_yaml(_config(arguments)), end="")
    return 0


def _docs(arguments: argparse.Namespace) -> int:
    print(render_reference(configs.Config))
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    config = _config(arguments)
    from app.jobs.doctor import run_doctor

    return run_doctor(config)


def _ui(arguments: argparse.Namespace) -> int:
    command = ui_command(_config(arguments).tracking, port=arguments.port)
    print(" ".join(command), flush=True)
    if len(command) > 1:
        os.execv(command[0], command)
    return 0


def _config(arguments: argparse.Namespace) -> configs.Config:
    return configs.load_config(arguments.config, arguments.overrides)


def _job_config(arguments: argparse.Namespace) -> configs.Config:
    """A config whose tracking server was reached, and whose paths mean the same to every process."""
    config = configs.make_paths_absolute(_config(arguments))
    check_tracking(config.tracking)
    return config


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="svgscribe", description="Teach Gemma 2 to describe SVG drawings."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    def configured(
        name: str, run: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        added = command(name, run, text)
        added.add_argument(
            "config", help="YAML file, or the name of a shipped one: demo, gemma2-9b, …"
        )
        added.add_argument("overrides", nargs="*", help="section.field=value")
        return added

    prepare = command("prepare", _prepare, "raw SVG sources to Parquet shards")
    prepare.add_argument(
        "source", nargs="+", help="file, folder or URI, phosphor, scenes:N; A@2 B@1 mixes 2 : 1"
    )
    for name, field in PrepareConfig.model_fields.items():
        prepare.add_argument(
            f"--{name.replace('_', '-')}",
            default=field.get_default(),
            required=field.is_required(),
            help=field.description,
        )
    prepare.add_argument("--json", help="write the counts to this file")
    plan = configured(
        "plan", _plan, "memory of one optimizer step by category, simulated: no weights, hub or GPU"
    )
    plan.add_argument(
        "--gpu", action="append", default=[], help="a card's memory, such as 24GiB; may be repeated"
    )
    plan.add_argument(
        "--max-context", action="store_true", help="find the longest row on each card"
    )
    plan.add_argument(
        "--tokens-per-second", type=float, help="measured speed of the whole job, for the hours"
    )
    plan.add_argument("--json", action="store_true", help="print JSON")
    quantize = command(
        "quantize", _quantize, "a model in 4 bits on disk, which workers load as it is"
    )
    quantize.add_argument("model", help="hub name or folder of a Gemma 2, or tiny")
    quantize.add_argument("--out", required=True, help="new folder; then model.name of a config")
    quantize.add_argument("--revision", help=ModelConfig.model_fields["revision"].description)
    for name, field in QuantizationConfig.model_fields.items():
        quantize.add_argument(f"--{name}", default=field.get_default(), help=field.description)
    configured("train", _train, "train, or continue, the job that the config names")
    configured("tune", _tune, "search over search.space, bad trials stopped early")
    evaluate = configured("evaluate", _evaluate, "base against tuned model on the held-out split")
    evaluate.add_argument("--adapter", help="folder of a checkpoint; default: the job's best")
    configured("doctor", _doctor, "say what is missing here for the config's job")
    ui = configured("ui", _ui, "open the MLflow UI of the config's tracking database")
    ui.add_argument("--port", type=int, default=5000)
    demo = command("demo", _demo, "the whole way on real icons, in minutes")
    demo.add_argument("overrides", nargs="*", help="section.field=value")
    config = command("config", _docs, "show a resolved config, or the reference of every setting")
    parts = config.add_subparsers(required=True, metavar="show|docs")
    show = parts.add_parser("show", help="print the resolved config")
    show.add_argument("config")
    show.add_argument("overrides", nargs="*")
    show.set_defaults(run=_show)
    parts.add_parser("docs", help="print the reference of every setting").set_defaults(run=_docs)
    return parser


if __name__ == "__main__":
    sys.exit(main())
