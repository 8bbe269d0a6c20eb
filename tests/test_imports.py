"""The arrows of the house: who may import whom. Read from the source, so that a lazy import counts too."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILES = [
    file
    for package in ("app", "data_pipeline", "tune")
    for file in sorted((ROOT / package).rglob("*.py"))
]


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{file}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def name_of(file):
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def owners(package, *allowed):
    """Files that import a third-party package, outside the allowed rooms."""
    return [
        f"{name_of(file)} imports {module}"
        for file in FILES
        for module in imports(file)
        if (module == package or module.startswith(f"{package}."))
        and not name_of(file).startswith(allowed)
    ]


def test_the_leaves_import_neither_app_nor_each_other():
    for leaf, others in (("data_pipeline", ("app", "tune")), ("tune", ("app", "data_pipeline"))):
        for file in FILES:
            if name_of(file).split(".")[0] == leaf:
                assert not [m for m in imports(file) if m.split(".")[0] in others], file


def test_each_library_is_known_in_its_own_room_only():
    assert owners("mlflow", "app.tracking") == []
    assert owners("ray.tune", "tune.search", "app.jobs.train") == []
    assert owners("ray.train", "app.jobs", "data_pipeline.stream.ray_dataset") == []
    assert owners("ray.data", "data_pipeline.stream.ray_dataset", "app.jobs.train") == []
    assert owners("xml", "data_pipeline.svg.read") == owners("lxml", "benchmarks") == []
    for room in (
        "app.gemma",
        "app.training.loop",
        "app.training.step",
        "app.training.optim",
        "app.training.checkpoint",
    ):
        for file in FILES:
            if name_of(file).startswith(room):
                assert not [m for m in imports(file) if m.split(".")[0] in ("ray", "mlflow")], file


def test_our_tune_is_never_hidden_by_rays():
    for file in [*FILES, *(ROOT / "tests").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        assert "ray.tune" not in [
            f"{node.module}.{alias.name}"
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.ImportFrom) and node.module == "ray"
            for alias in node.names
        ], file


def test_no_circle_between_files():
    names = {name_of(file) for file in FILES}
    graph = {}
    for file in FILES:
        targets = set()
        for module in imports(file):
            while module and module not in names:
                module = module.rpartition(".")[0]
            if module and module != name_of(file):
                targets.add(module)
        graph[name_of(file)] = targets
    done, path = set(), []

    def visit(name):
        assert name not in path, " → ".join([*path[path.index(name) :], name])
        if name in done:
            return
        path.append(name)
        for target in sorted(graph[name]):
            visit(target)
        path.pop()
        done.add(name)

    for name in sorted(graph):
        visit(name)
