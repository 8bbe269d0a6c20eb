"""What is missing here for a config's job: one line per check, with the fix; never a traceback."""

import importlib
import importlib.metadata
import os
import platform
import shutil
import threading
import tomllib
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from app.config import Config
from app.errors import UserError
from app.gemma.config import QuantizationConfig
from app.storage import join_uri, mask_secrets
from app.tracking import check_tracking as check_tracking
from data_pipeline.errors import DataError

if TYPE_CHECKING:  # third-party packages are what is checked: each check imports its own
    from packaging.requirements import Requirement

Line = tuple[Literal["ok", "warn", "FAIL"], str]
Check = Callable[[Config], Iterator[Line]]

_GIB = 2**30


def run_doctor(config: Config) -> int:
    """Print `ok`, `warn` or `FAIL` for each check; 0 when nothing failed, else 1."""
    failed = False
    for name, (check, limit_seconds) in _CHECKS.items():
        for status, text in run_check(check, config, limit_seconds):
            failed |= status == "FAIL"
            print(f"{status:<5}{name:<13}{text}", flush=True)
    return int(failed)


def run_check(check: Check, config: Config, limit_seconds: float | None) -> list[Line]:
    """The lines of one check; an error, or no end within the limit, becomes a FAIL line."""
    lines: list[Line] = []

    def run() -> None:
        try:
            lines.extend(check(config))
        except (UserError, DataError) as error:
            lines.append(("FAIL", str(error)))
        except (
            Exception
        ) as error:  # whatever a broken installation or a foreign server comes up with
            lines.append(
                (
                    "FAIL",
                    f"{type(error).__name__}: {mask_secrets(' '.join(str(error).split()))[:300]}",
                )
            )

    thread = threading.Thread(
        target=run, daemon=True
    )  # a check that hangs must not keep us from leaving
    thread.start()
    thread.join(limit_seconds)
    if thread.is_alive():
        return [
            *lines,
            ("FAIL", f"no answer in {limit_seconds} s: is the network, disk or server there?"),
        ]
    return lines


def _packages(config: Config) -> Iterator[Line]:
    """Versions against the project's pins, then the imports that the other checks need."""
    wrong = []
    for requirement in _pins(optuna=config.search.algorithm == "optuna"):
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = "missing"
        if version == "missing" or version not in requirement.specifier:
            wrong.append(f"{requirement.name} is {version}, needed: {requirement.specifier}")
    if wrong:
        yield "FAIL", f"{'; '.join(wrong)}: pip install -c deploy/constraints.txt -e ."
    for name in ("torch", "bitsandbytes", "transformers", "ray", "mlflow"):
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken CUDA library raises whatever it likes
            yield (
                "FAIL",
                f"{name} cannot be imported ({type(error).__name__}: {error}): install it anew",
            )
    yield "ok", f"Python {platform.python_version()}, Ray {importlib.metadata.version('ray')}"


def _pins(*, optuna: bool) -> list["Requirement"]:
    from packaging.requirements import Requirement

    project = Path(__file__).parents[2] / "pyproject.toml"
    if project.is_file():
        table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        return [
            *map(
                Requirement,
                table["dependencies"] + table["optional-dependencies"]["search"] * optuna,
            )
        ]
    found = [*map(Requirement, importlib.metadata.requires("svgscribe") or [])]
    extra = {"extra": "search" if optuna else ""}
    return [pin for pin in found if pin.marker is None or pin.marker.evaluate(extra)]


def _gpu(config: Config) -> Iterator[Line]:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        card = f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}"
        yield (
            "ok",
            f"{card}, {free / _GIB:.0f} of {total / _GIB:.0f} GiB free, CUDA {torch.version.cuda}",
        )
    elif torch.version.cuda is None and shutil.which("nvidia-smi"):
        yield (
            "FAIL",
            f"torch {torch.__version__} is a CPU build beside an NVIDIA driver: install a CUDA build",
        )
    elif config.scaling.use_gpu and "RAY_ADDRESS" not in os.environ:
        yield (
            "FAIL",
            "no GPU that torch can use: run on a machine with one, or set scaling.use_gpu=false",
        )
    else:
        yield "ok", f"none here; scaling.use_gpu={str(config.scaling.use_gpu).lower()}"


def _bitsandbytes(config: Config) -> Iterator[Line]:
    if config.quantization.kind == "none":
        yield "ok", "not used: quantization.kind=none"
        return
    error = _matmul_error(config.quantization)
    if error < 0.2:
        yield (
            "ok",
            f"{config.quantization.kind} product on this machine, relative error {error:.2f}",
        )
    else:
        yield (
            "FAIL",
            f"{config.quantization.kind} product is off by {error:.2f}: reinstall bitsandbytes",
        )


def _matmul_error(config: QuantizationConfig) -> float:
    """Relative error of one 4-bit product against fp32, on the GPU if there is one."""
    import torch
    from bitsandbytes.nn.modules import Linear4bit

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    layer: Any = Linear4bit(
        256, 64, bias=False, compute_dtype=torch.bfloat16, quant_type=config.kind,
        compress_statistics=config.double_quant,
    )  # fmt: skip
    x, exact = torch.randn(8, 256), layer.weight.detach().clone()
    product = layer.to(device)(x.to(device, torch.bfloat16)).detach().float().cpu()
    expected = x @ exact.T
    return float((product - expected).norm() / expected.norm())


