"""The predicted time of a step, its calibration, and the cost of a job."""

import dataclasses
import json

import pytest
import torch

from app.__main__ import main
from app.config import load_config
from app.gemma.flops import Workload, count_step_flops
from app.gemma.published import load_model_config_offline
from app.jobs.plan import get_step_settings
from app.jobs.step_time import describe_calibration, format_time, predict_time
from app.speed_plan.calibration import (
    Calibration,
    calibrate,
    find_calibration_file,
    name_device,
    read_calibration,
)
from app.speed_plan.roofline import predict_step_seconds

WORK = Workload(1000, 100, 200_000, 100_000)
SPEEDS = {
    "matmul_flops": 4e10,
    "attention_flops": 2e10,
    "memory_bytes": 1e10,
    "dequantise_bytes": 1e9,
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    torch.set_num_threads(1)  # as demo's workers
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def store(**speeds):
    calibration = Calibration(
        device=name_device(torch.device("cpu")),
        precision="fp32",
        torch=torch.__version__,
        **{**SPEEDS, **speeds},
    )
    file = find_calibration_file(calibration.device, calibration.precision)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(dataclasses.asdict(calibration)))
    return calibration


def predict(*overrides, calibration=None, work=WORK):
    config = load_config("demo", ["train.precision=fp32", *overrides])
    settings = get_step_settings(config)
    model = load_model_config_offline(config.model)
    return predict_step_seconds(model, settings, work, calibration or store())


def test_a_device_that_is_twice_as_fast_takes_half_the_time():
    twice = predict(calibration=store(**{name: 2 * value for name, value in SPEEDS.items()}))
    once = predict(calibration=store())
    assert twice == pytest.approx({name: value / 2 for name, value in once.items()})


def test_products_take_the_counted_operations_and_recomputed_layers_take_more():
    kept = predict("memory.gradient_checkpointing=false", "train.gradient_accumulation_steps=1")
    config = load_config("demo")
    flops = count_step_flops(load_model_config_offline(config.model), config.lora, WORK)
    assert kept["products"] == pytest.approx((flops.total - flops.attention) / 4e10)
    assert kept["attention"] == pytest.approx(flops.attention / 2e10)

    recomputed = predict("memory.gradient_checkpointing=true")
    half = predict("memory.gradient_checkpointing=true", "memory.keep_layers=2")
    for kind in ("products", "attention", "dequantising", "elements"):
        assert kept[kind] < half[kind] < recomputed[kind]
        assert half[kind] == pytest.approx((kept[kind] + recomputed[kind]) / 2)
    assert predict("quantization.kind=none")["dequantising"] == 0


def test_a_plan_without_a_calibration_of_this_device_names_the_command():
    config = load_config("demo", ["train.precision=fp32", "scaling.threads_per_worker=1"])
    predicted = predict_time(config, 10, 3.0)
    assert predicted["step_seconds"] is None
    assert "python -m app plan CONFIG --calibrate" in format_time(predicted)
    assert "python -m app plan CONFIG --calibrate" in describe_calibration(config)

    calibration = store()
    folder = find_calibration_file(calibration.device, "fp32").parent
    assert describe_calibration(config).endswith(f"0.04 TFLOP/s in fp32, as stored in {folder}")


def test_a_calibration_measures_this_device_and_is_read_again(monkeypatch):
    monkeypatch.setattr("app.speed_plan.calibration._SECONDS", 0.0)  # three runs of each
    measured = calibrate(torch.device("cpu"), "fp32")
    assert measured == read_calibration(name_device(torch.device("cpu")), "fp32")
    speeds = [value for value in vars(measured).values() if isinstance(value, float)]
    assert len(speeds) == 4
    assert all(1e6 < speed < 1e15 for speed in speeds)


def test_a_file_of_another_version_is_no_calibration():
    calibration = store()
    assert read_calibration(calibration.device, "fp32") == calibration
    assert read_calibration(calibration.device, "bf16") is None
    file = find_calibration_file(calibration.device, "fp32")
    for text in ("{", "[]", '{"device": "x"}'):
        file.write_text(text)
        assert read_calibration(calibration.device, "fp32") is None


def test_hours_and_cost_follow_from_the_seconds_of_a_step():
    store()
    config = load_config("demo", ["train.precision=fp32"])
    predicted = predict_time(config, 7200, 1.5)
    assert predicted["predicted_hours"] == pytest.approx(2 * predicted["step_seconds"])
    assert predicted["cost"] == pytest.approx(3 * predicted["step_seconds"])
    assert sum(predicted["step_seconds_by_kind"].values()) == predicted["step_seconds"]
    assert "cost" in format_time(predicted)


def test_a_calibration_that_cannot_be_written_is_named(cache, capsys):
    (cache / "svgscribe").write_text("a file, no folder")
    assert main(["plan", "demo", "train.precision=fp32", "--calibrate"]) == 2
    assert "set XDG_CACHE_HOME to a writable folder" in capsys.readouterr().err
