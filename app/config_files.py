"""Files of configs: find them, read their YAML, and merge those that one `extends`."""

from pathlib import Path
from typing import Any

from app.errors import UserError
from app.yaml_text import parse_yaml
from data_pipeline.home import expand_home

CONFIGS = Path(__file__).parent / "configs"


def read_config_file(source: str | Path, children: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the sections of a file, merged over those of the file that it extends.

    `children` are the files that extend this one, the nearest last.
    """
    path = _find_file(source, children[-1].parent if children else Path())
    if path.resolve() in [child.resolve() for child in children]:
        circle = " extends ".join(map(str, [*children, path]))
        raise UserError(f"{circle}, a circle: remove one `extends`")

    # read it
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error}): save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): correct its rights") from None
    raw = parse_yaml(text, str(path))
    if not isinstance(raw, dict | None):
        raise UserError(
            f"{path} holds a {type(raw).__name__}, not sections: write them as `optim:`"
        )

    # merge
    raw = raw or {}
    parent = raw.pop("extends", None)
    if parent is None:
        return raw
    if not isinstance(parent, str):
        raise UserError(f"{path}: extends={parent!r} is not the name of one config")
    return _merge_dicts(read_config_file(parent, (*children, path)), raw)


def _find_file(source: str | Path, folder: Path) -> Path:
    """Return the file of a config: a path relative to the folder, or the name of a shipped one."""
    path = folder / expand_home(str(source))
    shipped = {file.stem: file for file in sorted(CONFIGS.glob("*.yaml"))}
    if path.is_file():
        return path
    if str(source) in shipped:
        return shipped[str(source)]
    where = f" in {folder}" if folder != Path() else ""
    raise UserError(
        f"config {str(source)!r} not found{where}: give a YAML file or one of the shipped "
        f"{', '.join(shipped)}"
    )


def _merge_dicts(parent: dict[str, Any], child: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of nested dicts in which the child's values replace the parent's."""
    merged = {**parent, **child}
    for key in parent.keys() & child.keys():
        if isinstance(parent[key], dict) and isinstance(child[key], dict):
            merged[key] = _merge_dicts(parent[key], child[key])
    return merged