def _storage(config: Config) -> Iterator[Line]:
    """A file is really written: a job finds out at its first checkpoint."""
    from pyarrow.fs import FileSystem

    folder = config.train.output_dir
    remote = "://" in folder
    existing = folder if remote else str(_existing(Path(folder)))
    filesystem, path = FileSystem.from_uri(join_uri(existing, f".doctor-{uuid.uuid4().hex}"))
    try:
        with filesystem.open_output_stream(path) as stream:
            stream.write(b"written by svgscribe doctor")
        filesystem.delete_file(path)
    except OSError as error:
        why = mask_secrets(str(error).splitlines()[0])
        yield (
            "FAIL",
            f"train.output_dir={mask_secrets(folder)} is not writable ({why}): choose another",
        )
        return
    yield "ok", f"train.output_dir={mask_secrets(folder)} is writable"
    if not remote:
        free = shutil.disk_usage(existing).free / _GIB
        needed = (
            2 if config.model.name == "tiny" else 20
        )  # checkpoints with their optimizer, and reports
        if free >= needed:
            yield "ok", f"{free:.0f} GiB free there"
        else:
            yield (
                "FAIL",
                f"{free:.1f} GiB free there, {needed} needed: make room or change train.output_dir",
            )


def _existing(folder: Path) -> Path:
    """The nearest folder above that is there: the job makes the rest."""
    return next(
        parent for parent in [folder.absolute(), *folder.absolute().parents] if parent.exists()
    )


def _shards(config: Config) -> Iterator[Line]:
    from data_pipeline.shards import open_shards

    shards = open_shards(config.data.shards)
    rows = f"{shards.num_records('train')} training and {shards.num_records('validation')} validation rows"
    yield "ok", f"{rows} in data.shards={mask_secrets(config.data.shards)}"


def _model(config: Config) -> Iterator[Line]:
    from app.gemma.base_model import resolve_model_source

    name, folder = config.model.name, Path(resolve_model_source(config.model.name))
    if (folder / "config.json").is_file():
        yield "ok", f"{name} is in {folder}"
    elif folder.is_dir() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        yield (
            "FAIL",
            f"model.name={name} is no model folder (no config.json): give one, a hub name, or tiny",
        )
    else:
        yield (
            "ok",
            f"{name} will be downloaded from the hub (HF_TOKEN of an account that accepted its terms)",
        )


def _tracking(config: Config) -> Iterator[Line]:
    check_tracking(config.tracking)
    yield "ok", f"tracking.uri={mask_secrets(str(config.tracking.uri))}"


def _ray(config: Config) -> Iterator[Line]:
    """Joining a cluster proves address, token and version: Ray refuses other ones."""
    from app.jobs.cluster import connect, describe_shortage, list_node_resources

    scaling = config.scaling
    asked = (
        scaling.num_workers,
        scaling.cpus_per_worker,
        scaling.use_gpu,
        config.data.cpus_per_task,
    )
    if os.environ.get("RAY_ADDRESS", "local") == "local":
        import torch
        from ray._private.utils import get_num_cpus

        yield "ok", "RAY_ADDRESS is not set: each command starts a private Ray on this machine"
        here = {"CPU": float(get_num_cpus()), "GPU": float(torch.cuda.device_count())}
        problem = describe_shortage([here], *asked)
    else:
        with connect() as cluster:
            yield (
                "ok",
                f"joined {cluster.address}, Ray {importlib.metadata.version('ray')} there as here",
            )
            yield _token(cluster.dashboard)
            problem = describe_shortage(list_node_resources(), *asked)
    if problem and scaling.wait_seconds:
        yield "warn", f"{problem}, or let the autoscaler help within {scaling.wait_seconds} s"
    elif problem:
        yield "FAIL", problem
    else:
        yield "ok", f"room for scaling.num_workers={scaling.num_workers} and a data task"


def _token(dashboard: str) -> Line:
    """Ask for the cluster's jobs as a stranger would."""
    try:
        urllib.request.urlopen(f"http://{dashboard}/api/jobs/", timeout=5).close()
    except OSError as error:
        if getattr(error, "code", None) in (401, 403):
            return "ok", f"strangers are refused at the dashboard {dashboard}"
        return "warn", f"cannot ask the dashboard {dashboard} whether it refuses strangers: {error}"
    danger = f"whoever reaches the dashboard {dashboard} runs code on the cluster (CVE-2023-48022)"
    return "warn", f"{danger}: start its nodes with RAY_AUTH_MODE=token"


_CHECKS: dict[str, tuple[Check, float | None]] = {
    "packages": (_packages, None),  # imports take their time on a busy machine, and end
    "gpu": (_gpu, 15),
    "bitsandbytes": (_bitsandbytes, 15),
    "storage": (_storage, 15),
    "shards": (_shards, 15),
    "model": (_model, None),
    "tracking": (_tracking, None),  # keeps tracking.timeout_seconds itself
    "ray": (_ray, 15),
}
