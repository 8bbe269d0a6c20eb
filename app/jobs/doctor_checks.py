"""The checks of `doctor`. Each yields lines of a status and a sentence with value, limit and fix.

Third-party packages are themselves checked, so each check imports the packages that it needs.
"""

import importlib
import importlib.metadata
import os
import platform
import shutil
import tomllib
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from app.config import Config
from app.gemma.config import QuantizationConfig
from app.storage import join_uri
from app.tracking import check_tracking
from data_pipeline.masking import mask_secrets

if TYPE_CHECKING:
    from packaging.requirements import Requirement

Line = tuple[Literal["ok", "warn", "FAIL"], str]
Check = Callable[[Config], Iterator[Line]]

_GIB = 2**30


def check_packages(config: Config) -> Iterator[Line]:
    """Compare versions with the project's pins, then import the packages of the other checks."""
    wrong = []
    for requirement in _list_requirements(optuna=config.search.algorithm == "optuna"):
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = "missing"
        if version == "missing" or version not in requirement.specifier:
            wrong.append(f"{requirement.name} is {version}, needed: {requirement.specifier}")
    if wrong:
        yield "FAIL", f"{'; '.join(wrong)}: run pip install -c deploy/constraints.txt -e ."

    if config.parallel.strategy == "fsdp" and _is_older("torch", "2.13"):
        yield (
            "FAIL",
            "parallel.strategy=fsdp shards 4-bit weights, which needs torch 2.13: update it",
        )

    for name in ("torch", "bitsandbytes", "transformers", "ray", "mlflow"):
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken CUDA library may raise any exception
            reason = f"{type(error).__name__}: {error}"
            yield "FAIL", f"{name} cannot be imported ({reason}): reinstall it"
    yield "ok", f"Python {platform.python_version()}, Ray {importlib.metadata.version('ray')}"


def _is_older(package: str, version: str) -> bool:
    from packaging.version import Version

    return Version(importlib.metadata.version(package)) < Version(version)


def _list_requirements(*, optuna: bool) -> list["Requirement"]:
    """Return the pins of pyproject.toml, or of the installed package if that file is absent."""
    from packaging.requirements import Requirement

    project = Path(__file__).parents[2] / "pyproject.toml"
    if project.is_file():
        table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        extra = table["optional-dependencies"]["search"] if optuna else []
        return [Requirement(text) for text in table["dependencies"] + extra]

    pins = [Requirement(text) for text in importlib.metadata.requires("svgscribe") or []]
    environment = {"extra": "search" if optuna else ""}
    return [pin for pin in pins if pin.marker is None or pin.marker.evaluate(environment)]


def check_gpu(config: Config) -> Iterator[Line]:
    """Check that torch can use the GPU, if there is one or the job needs one."""
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        cards = f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}"
        memory = f"{free / _GIB:.0f} of {total / _GIB:.0f} GiB free"
        yield "ok", f"{cards}, {memory}, CUDA {torch.version.cuda}"
    elif torch.version.cuda is None and shutil.which("nvidia-smi"):
        build = f"torch {torch.__version__} is a CPU build, but this machine has an NVIDIA driver"
        yield "FAIL", f"{build}: install a CUDA build"
    elif config.scaling.use_gpu and not os.environ.get("RAY_ADDRESS"):
        fix = "use a machine with a GPU, or set scaling.use_gpu=false"
        yield "FAIL", f"torch finds no GPU: {fix}"
    else:
        use_gpu = str(config.scaling.use_gpu).lower()
        yield "ok", f"no GPU on this machine; scaling.use_gpu={use_gpu}"


def check_calibration(config: Config) -> Iterator[Line]:
    """Name the file of this device's measured speeds. A job can run without it."""
    from app.jobs.step_time import describe_calibration

    yield "ok", describe_calibration(config)


def check_bitsandbytes(config: Config) -> Iterator[Line]:
    """Compute one 4-bit matrix product and compare it with the exact one."""
    kind = config.quantization.kind
    if kind == "none":
        yield "ok", "not used: quantization.kind=none"
        return
    error = _measure_matmul_error(config.quantization)
    if error < 0.2:
        yield "ok", f"{kind} matrix product has a relative error of {error:.2f} (limit 0.2)"
    else:
        sentence = f"{kind} matrix product has a relative error of {error:.2f}, limit 0.2"
        yield "FAIL", f"{sentence}: reinstall bitsandbytes"


def _measure_matmul_error(config: QuantizationConfig) -> float:
    """Return the relative error of one 4-bit product against fp32, on the GPU if there is one."""
    import torch
    from bitsandbytes.nn.modules import Linear4bit

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    layer: Any = Linear4bit(
        256,
        64,
        bias=False,
        compute_dtype=torch.bfloat16,
        quant_type=config.kind,
        compress_statistics=config.double_quant,
    )
    x, weight = torch.randn(8, 256), layer.weight.detach().clone()
    product = layer.to(device)(x.to(device, torch.bfloat16)).detach().float().cpu()
    expected = x @ weight.T
    return float((product - expected).norm() / expected.norm())


