"""Iconify JSON sets → rows: every icon and every alias, its name its caption. Knows no SVG's inside.

The format is that of the npm packages `@iconify/json` and `@iconify-json/*`: {"prefix", "icons": {name: {"body", …}},
"aliases": {name: {"parent", …}}, "width", "height"}.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from data_pipeline.sources.phosphor import derive_concept
from data_pipeline.sources.record import Record

_SIDE = 16  # of an icon that says nothing
_BOX = ("left", "top", "width", "height")
_MAX_PARENTS = 10  # of an alias: Iconify allows an alias of an alias; a longer chain is a circle


def is_icon_set(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("icons"), dict) and "prefix" in value


def read_icon_set(icons: Mapping[str, Any]) -> Iterator[Record]:
    """The source is the set's prefix. Icons that share the first word of their name are one concept, in every set.

    An alias without an icon, and an icon without a body, is a row without a drawing, for quarantine.
    """
    aliases = icons.get("aliases") or {}
    for name in [*icons["icons"], *aliases]:
        icon = _resolve(name, icons["icons"], aliases)
        svg = "" if icon is None else _svg({key: icons[key] for key in _BOX if key in icons} | icon)
        words = name.replace("_", "-").split("-")
        prefix = str(icons["prefix"])
        yield Record(
            f"{prefix}:{name}", svg, " ".join(words), prefix, derive_concept(words[0].lower())
        )


def _resolve(
    name: str, icons: Mapping[str, Any], aliases: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The icon with what its aliases change: sides are replaced, turns added, flips undo each other."""
    changes: dict[str, Any] = {}
    for _ in range(_MAX_PARENTS):
        entry = icons.get(name, aliases.get(name))
        if not isinstance(entry, dict):
            return None
        turned = {
            "rotate": _turns(entry) + _turns(changes),
            "hFlip": bool(entry.get("hFlip")) != bool(changes.get("hFlip")),
            "vFlip": bool(entry.get("vFlip")) != bool(changes.get("vFlip")),
        }
        changes = entry | changes | turned
        if name in icons:
            return changes if _is_sound(changes) else None
        name = entry.get("parent", "")
    return None


def _turns(entry: Mapping[str, Any]) -> int:
    turns = entry.get("rotate", 0)
    return turns if isinstance(turns, int) else 0


def _is_sound(icon: Mapping[str, Any]) -> bool:
    numbers = (icon.get(key, 0) for key in _BOX)
    return isinstance(icon.get("body"), str) and all(
        isinstance(number, int | float) for number in numbers
    )


def _svg(icon: Mapping[str, Any]) -> str:
    """The body in its viewBox; flipped first and turned clockwise then, as Iconify does."""
    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = icon.get("width", _SIDE), icon.get("height", _SIDE)
    turns = icon["rotate"] % 4
    moves = [
        ("", f"translate({height} 0) rotate(90)", f"translate({width} {height}) rotate(180)",
         f"translate(0 {width}) rotate(-90)")[turns],
        f"translate({width} 0) scale(-1 1)" if icon["hFlip"] else "",
        f"translate(0 {height}) scale(1 -1)" if icon["vFlip"] else "",
        f"translate({-left} {-top})" if left or top else "",
    ]  # fmt: skip
    body = icon["body"]
    if not any(moves[:3]):
        return _document(f"{left} {top} {width} {height}", body)
    sides = f"{height} {width}" if turns % 2 else f"{width} {height}"
    transform = " ".join(move for move in moves if move)
    return _document(f"0 0 {sides}", f'<g transform="{transform}">{body}</g>')


def _document(view_box: str, body: str) -> str:
    xlink = ' xmlns:xlink="http://www.w3.org/1999/xlink"' if "xlink:" in body else ""
    return f'<svg xmlns="http://www.w3.org/2000/svg"{xlink} viewBox="{view_box}">{body}</svg>'
