"""Path data → relative commands in whole units, by the real grammar. Knows no element and no XML.

The bottleneck of the whole pipeline, so one plain loop: each segment is read, made absolute, scaled, rounded and
written before the next is looked at.
"""

import re
from collections.abc import Sequence
from typing import Any

from data_pipeline.svg.arc import arc_form
from data_pipeline.svg.numbers import MAGIC, NUMBER, PathError, Readings, Texts, parse_numbers

_COMMANDS = {letter: (letter.lower(), letter.islower()) for letter in "MmZzLlHhVvCcSsQqTtAa"}
_TOKEN = re.compile(rf"(?>{NUMBER.pattern})|[^\s,]")  # the last: a letter, or what cannot be
_COMMON_TOKEN = re.compile(
    r"[-0-9][0-9]*+\.?+[0-9]*+|\.[0-9]++|[^\s,]"
)  # the same faster, where no exponent or + is
_FLAGS = ("0", "1")
_DOT = "h.1-.1"  # there and back, so that what follows stays where it is

# How far a shorter form may move a curve (output units). A mirrored control point (`s`, `t`) adds up the rounding
# of three points: it is written out.
SLACK = 0.75
FLAT = SLACK * SLACK

_READINGS = Readings(dict.fromkeys(_COMMANDS))
_TEXTS = [Texts(decimals, " ") for decimals in range(6)]
_HEADS = [Texts(decimals, "") for decimals in range(6)]  # after a letter


def scale_path(
    d: str,
    scale: float,
    origin: tuple[float, float] = (0.0, 0.0),
    decimals: int = 0,
    *,
    measured: bool = False,
) -> tuple[str, float]:
    """`M0,0H24V12z`, scale 2 → `m0 0h48v24z`: (point - origin) * scale, rounded. What is written are differences of
    rounded absolute points, so that rounding never accumulates.

    If `measured`, also how much rounding moves the outline: per segment, mean distance of its ends from where they
    are written times length, in squares of the last decimal's unit. Raises PathError.
    """
    words = (_TOKEN if "e" in d or "E" in d or "+" in d else _COMMON_TOKEN).findall(d)
    if not d.isascii() or (words and words[0] not in "Mm"):
        raise PathError(f"path data {d.strip()[:40]!r}")
    values = tuple(map(_READINGS.__getitem__, words))
    k, texts, heads = scale * 10**decimals, _TEXTS[decimals], _HEADS[decimals]
    try:
        try:
            return _rewrite(
                words, values, k, -origin[0], -origin[1], texts.known, heads.known, measured
            )
        except KeyError:  # a number that was never written before
            return _rewrite(words, values, k, -origin[0], -origin[1], texts, heads, measured)
    except (
        TypeError,
        ValueError,
        IndexError,
    ):  # a letter (None) or the end where a number should be
        raise PathError(f"too few or too many numbers in path data {d.strip()[:40]!r}") from None