def check_storage(config: Config) -> Iterator[Line]:
    """Write a file to train.output_dir, so that a job does not fail at its first checkpoint."""
    from pyarrow.fs import FileSystem

    folder = config.train.output_dir
    is_remote = "://" in folder
    existing = folder if is_remote else str(_find_existing_folder(Path(folder)))
    filesystem, path = FileSystem.from_uri(join_uri(existing, f".doctor-{uuid.uuid4().hex}"))
    masked = mask_secrets(folder)

    # write a file
    try:
        with filesystem.open_output_stream(path) as stream:
            stream.write(b"written by svgscribe doctor")
        filesystem.delete_file(path)
    except OSError as error:
        reason = mask_secrets(str(error).splitlines()[0])
        yield "FAIL", f"train.output_dir={masked} is not writable ({reason}): choose another"
        return
    yield "ok", f"train.output_dir={masked} is writable"

    # measure the free space, for reports and checkpoints with their optimizer state
    if not is_remote:
        free_gib = shutil.disk_usage(existing).free / _GIB
        needed_gib = 2 if config.model.name == "tiny" else 20
        if free_gib >= needed_gib:
            yield "ok", f"train.output_dir has {free_gib:.0f} GiB free"
        else:
            sentence = f"train.output_dir has {free_gib:.1f} GiB free, {needed_gib} GiB needed"
            yield "FAIL", f"{sentence}: free some space or change train.output_dir"


def _find_existing_folder(folder: Path) -> Path:
    """Return the folder or its nearest existing parent; the job creates the rest."""
    absolute = folder.absolute()
    return next(parent for parent in [absolute, *absolute.parents] if parent.exists())


def check_shards(config: Config) -> Iterator[Line]:
    """Open the shards and count their records."""
    from data_pipeline.shards import SPLITS, open_shards

    shards = open_shards(config.data.shards)
    num_train, num_validation, num_test = (shards.num_records(split) for split in SPLITS)
    folder = mask_secrets(config.data.shards)
    counts = f"{num_train} training, {num_validation} validation and {num_test} test records"
    yield "ok", f"{counts} in data.shards={folder}"


def check_model(config: Config) -> Iterator[Line]:
    """Check that the model is a local folder, a URI, or a hub name that a job can download."""
    from app.gemma.base_model import resolve_model_source
    from data_pipeline.fetch import list_files

    name = config.model.name
    if "://" in name:
        files = list_files(name)
        gib = sum(file.size for file in files) / _GIB
        if any(file.base_name == "config.json" for file in files):
            yield "ok", f"each node of the job copies {mask_secrets(name)} ({gib:.1f} GiB) once"
        else:
            yield "FAIL", f"model.name={mask_secrets(name)} is not a model folder (no config.json)"
        return
    folder = Path(resolve_model_source(name))
    is_hub_name = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    if (folder / "config.json").is_file():
        yield "ok", f"{name} is in {folder}"
    elif folder.is_dir() or not is_hub_name:
        fix = "give a model folder, a hub name, or tiny"
        yield "FAIL", f"model.name={name} is not a model folder (no config.json): {fix}"
    else:
        account = "HF_TOKEN must be of an account that accepted the model's terms"
        yield "ok", f"the job will download {name} from the hub ({account})"


def check_tracking_server(config: Config) -> Iterator[Line]:
    """Check that the MLflow server or database answers."""
    check_tracking(config.tracking)
    yield "ok", f"tracking.uri={mask_secrets(str(config.tracking.uri))}"


def check_ray(config: Config) -> Iterator[Line]:
    """Check that the job fits on the cluster at RAY_ADDRESS, or on this machine.

    Joining a cluster verifies its address, token and version: Ray refuses others.
    """
    from app.jobs.cluster import connect_ray, is_ray_private
    from app.jobs.resources import describe_shortage, get_machine_resources, list_node_resources

    scaling = config.scaling
    needs = (
        scaling.num_workers,
        scaling.cpus_per_worker,
        scaling.reserved_gpus,
        config.data.cpus_per_task,
    )
    is_private = is_ray_private()
    if is_private:
        yield "ok", "RAY_ADDRESS is not set: each command starts a private Ray on this machine"
        shortage = describe_shortage([get_machine_resources()], *needs)
    else:
        with connect_ray() as cluster:
            version = importlib.metadata.version("ray")
            yield "ok", f"joined {cluster.address}, which runs Ray {version} as this machine does"
            yield _check_token(cluster.dashboard)
            shortage = describe_shortage(list_node_resources(), *needs)

    if shortage and scaling.wait_seconds and not is_private:
        wait = f"or let the autoscaler add nodes within {scaling.wait_seconds} s"
        yield "warn", f"{shortage}, {wait}"
    elif shortage:
        yield "FAIL", shortage
    else:
        yield "ok", f"room for scaling.num_workers={scaling.num_workers} and a data task"


def _check_token(dashboard: str) -> Line:
    """Request the cluster's jobs without a token; the dashboard should refuse."""
    try:
        urllib.request.urlopen(f"http://{dashboard}/api/jobs/", timeout=5).close()
    except OSError as error:
        if getattr(error, "code", None) in (401, 403):
            return "ok", f"the dashboard {dashboard} refuses clients without a token"
        return (
            "warn",
            f"the dashboard {dashboard} gave no answer to a client without a token: {error}",
        )
    danger = (
        f"every client of the dashboard {dashboard} can run code on the cluster (CVE-2023-48022)"
    )
    return "warn", f"{danger}: start its nodes with RAY_AUTH_MODE=token"
