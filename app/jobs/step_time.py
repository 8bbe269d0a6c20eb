"""`plan --calibrate`, and the time and cost of a job on the device at hand."""

from pathlib import Path
from typing import Any

import torch

from app.config import Config
from app.errors import UserError
from app.gemma.base_model import resolve_model_source
from app.gemma.flops import Workload, count_pairs
from app.gemma.load import DTYPES
from app.gemma.published import load_model_config_offline
from app.jobs.job import build_stream
from app.jobs.plan import get_step_settings
from app.speed_plan.calibration import (
    Calibration,
    calibrate,
    describe_missing,
    find_calibration_file,
    name_device,
    read_calibration,
)
from app.speed_plan.roofline import predict_step_seconds, scale_workload
from data_pipeline.errors import DataError
from data_pipeline.shards import open_shards
from data_pipeline.stream.encode import IGNORE_INDEX


def get_local_device(config: Config) -> torch.device:
    """Return the device of this machine that a worker of the job would use."""
    if config.scaling.use_gpu and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    torch.set_num_threads(config.scaling.threads_per_worker)
    return torch.device("cpu")


def calibrate_device(config: Config) -> Calibration:
    """Measure the device in the job's precision, and store the result. Raises UserError."""
    device, precision = get_local_device(config), config.train.precision
    try:
        return calibrate(device, precision)
    except OSError as error:
        file = find_calibration_file(name_device(device), precision)
        raise UserError(
            f"cannot write {file} ({error.strerror}): set XDG_CACHE_HOME to a writable folder"
        ) from error


def describe_calibration(config: Config) -> str:
    """Return the sentence of `doctor` about the calibrations of this device."""
    device = name_device(get_local_device(config))
    found = [each for name in DTYPES if (each := read_calibration(device, name)) is not None]
    if not found:
        return describe_missing(device, config.train.precision)
    speeds = (f"{each.matmul_flops / 1e12:.3g} TFLOP/s in {each.precision}" for each in found)
    folder = find_calibration_file(device, found[0].precision).parent
    return f"{device} multiplies at {' and '.join(speeds)}, as stored in {folder}"


def predict_time(
    config: Config, optimizer_steps: int | None, price_per_hour: float | None
) -> dict[str, Any]:
    """Return the predicted seconds of a step, and hours and cost of the job, as `--json` prints.

    Without a calibration of this device return the sentence that it needs one. Hours are those of
    the training steps alone, without start, evaluations and communication.
    """
    name, precision = name_device(get_local_device(config)), config.train.precision
    calibration = read_calibration(name, precision)
    if calibration is None:
        return {"step_seconds": None, "calibration": describe_missing(name, precision)}

    model = load_model_config_offline(config.model)
    work = _estimate_workload(config, model.sliding_window)
    by_kind = predict_step_seconds(model, get_step_settings(config), work, calibration)
    seconds = sum(by_kind.values())
    hours = None if optimizer_steps is None else optimizer_steps * seconds / 3600
    cost = None if hours is None or price_per_hour is None else hours * price_per_hour
    return {
        "calibration": f"{name} in {precision}",
        "step_seconds": seconds,
        "step_seconds_by_kind": by_kind,
        "predicted_hours": hours,
        "cost": cost,
    }


def format_time(predicted: dict[str, Any]) -> str:
    """Return the prediction of `predict_time` as one line of text."""
    seconds = predicted["step_seconds"]
    if seconds is None:
        return f"seconds of a step: unknown; {predicted['calibration']}"
    kinds = ", ".join(
        f"{name} {value / seconds:.0%}" for name, value in predicted["step_seconds_by_kind"].items()
    )
    line = f"a step takes at least {seconds:.3g} s on {predicted['calibration']} ({kinds})"
    if predicted["predicted_hours"] is not None:
        line += f"; all steps {predicted['predicted_hours']:.3g} hours"
    if predicted["cost"] is not None:
        line += f", cost {predicted['cost']:.2f}"
    return line


def _estimate_workload(config: Config, window: int | None) -> Workload:
    """Return the mean work of a micro-batch, from the first shuffle block.

    Without shards or tokenizer, one document with a label on each token fills each sequence.
    """
    size, length = config.train.micro_batch_size, config.data.sequence_tokens
    if Path(resolve_model_source(config.model.name)).is_dir():
        try:
            block = build_stream(config, open_shards(config.data.shards)).pack_shuffle_block(0)
        except DataError:
            pass
        else:
            pairs = (
                count_pairs(block["position_ids"], block["num_tokens"], limit)
                for limit in (None, window)
            )
            num_targets = int((block["targets"] != IGNORE_INDEX).sum())
            whole = Workload(block["input_ids"].size, num_targets, *pairs)
            return scale_workload(whole, size / len(block["num_tokens"]))

    inside = length if window is None else min(window, length)
    full, windowed = (
        reach * (reach + 1) // 2 + (length - reach) * reach for reach in (length, inside)
    )
    return scale_workload(Workload(length, length, full, windowed), size)
