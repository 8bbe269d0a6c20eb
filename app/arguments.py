"""Arguments of the command line. Imports no heavy library."""

import argparse
from collections.abc import Sequence
from typing import TypeAlias

from app.argument_types import parse_not_negative, parse_path, parse_port, parse_positive
from app.gemma.config import ModelConfig, QuantizationConfig
from data_pipeline.config import PrepareConfig

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; `command` of the result names the command, such as `config show`.

    Overrides (`section.field=value`) may stand before and after options. argparse accepts
    positional arguments in one place only, so it returns overrides after an option as unparsed.
    """
    parser = _build_parser()
    arguments, unparsed = parser.parse_known_args(argv)
    takes_overrides = "overrides" in arguments
    unknown = [
        text for text in unparsed if text.startswith("-") or "=" not in text or not takes_overrides
    ]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if unparsed:
        arguments.overrides += unparsed
    return arguments


def _build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="svgscribe", description="Teach Gemma 2 to describe SVG drawings."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_prepare(commands)
    _add_plan(commands)
    _add_quantize(commands)

    _add_command_with_config(commands, "train", "train the job of a config, or continue it")
    tune = _add_command_with_config(
        commands, "tune", "search over search.space, or continue; ASHA stops bad trials early"
    )
    tune.add_argument("--json", type=parse_path, help="write all trials to this file")
    _add_evaluate(commands)
    _add_caption(commands)
    _add_promote(commands)
    _add_export(commands)
    _add_command_with_config(
        commands, "doctor", "check that the job of a config can run on this machine"
    )
    ui = _add_command_with_config(
        commands, "ui", "open the MLflow UI of the config's tracking database"
    )
    ui.add_argument("--port", type=parse_port, default=5000, help="port of the UI (default: 5000)")

    _add_serve(commands)
    report = _add_command(commands, "report", "write one page about one or more jobs")
    report.add_argument(
        "runs", nargs="+", metavar="RUN", help="folder or URI of a job, such as outputs/demo/demo"
    )
    report.add_argument("--out", required=True, type=parse_path, help="new file that ends in .html")

    demo = _add_command(
        commands, "demo", "prepare, search, train and evaluate on real icons, in minutes"
    )
    demo.add_argument("overrides", nargs="*", help="section.field=value")
    _add_config_show_and_docs(commands)
    return parser


def _add_evaluate(commands: Commands) -> None:
    evaluate = _add_command(
        commands, "evaluate", "compare tuned model, base model and baselines on a held-out split"
    )
    evaluate.add_argument(
        "model",
        help="config of a job; or folder or URI of a job, a checkpoint or an adapter; or "
        "models:/NAME@ALIAS",
    )
    evaluate.add_argument("overrides", nargs="*", help="section.field=value")
    evaluate.add_argument(
        "--adapter",
        type=parse_path,
        help="folder or URI of a checkpoint of the job of a config (default: its best one, or its "
        "newest one)",
    )
    evaluate.add_argument(
        "--split",
        choices=["validation", "test"],
        default="validation",
        help="split whose drawings are captioned (default: validation)",
    )
    evaluate.add_argument("--json", type=parse_path, help="write the report to this file")


def _add_command(commands: Commands, name: str, text: str) -> argparse.ArgumentParser:
    added = commands.add_parser(name, help=text, description=text)
    added.set_defaults(command=name)
    return added


def _add_command_with_config(commands: Commands, name: str, text: str) -> argparse.ArgumentParser:
    """Add a command whose positional arguments are a config and its overrides."""
    added = _add_command(commands, name, text)
    added.add_argument("config", help="YAML file, or the name of a shipped one: demo, gemma2-9b, …")
    added.add_argument("overrides", nargs="*", help="section.field=value")
    return added


def _add_caption(commands: Commands) -> None:
    caption = _add_command(commands, "caption", "caption drawings with a trained model")
    caption.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="file, folder or URI of drawings, as for prepare; captions are not needed; "
        "section.field=value changes a setting of the model",
    )
    caption.add_argument(
        "--model",
        required=True,
        type=parse_path,
        help="folder or URI of a job, a checkpoint or a PEFT adapter, or models:/NAME@ALIAS",
    )
    caption.add_argument(
        "--out",
        required=True,
        type=parse_path,
        help="new file that ends in .jsonl or .parquet; the same command continues a killed run",
    )
    caption.add_argument("--config", help="config of the training, for an adapter without one")
    caption.add_argument("--svg-column", help=PrepareConfig.model_fields["svg_column"].description)
    caption.add_argument("--id-column", help=PrepareConfig.model_fields["id_column"].description)
    caption.add_argument(
        "--ray",
        action="store_true",
        help="caption on the Ray cluster at RAY_ADDRESS (default if the variable is set), or on a "
        "private Ray",
    )
    caption.set_defaults(overrides=[])


def _add_promote(commands: Commands) -> None:
    promote = _add_command(
        commands, "promote", "make a trained model the champion, if it is better on the test split"
    )
    promote.add_argument(
        "challenger",
        type=parse_path,
        help="folder or URI of a job, a checkpoint or a PEFT adapter, or models:/NAME/VERSION",
    )
    promote.add_argument("overrides", nargs="*", help="section.field=value, for both models")
    promote.add_argument(
        "--force", action="store_true", help="promote in any case; the version is marked as forced"
    )
    promote.add_argument("--config", help="config of the training, for an adapter without one")


def _add_prepare(commands: Commands) -> None:
    prepare = _add_command(commands, "prepare", "convert raw SVG sources to Parquet shards")
    prepare.add_argument(
        "source", nargs="+", help="file, folder or URI, phosphor, scenes:N; A@2 B@1 mixes 2 : 1"
    )
    for name, field in PrepareConfig.model_fields.items():
        is_list = isinstance(field.get_default(), list)
        prepare.add_argument(
            f"--{name.replace('_', '-')}",
            action="append" if is_list else "store",
            default=field.get_default(),
            required=field.is_required(),
            help=field.description,
        )
    prepare.add_argument(
        "--ray",
        action="store_true",
        help="clean drawings on the Ray cluster at RAY_ADDRESS (default if the variable is set), "
        "or on a private Ray",
    )
    prepare.add_argument("--json", type=parse_path, help="write the counts to this file")


def _add_export(commands: Commands) -> None:
    export = _add_command(
        commands, "export", "write a trained model for other programs, and measure its drift"
    )
    export.add_argument(
        "model",
        type=parse_path,
        help="folder or URI of a job, a checkpoint or a PEFT adapter, or models:/NAME@ALIAS",
    )
    export.add_argument("overrides", nargs="*", help="section.field=value")
    export.add_argument("--out", required=True, type=parse_path, help="new folder, on this machine")
    kinds = export.add_mutually_exclusive_group(required=True)
    for kind, text in (
        ("adapter", "folder of PEFT"),
        ("merged", "whole model of transformers, in 16 bits"),
        ("gguf-lora", "adapter of llama.cpp"),
    ):
        kinds.add_argument(f"--{kind}", dest="kind", action="store_const", const=kind, help=text)
    export.add_argument("--config", help="config of the training, for an adapter without one")
    export.add_argument(
        "--max-drift",
        type=parse_not_negative,
        default=0.1,
        help="largest KL divergence from the trained model (nats per caption token; default: 0.1)",
    )


def _add_plan(commands: Commands) -> None:
    plan = _add_command_with_config(
        commands,
        "plan",
        "simulate the memory of one optimizer step, without weights, hub or GPU",
    )
    plan.add_argument(
        "--gpu",
        action="append",
        default=[],
        help="memory of a card, such as 24GiB; may be repeated",
    )
    plan.add_argument(
        "--max-context", action="store_true", help="find the longest sequence on each card"
    )
    plan.add_argument(
        "--tokens-per-second",
        type=parse_positive,
        help="measured speed of all workers together, to estimate the hours",
    )
    plan.add_argument(
        "--calibrate",
        action="store_true",
        help="first measure this device (two minutes at most)",
    )
    plan.add_argument(
        "--price-per-hour",
        type=parse_not_negative,
        help="price of all the job's machines, to predict the cost",
    )
    plan.add_argument("--json", action="store_true", help="print JSON")


def _add_quantize(commands: Commands) -> None:
    quantize = _add_command(
        commands, "quantize", "write a 4-bit base model, which workers load directly"
    )
    quantize.add_argument("model", help="hub name or folder of a Gemma 2 model, or tiny")
    quantize.add_argument(
        "--out",
        required=True,
        type=parse_path,
        help="new folder; use it, or the URI of a copy, as model.name later",
    )
    quantize.add_argument("--revision", help=ModelConfig.model_fields["revision"].description)
    for name, field in QuantizationConfig.model_fields.items():
        quantize.add_argument(
            f"--{name.replace('_', '-')}", default=field.get_default(), help=field.description
        )


def _add_serve(commands: Commands) -> None:
    serve = _add_command(commands, "serve", "caption drawings over HTTP, and on a web page")
    serve.add_argument(
        "--model",
        required=True,
        type=parse_path,
        help="folder or URI of a job, a checkpoint or a PEFT adapter, or models:/NAME@ALIAS",
    )
    serve.add_argument("overrides", nargs="*", help="section.field=value")
    serve.add_argument("--config", help="config of the training, for an adapter without one")
    serve.add_argument("--host", default="127.0.0.1", help="address (default: 127.0.0.1)")
    serve.add_argument("--port", type=parse_port, default=8000, help="port (default: 8000)")


def _add_config_show_and_docs(commands: Commands) -> None:
    config = _add_command(
        commands, "config", "show a resolved config, or the reference of every setting"
    )
    parts = config.add_subparsers(required=True, metavar="show|docs")
    show = parts.add_parser("show", help="print the resolved config")
    show.add_argument("config")
    show.add_argument("overrides", nargs="*")
    show.set_defaults(command="config show")
    docs = parts.add_parser("docs", help="print the reference of every setting")
    docs.set_defaults(command="config docs")