def _rewrite(
    words: list[str], values: Sequence[Any], k: float, base_x: float, base_y: float,
    texts: dict[float, str], heads: dict[float, str], measured: bool,
) -> tuple[str, float]:  # fmt: skip
    """The loop. Of a point, x and y are input units and absolute; qx and qy are rounded output units (plus MAGIC,
    which goes away in differences; the radii qrx and qry are without); px and py are those of the point before."""
    parts: list[str] = []
    letter = "z"  # last one written; the next of the same kind leaves it out
    num_before, vanished = (
        0,
        False,
    )  # parts before this subpath's segments; was one of these rounded away?
    x, y = start_x, start_y = base_x, base_y
    px, py = start_px, start_py = MAGIC, MAGIC
    mirror, mirror_x, mirror_y = (
        "",
        0.0,
        0.0,
    )  # the last control point read: `s` and `t` mean its mirror image
    control_x = control_y = 0.0  # the last one written
    slip = last_u = last_v = last_slip_u = last_slip_v = 0.0
    kind, relative = "", False
    n, end = 0, len(words)
    after: list[Any] = []  # what is read when the curves that stand for an arc are written
    while True:
        if n == end:
            if not after:
                break
            words, values, n, end, kind, relative, base_x, base_y, x, y = after
            after, mirror = [], ""
            continue
        if values[n] is None:
            kind, relative = _COMMANDS[words[n]]
            n += 1
        if relative:
            from_x, from_y = x, y
        else:
            from_x, from_y = base_x, base_y
        form = "l"
        if kind == "c" or kind == "s":
            if kind == "c":
                x1, y1, x2, y2, x, y = values[n : n + 6]
                n += 6
                d1x, d1y = (from_x + x1) * k + MAGIC - px, (from_y + y1) * k + MAGIC - py
                form = "c"
            else:
                x2, y2, x_, y_ = values[n : n + 4]
                n += 4
                x1, y1 = (2 * x - mirror_x, 2 * y - mirror_y) if mirror == "c" else (x, y)
                q1x, q1y, form = _smooth(
                    x1 * k, y1 * k, px, py, control_x, control_y, letter in "cs", "sc"
                )
                d1x, d1y = q1x - px, q1y - py
                x, y = x_, y_
            mirror, mirror_x, mirror_y = "c", from_x + x2, from_y + y2
            x, y = from_x + x, from_y + y
            q2x, q2y = mirror_x * k + MAGIC, mirror_y * k + MAGIC
            qx, qy = x * k + MAGIC, y * k + MAGIC
            dx, dy = qx - px, qy - py
            d2x, d2y = q2x - px, q2y - py
            off = d1x * dy - d1y * dx  # most curves are not flat, and this says so without a call
            if off * off <= FLAT * (dx * dx + dy * dy) and _is_flat(d1x, d1y, d2x, d2y, dx, dy):
                form = "l"
            else:
                if form == letter:
                    if form == "c":
                        parts.append(
                            f"{texts[d1x]}{texts[d1y]}{texts[d2x]}{texts[d2y]}{texts[dx]}{texts[dy]}"
                        )
                    else:
                        parts.append(f"{texts[d2x]}{texts[d2y]}{texts[dx]}{texts[dy]}")
                elif form == "c":
                    parts.append(
                        f"c{heads[d1x]}{texts[d1y]}{texts[d2x]}{texts[d2y]}{texts[dx]}{texts[dy]}"
                    )
                else:
                    parts.append(f"s{heads[d2x]}{texts[d2y]}{texts[dx]}{texts[dy]}")
                letter = form
                control_x, control_y = q2x, q2y
        elif kind == "l":
            x, y = from_x + values[n], from_y + values[n + 1]
            n += 2
            qx, qy = x * k + MAGIC, y * k + MAGIC
            mirror = ""
        elif kind == "h":
            x = from_x + values[n]
            n += 1
            qx, qy = x * k + MAGIC, y * k + MAGIC
            mirror = ""
        elif kind == "v":
            y = from_y + values[n]
            n += 1
            qx, qy = x * k + MAGIC, y * k + MAGIC
            mirror = ""
        elif kind == "a":
            if words[n + 3] in _FLAGS and words[n + 4] in _FLAGS:
                rx, ry, phi, large, sweep, dx, dy = values[n : n + 7]
                n += 7
            else:
                rx, ry, phi = values[n : n + 3]
                large, sweep, dx, dy, n = _glued_flags(words, values, n + 3)
            x0, y0 = x, y
            x, y = from_x + dx, from_y + dy
            qx, qy = x * k + MAGIC, y * k + MAGIC
            mirror = ""
            dx, dy = qx - px, qy - py
            rx, ry = abs(rx), abs(ry)
            qrx, qry = rx * k + MAGIC - MAGIC, ry * k + MAGIC - MAGIC
            form, found = arc_form(
                x0, y0, x, y, rx, ry, phi, large, sweep, k, px - MAGIC, py - MAGIC, dx, dy, qrx, qry
            )
            if form == "a":
                if letter == "a":
                    parts.append(f"{texts[qrx]}{texts[qry]}{found}{texts[dx]}{texts[dy]}")
                else:
                    parts.append(f"a{heads[qrx]}{texts[qry]}{found}{texts[dx]}{texts[dy]}")
                    letter = "a"
            elif form == "c":
                after = [words, values, n, end, kind, relative, base_x, base_y, x, y]
                words, values, n, end, kind, relative, base_x, base_y = (
                    [],
                    found,
                    0,
                    len(found),
                    "c",
                    False,
                    0.0,
                    0.0,
                )
                x, y = x0, y0
                continue
        elif kind == "m":
            if vanished and len(parts) == num_before:
                parts.append(_DOT)
            vanished = False
            x, y = start_x, start_y = from_x + values[n], from_y + values[n + 1]
            n += 2
            qx, qy = start_px, start_py = x * k + MAGIC, y * k + MAGIC
            parts.append(f"m{heads[qx - px]}{texts[qy - py]}")
            num_before = len(parts)
            form, kind, letter, mirror = "m", "l", "l", ""
        elif kind == "q" or kind == "t":
            if kind == "q":
                x1, y1, x, y = values[n : n + 4]
                n += 4
                mirror_x, mirror_y = from_x + x1, from_y + y1
                q1x, q1y, form = mirror_x * k + MAGIC, mirror_y * k + MAGIC, "q"
                x, y = from_x + x, from_y + y
            else:
                mirror_x, mirror_y = (
                    (2 * x - mirror_x, 2 * y - mirror_y) if mirror == "q" else (x, y)
                )
                q1x, q1y, form = _smooth(
                    mirror_x * k, mirror_y * k, px, py, control_x, control_y, letter in "qt", "tq"
                )
                x, y = from_x + values[n], from_y + values[n + 1]
                n += 2
            mirror = "q"
            qx, qy = x * k + MAGIC, y * k + MAGIC
            first = texts
            if form != letter:
                parts.append(form)
                letter, first = form, heads
            if form == "q":
                parts.append(f"{first[q1x - px]}{texts[q1y - py]}")
                first = texts
            parts.append(f"{first[qx - px]}{texts[qy - py]}")
            control_x, control_y = q1x, q1y
        elif kind == "z":
            if vanished and len(parts) == num_before:
                parts.append(_DOT)
                letter = "h"
            if letter != "z":
                parts.append("z")
                letter = "z"
            num_before, vanished = len(parts), False
            x, y, px, py = start_x, start_y, start_px, start_py
            kind = mirror = ""
            continue
        else:
            raise PathError("numbers after z")
        if measured:
            u, v = x * k, y * k
            slip_u, slip_v = abs(u - (qx - MAGIC)), abs(v - (qy - MAGIC))
            if form != "m":
                slip += (slip_u + last_slip_u) * abs(v - last_v) + (slip_v + last_slip_v) * abs(
                    u - last_u
                )
            last_u, last_v, last_slip_u, last_slip_v = u, v, slip_u, slip_v
        if form == "l":
            dx, dy = qx - px, qy - py
            if dx and dy:
                parts.append(
                    f"{texts[dx]}{texts[dy]}" if letter == "l" else f"l{heads[dx]}{texts[dy]}"
                )
                letter = "l"
            elif dx:
                parts.append(texts[dx] if letter == "h" else f"h{heads[dx]}")
                letter = "h"
            elif dy:
                parts.append(texts[dy] if letter == "v" else f"v{heads[dy]}")
                letter = "v"
            else:
                vanished = True
                continue
        px, py = qx, qy
    if vanished and len(parts) == num_before:
        parts.append(_DOT)
    return "".join(parts), slip / 2


