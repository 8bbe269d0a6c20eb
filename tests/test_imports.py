"""Allowed imports between packages, read from the source, so that lazy imports count too."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [
    file
    for package in ("app", "data_pipeline", "tune")
    for file in sorted((ROOT / package).rglob("*.py"))
]
TUNE_ON_RAY = (
    "search",
    "search_algorithm",
    "tpe",
    "schedule",
    "pause",
    "population",
    "budget",
    "numbered_trials",
    "progress",
    "warm",
)
TORCH_ONLY = ("app.training", "app.gemma", "app.memory_plan", "app.speed_plan", "app.evaluation")


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{file}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def name_of(file):
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def is_in(module, package):
    return module == package or module.startswith(f"{package}.")


def importers(imported, *allowed):
    """The imports of a package or module outside the allowed rooms."""
    return [
        f"{name_of(file)} imports {module}"
        for file in FILES
        for module in imports(file)
        if is_in(module, imported) and not any(is_in(name_of(file), room) for room in allowed)
    ]


def module_graph():
    """Every file of ours, with the files of ours that it imports."""
    names = {name_of(file) for file in FILES}
    graph = {}
    for file in FILES:
        graph[name_of(file)] = targets = set()
        for module in imports(file):
            while module and module not in names:
                module = module.rpartition(".")[0]
            if module and module != name_of(file):
                targets.add(module)
    return graph


def package_of(module):
    """`app.training.loop` → `app.training`; a file directly in `app` is its own package."""
    parts = module.split(".")
    is_package = (ROOT / Path(*parts[:2])).is_dir()
    return ".".join(parts[:2]) if is_package else module


def package_graph():
    graph = {}
    for module, targets in module_graph().items():
        packages = graph.setdefault(package_of(module), set())
        packages |= {package_of(target) for target in targets} - {package_of(module)}
    return graph


def find_circle(graph):
    done, path = set(), []

    def visit(name):
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return None
        path.append(name)
        for target in sorted(graph[name]):
            if circle := visit(target):
                return circle
        done.add(path.pop())
        return None

    return next(filter(None, map(visit, sorted(graph))), None)


def test_the_leaves_import_neither_app_nor_each_other():
    assert importers("app", "app") == []
    assert importers("data_pipeline", "data_pipeline", "app") == []
    assert importers("tune", "tune", "app") == []


def test_each_library_is_imported_in_its_own_room_only():
    stream = "data_pipeline.stream.ray_dataset"
    assert importers("mlflow", "app.tracking") == []
    tune = tuple(f"tune.{name}" for name in TUNE_ON_RAY)
    assert importers("ray", "app.jobs", *tune, stream) == []
    assert importers("ray.tune", *tune, "app.jobs.train") == []
    assert importers("ray.train", "app.jobs", stream) == []
    rooms = ("app.jobs.worker_job", "app.jobs.evaluation_actors", stream)
    assert importers("ray.data", *rooms) == []
    assert importers("xml", "data_pipeline.svg.read") == importers("lxml") == []
    assert importers("torch", "app.jobs", "app.lazy_compile", *TORCH_ONLY) == []


@pytest.mark.parametrize("room", TORCH_ONLY)
def test_rooms_below_jobs_see_neither_ray_nor_mlflow_nor_the_root_config(room):
    for file in FILES:
        if is_in(name_of(file), room):
            found = [
                module
                for module in imports(file)
                if any(
                    is_in(module, forbidden)
                    for forbidden in ("ray", "mlflow", "app.config", "app.jobs", "app.tracking")
                )
            ]
            assert found == [], file


def test_only_jobs_and_the_command_line_import_jobs():
    assert importers("app.jobs", "app.jobs", "app.__main__") == []
    assert importers("app.config", "app.jobs", "app.__main__") == []


def test_inside_the_data_pipeline_records_flow_one_way():
    pipeline = "data_pipeline"
    readers = (f"{pipeline}.prepare", "app.gemma", "app.evaluation.facts", "app.jobs")
    assert importers(f"{pipeline}.svg", f"{pipeline}.svg", *readers) == []
    assert (
        importers(
            f"{pipeline}.sources", *(f"{pipeline}.{n}" for n in ("sources", "prepare")), "app"
        )
        == []
    )
    assert importers(f"{pipeline}.stream", f"{pipeline}.stream", "app") == []
    assert importers(f"{pipeline}.prepare", f"{pipeline}.prepare", "app") == []
    assert (
        importers(f"{pipeline}.shards", *(f"{pipeline}.{n}" for n in ("prepare", "stream")), "app")
        == []
    )


def test_our_tune_is_never_hidden_by_rays():
    for file in [*FILES, *(ROOT / "tests").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        assert "ray.tune" not in [
            f"{node.module}.{alias.name}"
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.ImportFrom) and node.module == "ray"
            for alias in node.names
        ], file


def test_no_circle_between_files():
    assert find_circle(module_graph()) is None


def test_no_circle_between_packages():
    assert find_circle(package_graph()) is None


def test_a_circle_is_found():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}
    assert find_circle(graph) == ["b", "c", "b"]


def test_no_test_imports_another_test():
    for file in (ROOT / "tests").glob("*.py"):
        assert not [module for module in imports(file) if module.startswith("tests.test_")], file


def list_loaded(modules: str, names: tuple[str, ...]) -> str:
    """Return the names among the modules of a new Python that has imported `modules`."""
    code = f"import sys, {modules}; print([n for n in {names!r} if n in sys.modules])"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.parametrize(
    "section",
    ["app.tracking", "app.training", "app.gemma", "app.evaluation", "data_pipeline", "tune"],
)
def test_a_config_section_loads_no_heavy_library(section):
    heavy = ("torch", "transformers", "ray", "mlflow", "sqlite3", "pyarrow", "numpy")
    assert list_loaded(f"{section}.config", heavy) == "[]"


def test_the_parts_that_ray_trains_controller_unpickles_load_no_model_library():
    heavy = ("transformers", "peft", "bitsandbytes", "mlflow")
    assert list_loaded("app.jobs.worker_job, app.jobs.failures", heavy) == "[]"


def test_bitsandbytes_is_imported_without_the_compiler_and_compiles_at_the_first_call():
    code = """
import sys, torch
torch.compile = lambda function, **options: compiled.append((function, options)) or function
compiled, compile_ = [], torch.compile
import app, peft
from bitsandbytes.backends.default import ops
assert ("torch._inductor.compile_fx" in sys.modules, compiled) == (False, [])
assert torch.compile is compile_
code = torch.arange(16.0)
packed, ones = torch.tensor([0x12, 0x34], dtype=torch.uint8), torch.ones(1)
for _ in range(2):
    found = ops._dequantize_4bit_compute(packed, ones, code, 4, (1, 4), torch.float32)
    assert found.tolist() == [[1.0, 2.0, 3.0, 4.0]]
assert [options for _, options in compiled] == [{"dynamic": False}]
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
