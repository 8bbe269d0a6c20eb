"""The shipped documents: each command is parsed; each named file, link and setting exists."""

import ast
import re
import shlex
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.arguments import parse_arguments
from app.config import Config, load_config, validate_values
from app.config_files import CONFIGS
from app.errors import UserError
from app.gemma.config import QuantizationConfig
from data_pipeline.config import PrepareConfig

ROOT = Path(__file__).parent.parent
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
ROOMS = ("app", "data_pipeline", "tune", "tests", "benchmarks", "docs", "deploy", ".ci", ".github")
SECTIONS = "|".join(Config.model_fields)

FENCED_BLOCK = re.compile(r"^```\w*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
CODE_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LINK = re.compile(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
COMMAND = re.compile(r"python -m app\b(.*)")
MAKE_TARGET = re.compile(r"\bmake ([a-z][\w-]*)")
BENCHMARK = re.compile(r"python -m benchmarks\.(\w+)")
SETTING = re.compile(rf"(?<![\w./-])({SECTIONS})\.([a-z_]\w*)((?:\.\w+)*)(?:=([^\s,;'\"]+))?")
TEST_FILE = re.compile(r"\btest_\w+\.py\b")
PYTHON_FILE = re.compile(r"(?<![\w*])[\w./-]*\w\.py\b")
DEFINITION = re.compile(r"([\w/]+\.py):(\w+)")
REPOSITORY_PATH = re.compile(rf"(?:{'|'.join(map(re.escape, ROOMS))})/[\w./-]*")
ROOT_FILE = re.compile(r"[\w.-]+\.(?:md|toml|yaml)|Makefile|LICENSE")

MINIMUM_COUNTS = {
    "command": 18,
    "make target": 14,
    "benchmark": 9,
    "setting": 45,
    "setting with a value": 22,
    "link": 45,
    "path": 80,
    "python file": 90,
    "test file": 30,
    "definition": 33,
}
"""Lower bounds of the checked items of each kind; a broken pattern finds fewer."""


@dataclass
class Findings:
    """Checked items by kind, and one sentence for each item that is wrong."""

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def check(self, kind: str, item: str, problem: str | None) -> None:
        self.counts[kind] += 1
        if problem:
            self.problems.append(f"{kind} {item!r}: {problem}")


def check_document(text: str, folder: Path) -> Findings:
    """Check all that a document names; its relative links start at `folder`."""
    findings = Findings()
    lines, spans = extract_code(text)
    prose = FENCED_BLOCK.sub("", text)

    for code in lines + spans:
        check_commands(code, findings)
        check_settings(code, findings)
        check_files(code, findings)
    for span in spans:
        check_path(span, findings)
    for first, second in LINK.findall(prose):
        check_link(first or second, text, folder, findings)
    return findings


def extract_code(text: str) -> tuple[list[str], list[str]]:
    """Return the lines of fenced blocks (continued lines joined) and the inline code spans."""
    blocks = FENCED_BLOCK.findall(text)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    spans = [" ".join(span.split()) for span in CODE_SPAN.findall(FENCED_BLOCK.sub("", text))]
    return lines, spans


def check_commands(code: str, findings: Findings) -> None:
    for arguments in COMMAND.findall(code):
        findings.check("command", code, explain_command(arguments))
    for target in MAKE_TARGET.findall(code):
        exists = re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        findings.check("make target", target, None if exists else "not in the Makefile")
    for module in BENCHMARK.findall(code):
        exists = (ROOT / "benchmarks" / f"{module}.py").is_file()
        findings.check("benchmark", module, None if exists else "no such module")


def explain_command(text: str) -> str | None:
    """Return the reason why `python -m app` refuses these arguments; None if it takes them.

    `[optional]` arguments are given, and `…` and `key=value` are left out. CONFIG and NAME stand
    for a shipped config. A command without any argument is a mention of it: its name must exist.
    """
    words = [word.strip("[]") for word in shlex.split(text, comments=True)]
    words = [word for word in words if word and "…" not in word and word != "key=value"]
    words = ["demo" if word in {"CONFIG", "NAME"} else word for word in words]
    if len(words) == 1:
        words.append("--help")
    try:
        arguments = parse_arguments(words)
    except SystemExit as stop:
        return "the parser refuses it" if stop.code else None
    try:
        validate_arguments(vars(arguments))
    except UserError as error:
        return str(error)
    return None


def validate_arguments(values: dict[str, Any]) -> None:
    """Load the config of a parsed command, or validate the arguments that are themselves one."""
    if values.get("config") is not None:
        is_path = "/" in values["config"]
        source = ROOT / values["config"] if is_path else values["config"]
        load_config(source, values["overrides"])
    for model in (PrepareConfig, QuantizationConfig):
        if values.keys() >= model.model_fields.keys():
            validate_values(model, {name: values[name] for name in model.model_fields})


def check_settings(code: str, findings: Findings) -> None:
    for section, name, rest, value in SETTING.findall(code):
        if name in {"py", "yaml", "md"}:
            continue
        key = f"{section}.{name}"
        fields = Config.model_fields[section].annotation.model_fields
        findings.check("setting", key, None if name in fields else "no such setting")
        if value and "…" not in value and name in fields:
            pair = f"{key}{rest}={value}"
            findings.check("setting with a value", pair, explain_setting(pair))


def explain_setting(pair: str) -> str | None:
    try:
        load_config(None, [pair])
    except UserError as error:
        return str(error)
    return None


def check_files(code: str, findings: Findings) -> None:
    for name in PYTHON_FILE.findall(code):
        exists = any(f"/{path}".endswith(f"/{name}") for path in list_files())
        findings.check("python file", name, None if exists else "no such file")
    for name in TEST_FILE.findall(code):
        exists = (ROOT / "tests" / name).is_file()
        findings.check("test file", name, None if exists else "no such test file")
    for path, name in DEFINITION.findall(code):
        findings.check("definition", f"{path}:{name}", explain_definition(ROOT / path, name))


@cache
def list_files() -> list[str]:
    files = [file for room in ROOMS for file in (ROOT / room).rglob("*") if file.is_file()]
    return [file.relative_to(ROOT).as_posix() for file in files]


def explain_definition(file: Path, name: str) -> str | None:
    if not file.is_file():
        return "no such file"
    nodes = ast.parse(file.read_text()).body
    defined = {getattr(node, "name", None) for node in nodes}
    return None if name in defined else "not defined in this file"


def check_path(span: str, findings: Findings) -> None:
    path = span.partition(":")[0]
    if REPOSITORY_PATH.fullmatch(path) or ROOT_FILE.fullmatch(path):
        exists = (ROOT / path).exists() or (ROOT / "docs" / path).exists()
        findings.check("path", path, None if exists else "no such file or folder")


def check_link(target: str, text: str, folder: Path, findings: Findings) -> None:
    if re.match(r"https?:", target):
        return
    path, _, anchor = target.partition("#")
    file = folder / path if path else None
    problem = None
    if file is not None and not file.exists():
        problem = "no such file"
    elif anchor and anchor not in list_anchors(text if file is None else file.read_text()):
        problem = "no such heading"
    findings.check("link", target, problem)


def list_anchors(text: str) -> set[str]:
    """Return the anchors of a Markdown document's headings, as the forge builds them."""
    headings = [heading.lower() for heading in HEADING.findall(FENCED_BLOCK.sub("", text))]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("file", DOCS, ids=lambda file: file.name)
def test_all_that_a_document_names_exists(file):
    assert check_document(file.read_text(), file.parent).problems == []


def test_the_patterns_find_enough_of_each_kind():
    counts = sum((check_document(file.read_text(), file.parent).counts for file in DOCS), Counter())
    short = {kind: counts[kind] for kind, least in MINIMUM_COUNTS.items() if counts[kind] < least}
    assert short == {}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("`train.accumulation`", "setting 'train.accumulation': no such setting"),
        ("`optim.learning_rate=fast`", "setting with a value 'optim.learning_rate=fast': optim"),
        ("`app/training/driver.py`", "python file 'app/training/driver.py': no such file"),
        ("`docs/absent/`", "path 'docs/absent/': no such file or folder"),
        ("see `svg_path.py`", "python file 'svg_path.py': no such file"),
        ("`test_absent.py`", "test file 'test_absent.py': no such test file"),
        ("`app/jobs/train.py:absent_job`", "definition 'app/jobs/train.py:absent_job': not"),
        ("[a](absent.md)", "link 'absent.md': no such file"),
        ("[a](README.md#absent)", "link 'README.md#absent': no such heading"),
        ("`make absent`", "make target 'absent': not in the Makefile"),
        ("`python -m benchmarks.absent`", "benchmark 'absent': no such module"),
        ("`python -m app absent`", "command 'python -m app absent': the parser refuses it"),
        ("`python -m app train absent x.y=1`", "config 'absent' not found"),
        (
            "```\npython -m app train demo \\\n  train.window=1\n```",
            "train.window is not a setting",
        ),
        ("```\npython -m app prepare a --out b --captions none\n```", "captions='none'"),
    ],
)
def test_the_checker_finds_a_wrong_name(text, problem):
    problems = check_document(text, ROOT).problems
    assert any(problem in found for found in problems), problems


def test_the_checker_accepts_right_names():
    text = (
        "`train.eval_steps`, `optim.kind=adamw_8bit`, `app/jobs/train.py:train_job`, "
        "`svg/path.py`, [a](README.md), `make test`, "
        "`python -m app plan CONFIG [key=value …] [--gpu 24GiB …]`"
    )
    assert check_document(text, ROOT).problems == []


def test_every_shipped_config_is_listed_for_the_user():
    listed = set(re.findall(r"app/configs/([\w-]+\.yaml)", (ROOT / "docs/usage.md").read_text()))
    assert listed == {file.name for file in CONFIGS.glob("*.yaml")}


def test_the_hosted_workflow_runs_the_same_script_as_a_person():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    [job] = workflow["jobs"].values()
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML 1.1 reads the key `on` as true
    assert ".ci/run" in [step.get("run") for step in job["steps"]]
    assert job["runs-on"] == "ubuntu-latest"
    assert job["timeout-minutes"] == 60
    assert job["env"]["PIP_EXTRA_INDEX_URL"] == "https://download.pytorch.org/whl/cpu"
    versions = [step.get("with", {}).get("python-version") for step in job["steps"]]
    assert "3.11" in versions