def _glued_flags(
    words: list[str], values: Sequence[Any], n: int
) -> tuple[float, float, float, float, int]:
    """Flags are single digits and may touch what follows: `015 5` is 0 1 5 5. Two flags, x, y, and where they end."""
    found: list[Any] = []
    rest = ""
    for _ in range(2):
        if not rest:
            rest = words[n]
            n += 1
        if rest[0] not in _FLAGS:
            raise PathError(f"arc flag {rest[:40]!r}")
        found.append(float(rest[0]))
        rest = rest[1:]
    if rest:
        found.append(_READINGS[rest])
    numbers = [*found, *values[n : n + 4 - len(found)]]
    return numbers[0], numbers[1], numbers[2], numbers[3], n + 4 - len(found)


def scale_points(
    text: str,
    scale: float,
    origin: tuple[float, float] = (0.0, 0.0),
    decimals: int = 0,
    *,
    measured: bool = False,
) -> tuple[str, float]:
    """`1,2 3,4 5` → `1 2 3 4`: the absolute form that polygons have, and the slip as of `scale_path`."""
    numbers = parse_numbers(text)
    units = scale * 10**decimals
    scaled = [
        (number - origin[n % 2]) * units
        for n, number in enumerate(numbers[: len(numbers) // 2 * 2])
    ]
    rounded = [number + MAGIC - MAGIC for number in scaled]
    slip = 0.0
    if measured:
        slips = [abs(a - b) for a, b in zip(scaled, rounded, strict=True)]
        for n in range(2, len(scaled), 2):
            slip += (slips[n] + slips[n - 2]) * abs(scaled[n + 1] - scaled[n - 1])
            slip += (slips[n + 1] + slips[n - 1]) * abs(scaled[n] - scaled[n - 2])
    texts = _TEXTS[decimals]
    return "".join(
        [texts.known.get(number) or texts[number] for number in rounded]
    ).lstrip(), slip / 2


def _smooth(
    x1: float,
    y1: float,
    px: float,
    py: float,
    control_x: float,
    control_y: float,
    mirrors: bool,
    kinds: str,
) -> tuple[float, float, str]:
    """The rounded control point, and whether a reader who mirrors what was written finds it (`s`) or not (`c`)."""
    seen_x, seen_y = (2 * px - control_x, 2 * py - control_y) if mirrors else (px, py)
    if abs(seen_x - MAGIC - x1) <= SLACK and abs(seen_y - MAGIC - y1) <= SLACK:
        return seen_x, seen_y, kinds[0]
    return x1 + MAGIC, y1 + MAGIC, kinds[1]


def _is_flat(x1: float, y1: float, x2: float, y2: float, dx: float, dy: float) -> bool:
    """Is the curve from (0, 0) nowhere farther than three quarters of SLACK from its chord? Then a line will do."""
    length = dx * dx + dy * dy
    if not length:
        return not (x1 or y1 or x2 or y2)
    off_1, off_2 = x1 * dy - y1 * dx, x2 * dy - y2 * dx  # times the length of the chord
    slack = FLAT * length
    if off_1 * off_1 > slack or off_2 * off_2 > slack:
        return False
    return 0 <= x1 * dx + y1 * dy <= length and 0 <= x2 * dx + y2 * dy <= length
