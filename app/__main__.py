"""Command line of SVGScribe: validate the config and run the command.

Each command handler imports torch and Ray only after the arguments and the config are valid, so
that an error in them appears within two seconds.
"""

import argparse
import atexit
import gc
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from app import config as configs
from app.arguments import parse_arguments
from app.config_reference import render_reference
from app.errors import UserError
from app.full_disk import find_full_disk
from app.jobs.precision import resolve_precision
from app.jobs.trained_model import find_configured_model
from app.output import mask_output
from app.storage import check_json_file
from app.tracking import check_tracking, run_ui
from data_pipeline.errors import DataError
from data_pipeline.remote_errors import explain_remote_error, is_remote_error
from tune.errors import SearchError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, with credentials masked in all that it prints. Return its exit code.

    0: done. 1: an unexpected error with its traceback, a failed check of `doctor`, or a challenger
    that `promote` does not promote. 2: an error that the user can fix, printed to stderr in one
    sentence. 130, 143: stopped by SIGINT, SIGTERM.
    """
    with mask_output():
        arguments = parse_arguments(argv)
        received: list[int] = []

        def stop(number: int, frame: FrameType | None) -> None:
            """Raise KeyboardInterrupt, so that the MLflow run of a stopped job ends as KILLED."""
            received.append(number)
            for each in (signal.SIGTERM, signal.SIGINT):
                signal.signal(each, signal.SIG_DFL)  # a second signal ends the process at once
            raise KeyboardInterrupt(number)

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            code = _run_command(arguments)
        except KeyboardInterrupt as error:
            code = 1
            received += [*error.args, signal.SIGINT]  # Ray raises one without the number
        if not received or code == 0:
            for number, handler in before.items():
                signal.signal(number, handler)
            return code

        # Ray's own exit handler would wait for seconds.
        name = signal.Signals(received[0]).name
        print(f"svgscribe: stopped by {name}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(128 + received[0])


def _run_command(arguments: argparse.Namespace) -> int:
    """Run one command and print its error. Return its exit code."""
    try:
        return _HANDLERS[arguments.command](arguments)
    except (UserError, DataError, SearchError) as error:
        print(f"svgscribe: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        known = find_full_disk(error)
        if known is None and is_remote_error(error):
            known = UserError(f"the remote storage failed: {explain_remote_error(error)}")
        if known is None and "ray" in sys.modules:
            from app.jobs.failures import find_lasting_error, find_lost_process

            known = find_lasting_error(error) or find_lost_process(error)
        if known is None:
            traceback.print_exc()
            return 1
        print(f"svgscribe: {known}", file=sys.stderr)
        return 2


def _train(arguments: argparse.Namespace) -> int:
    """Train the job of the config, or continue it. Print its result as JSON."""
    config = _load_job_config(arguments)
    from app.jobs.check import check_before_ray
    from app.jobs.fit import get_memory_limit, require_fit
    from app.jobs.memory_policy import choose_job_memory
    from data_pipeline.shards import open_shards

    shards = open_shards(config.data.shards)
    check_before_ray(config, shards)
    config = choose_job_memory(config)
    require_fit(config, get_memory_limit(config))

    # a job that is refused needs no ray
    from app.jobs.job import connect_workers
    from app.jobs.train import train_job

    with connect_workers(config, config.scaling.num_workers):
        result = train_job(config, shards)
    print(json.dumps({**result.metrics, "adapter": result.adapter, "run_id": result.run_id}))
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    """Print the memory and the time of one optimizer step, and the number of steps."""
    config = resolve_precision(_load_config(arguments))
    from app.jobs import plan, step_time
    from app.jobs.memory_policy import choose_planned_memory, take_least_memory

    if arguments.calibrate:
        step_time.calibrate_device(config)

    gpus = [plan.parse_gib(text) for text in arguments.gpu]
    cards = plan.plan_cards(take_least_memory(config), gpus) if arguments.max_context else []
    config = choose_planned_memory(config, gpus)
    made = plan.make_plan(config, gpus, cards=cards, speed=arguments.tokens_per_second)
    time = step_time.predict_time(config, made["optimizer_steps"], arguments.price_per_hour)
    text = f"{plan.format_plan(made)}\n{step_time.format_time(time)}"
    print(json.dumps(made | time) if arguments.json else text)
    return 0


def _tune(arguments: argparse.Namespace) -> int:
    """Search over `search.space`, or continue. Print the best trial as JSON."""
    check_json_file(arguments.json)
    config = _load_job_config(arguments)
    from app.jobs.check import check_before_ray
    from app.jobs.job import connect_workers
    from app.jobs.memory_policy import choose_search_memory
    from app.jobs.search_facts import check_search
    from app.jobs.tune import tune_job
    from data_pipeline.shards import open_shards

    check_search(config)
    shards = open_shards(config.data.shards)
    check_before_ray(config, shards)
    config = choose_search_memory(config)
    per_trial = config.search.workers_per_trial
    num_workers = (config.search.max_concurrent or 1) * per_trial
    with connect_workers(config, num_workers, workers_per_trial=per_trial):
        searched = tune_job(config, shards)

    searched.write_trials(arguments.json)
    print(json.dumps(searched.describe()))
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    """Evaluate base and tuned model on a held-out split. Print their scores, and the report."""
    from app.jobs.evaluate_command import run_evaluate

    return run_evaluate(arguments)


def _caption(arguments: argparse.Namespace) -> int:
    """Caption drawings with a trained model. Print the counts as JSON."""
    from app.jobs.caption import run_caption

    print(json.dumps(run_caption(arguments)))
    return 0


def _promote(arguments: argparse.Namespace) -> int:
    """Make a trained model the champion, if it is better. Print the comparison as JSON."""
    from app.jobs.promote import run_promote

    return run_promote(arguments)


def _prepare(arguments: argparse.Namespace) -> int:
    """Write Parquet shards of the given sources. Print the counts."""
    from app.jobs.prepare_command import run_prepare

    print(run_prepare(arguments))
    return 0


def _quantize(arguments: argparse.Namespace) -> int:
    """Write a 4-bit base model to a new folder. Print its hash and size as JSON."""
    from app.jobs.quantize_command import run_quantize

    print(run_quantize(arguments))
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    """Serve captions of a trained model until a signal stops it."""
    from app.jobs.serve import run_serve

    run_serve(arguments)
    return 0


def _report(arguments: argparse.Namespace) -> int:
    """Write one page about some jobs. Print its path."""
    from app.jobs.report import run_report

    print(run_report(arguments))
    return 0


def _export(arguments: argparse.Namespace) -> int:
    """Write a trained model for other programs. Print its drift as JSON."""
    # before the imports, which take seconds
    model = find_configured_model(arguments.model, arguments.config, arguments.overrides)
    from app.jobs.export import export_model

    out = Path(arguments.out).absolute()
    print(json.dumps(export_model(model, arguments.kind, out, arguments.max_drift)))
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    """Run prepare, tune, train and evaluate on real icons."""
    config = configs.make_paths_absolute(configs.load_config("demo", arguments.overrides))
    config = resolve_precision(config)
    from app.jobs.demo import run_demo

    return run_demo(config)


def _show(arguments: argparse.Namespace) -> int:
    """Print the resolved config as YAML."""
    config = configs.load_config(arguments.config, arguments.overrides)
    print(configs.config_to_yaml(config), end="")
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
    run_ui(_load_config(arguments).tracking, port=arguments.port)
    return 0


def _load_config(arguments: argparse.Namespace) -> configs.Config:
    """Load the config and make its paths absolute."""
    return configs.make_paths_absolute(configs.load_config(arguments.config, arguments.overrides))


def _load_job_config(arguments: argparse.Namespace) -> configs.Config:
    """Load the config with a concrete precision; check that its tracking server answers."""
    config = _load_config(arguments)
    check_tracking(config.tracking)
    return resolve_precision(config)


_HANDLERS: dict[str, Callable[[argparse.Namespace], int]] = {
    "prepare": _prepare,
    "plan": _plan,
    "quantize": _quantize,
    "train": _train,
    "tune": _tune,
    "evaluate": _evaluate,
    "caption": _caption,
    "promote": _promote,
    "export": _export,
    "doctor": _doctor,
    "ui": _ui,
    "serve": _serve,
    "report": _report,
    "demo": _demo,
    "config show": _show,
    "config docs": _docs,
}


if __name__ == "__main__":
    # Imports make a million objects that live until the end: search them for garbage less often.
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)
    sys.exit(main())
