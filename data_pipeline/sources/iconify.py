"""Iconify format: JSON sets of icons and aliases, as in the npm package `@iconify/json`.

{"prefix", "icons": {name: {"body", …}}, "aliases": {name: {"parent", …}}, "width", "height"}; the
npm packages `@iconify-json/*` use the same format. The caption of an icon is its name.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.sources.files import SourceFile
from data_pipeline.sources.json_parser import load_json
from data_pipeline.sources.phosphor import derive_concept
from data_pipeline.sources.record import Record

# The first bytes of a file hold the prefix of a set and the beginning of its icons.
_HEAD_BYTES = 1 << 16
_DEFAULT_SIDE = 16
_BOX = ("left", "top", "width", "height")
# An alias may refer to an alias. A longer chain of parents counts as a circle.
_MAX_PARENTS = 10


class _UnusableIconError(Exception):
    """An icon or alias that is not a drawing; the message follows its name."""


def is_iconify(file: SourceFile) -> bool:
    """Return whether the beginning of the file looks like an Iconify set."""
    if not file.name.lower().endswith(".json"):
        return False
    head = file.read_head(_HEAD_BYTES)
    # The info.json of an Iconify package has a prefix too, but no icons.
    return b'"prefix"' in head and b'"icons"' in head


def read_iconify(file: SourceFile) -> Iterator[Record]:
    """Return the records of an Iconify set: every icon and every alias.

    The source of a record is the set's prefix. Icons of all sets that share the first word of their
    names are one concept. An alias without an icon, and an icon without a body, yields a record
    that cannot be read, with the reason. Raises DataError if the file is not an Iconify set.
    """
    icon_set = load_json(file)
    if not _is_icon_set(icon_set):
        raise DataError(
            f"{file.path} is not an Iconify set: expected an object with prefix, icons and perhaps "
            "aliases"
        )
    return _make_icon_records(icon_set)


def _is_icon_set(value: object) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("icons"), dict)
        and isinstance(value.get("aliases"), dict | None)
        and "prefix" in value
    )


def _make_icon_records(icon_set: Mapping[str, Any]) -> Iterator[Record]:
    icons, aliases = icon_set["icons"], icon_set.get("aliases") or {}
    prefix = str(icon_set["prefix"])
    default_box = {key: icon_set[key] for key in _BOX if key in icon_set}
    for name in [*icons, *aliases]:
        try:
            svg, unreadable = _make_svg(default_box | _resolve_alias(name, icons, aliases)), ""
        except _UnusableIconError as error:
            svg, unreadable = "", f"the icon {name!r} of the set {prefix!r} {error}"
        words = name.replace("_", "-").split("-")
        yield Record(
            id=f"{prefix}:{name}",
            svg=svg,
            caption=" ".join(words),
            source=prefix,
            concept=derive_concept(words[0].lower()),
            unreadable=unreadable,
        )


def _resolve_alias(
    name: str, icons: Mapping[str, Any], aliases: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the icon with the changes of its aliases.

    The size of an alias replaces that of its parent, rotations add up, and two flips cancel. Raises
    _UnusableIconError.
    """
    changes: dict[str, Any] = {}
    for _ in range(_MAX_PARENTS):
        entry = icons.get(name, aliases.get(name))
        if not isinstance(entry, dict):
            raise _UnusableIconError(f"needs {name!r}, which is not an object in the set")

        orientation = {
            "rotate": _get_rotation(entry) + _get_rotation(changes),
            "hFlip": bool(entry.get("hFlip")) != bool(changes.get("hFlip")),
            "vFlip": bool(entry.get("vFlip")) != bool(changes.get("vFlip")),
        }
        changes = entry | changes | orientation

        if name in icons:
            _require_usable(changes)
            return changes
        parent = entry.get("parent")
        if not isinstance(parent, str):
            raise _UnusableIconError(f"needs {name!r}, whose parent is {parent!r}, not a name")
        name = parent
    raise _UnusableIconError(f"has parents in a circle, or more than {_MAX_PARENTS}")


def _get_rotation(entry: Mapping[str, Any]) -> int:
    """Return the rotation in quarter turns."""
    rotation = entry.get("rotate", 0)
    return rotation if isinstance(rotation, int) else 0


def _require_usable(icon: Mapping[str, Any]) -> None:
    for key in _BOX:
        if not isinstance(icon.get(key, 0), int | float):
            raise _UnusableIconError(f"has the {key} {icon[key]!r}, not a number")
    if not isinstance(icon.get("body"), str):
        raise _UnusableIconError(f"has the body {icon.get('body')!r}, not a text")


def _make_svg(icon: Mapping[str, Any]) -> str:
    """Return the body in its viewBox, first flipped and then turned clockwise, as Iconify does."""
    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = icon.get("width", _DEFAULT_SIDE), icon.get("height", _DEFAULT_SIDE)
    body = icon["body"]

    num_turns = icon["rotate"] % 4
    rotations = (
        "",
        f"translate({height} 0) rotate(90)",
        f"translate({width} {height}) rotate(180)",
        f"translate(0 {width}) rotate(-90)",
    )
    moves = [
        rotations[num_turns],
        f"translate({width} 0) scale(-1 1)" if icon["hFlip"] else "",
        f"translate(0 {height}) scale(1 -1)" if icon["vFlip"] else "",
    ]
    if not any(moves):
        return _make_document(f"{left} {top} {width} {height}", body)

    if left or top:
        moves.append(f"translate({-left} {-top})")
    transform = " ".join(move for move in moves if move)
    sides = f"{height} {width}" if num_turns % 2 else f"{width} {height}"
    return _make_document(f"0 0 {sides}", f'<g transform="{transform}">{body}</g>')


def _make_document(view_box: str, body: str) -> str:
    xlink = ' xmlns:xlink="http://www.w3.org/1999/xlink"' if "xlink:" in body else ""
    return f'<svg xmlns="http://www.w3.org/2000/svg"{xlink} viewBox="{view_box}">{body}</svg>'
