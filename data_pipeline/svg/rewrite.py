"""Rewriting of path data as relative commands with rounded numbers, by the grammar of SVG 1.1.

This is the bottleneck of the pipeline. Therefore one plain loop reads, scales, rounds and writes
each segment before it reads the next.
"""

from collections.abc import Sequence
from typing import Any

from data_pipeline.svg.arc import choose_arc_form
from data_pipeline.svg.curves import MAX_SQUARED_SHIFT, choose_smooth_form, is_flat
from data_pipeline.svg.errors import PathError
from data_pipeline.svg.numbers import MAGIC
from data_pipeline.svg.tokens import COMMANDS, FLAGS, read_touching_flags
from data_pipeline.svg.vanished import (
    choose_dot,
    choose_join_steps,
    close_join,
    read_line,
    write_lines,
)


def rewrite_path(  # noqa: C901, PLR0912, PLR0915
    tokens: list[str],
    values: Sequence[Any],
    scale: float,
    base: tuple[float, float],
    texts_and_heads: tuple[dict[float, str], dict[float, str]],
    measure: bool,
    is_stroked: bool,
) -> tuple[str, float]:
    """Return the rewritten path data and the area that `scale_path` describes.

    `texts_and_heads` holds the texts of numbers behind a number and behind a letter.

    Of each point, x and y are absolute input units. qx and qy are rounded output units plus MAGIC,
    which vanishes in differences; the radii qrx and qry are without MAGIC. px and py are qx and qy
    of the previous point.
    """
    texts, heads = texts_and_heads
    base_x, base_y = base
    parts: list[str] = []
    steps: list[complex] = []
    last_form = "z"  # last written letter: a segment of the same kind does not repeat it
    num_parts_before = 0  # parts before the segments of this subpath
    has_vanished = False  # rounding removed a segment of this subpath
    x, y = start_x, start_y = base_x, base_y
    px, py = start_px, start_py = MAGIC, MAGIC
    last_curve = ""  # kind of the last segment if it is a curve, with its last control point
    control_x = control_y = 0.0
    written_x = written_y = 0.0  # last written control point
    # stroked path: the segments that vanished behind part number `gap`, their sum and the last one
    gap, gap_vector, gap_end = 0, 0j, 0j
    area = last_x = last_y = 0.0
    command, is_relative = "", False
    index, num_values = 0, len(values)
    # state of the reader, saved while it reads the cubics of an arc
    saved_input: tuple[Any, ...] = ()
    saved_state: tuple[Any, ...] = ()

    while True:
        if index == num_values:
            # End of the path, or of the cubics of an arc.
            if not saved_input:
                break
            tokens, values, index, num_values = saved_input
            command, is_relative, base_x, base_y, x, y = saved_state
            saved_input, last_curve = (), ""
            continue

        if values[index] is None:
            # A letter; without one, the last command repeats.
            command, is_relative = COMMANDS[tokens[index]]
            index += 1
        if is_relative:
            from_x, from_y = x, y
        else:
            from_x, from_y = base_x, base_y
        form = "l"

        if command == "c" or command == "s":
            # Cubic curve: written as `c`, as `s` if its mirrored control point fits, or as a line.
            if command == "c":
                x1, y1, x2, y2, x, y = values[index : index + 6]
                index += 6
                d1x, d1y = (from_x + x1) * scale + MAGIC - px, (from_y + y1) * scale + MAGIC - py
                form = "c"
            else:
                x2, y2, x_, y_ = values[index : index + 4]
                index += 4
                x1, y1 = (2 * x - control_x, 2 * y - control_y) if last_curve == "c" else (x, y)
                q1x, q1y, form = choose_smooth_form(
                    x1 * scale, y1 * scale, px, py, written_x, written_y, last_form in "cs", "sc"
                )
                d1x, d1y = q1x - px, q1y - py
                x, y = x_, y_

            last_curve, control_x, control_y = "c", from_x + x2, from_y + y2
            x, y = from_x + x, from_y + y
            q2x, q2y = control_x * scale + MAGIC, control_y * scale + MAGIC
            qx, qy = x * scale + MAGIC, y * scale + MAGIC
            dx, dy = qx - px, qy - py
            d2x, d2y = q2x - px, q2y - py

            cross = d1x * dy - d1y * dx  # shows without a call that most curves are not flat
            if cross * cross <= MAX_SQUARED_SHIFT * (dx * dx + dy * dy) and is_flat(
                d1x, d1y, d2x, d2y, dx, dy
            ):
                form = "l"
            elif form == "c":
                if last_form == "c":
                    parts.append(
                        f"{texts[d1x]}{texts[d1y]}{texts[d2x]}{texts[d2y]}{texts[dx]}{texts[dy]}"
                    )
                else:
                    parts.append(
                        f"c{heads[d1x]}{texts[d1y]}{texts[d2x]}{texts[d2y]}{texts[dx]}{texts[dy]}"
                    )
                last_form, written_x, written_y = "c", q2x, q2y
            else:
                if last_form == "s":
                    parts.append(f"{texts[d2x]}{texts[d2y]}{texts[dx]}{texts[dy]}")
                else:
                    parts.append(f"s{heads[d2x]}{texts[d2y]}{texts[dx]}{texts[dy]}")
                last_form, written_x, written_y = "s", q2x, q2y
        elif command == "l":
            # Line to a point.
            x, y = from_x + values[index], from_y + values[index + 1]
            index += 2
            qx, qy = x * scale + MAGIC, y * scale + MAGIC
            last_curve = ""
        elif command == "h":
            # Horizontal line.
            x = from_x + values[index]
            index += 1
            qx, qy = x * scale + MAGIC, y * scale + MAGIC
            last_curve = ""
        elif command == "v":
            # Vertical line.
            y = from_y + values[index]
            index += 1
            qx, qy = x * scale + MAGIC, y * scale + MAGIC
            last_curve = ""
        elif command == "a":
            # Elliptical arc: written as `a`, as a line, or as cubics that the loop reads next.
            if tokens[index + 3] in FLAGS and tokens[index + 4] in FLAGS:
                rx, ry, phi, large, sweep, dx, dy = values[index : index + 7]
                index += 7
            else:
                rx, ry, phi = values[index : index + 3]
                large, sweep, dx, dy, index = read_touching_flags(tokens, values, index + 3)

            x0, y0 = x, y
            x, y = from_x + dx, from_y + dy
            qx, qy = x * scale + MAGIC, y * scale + MAGIC
            last_curve = ""
            dx, dy = qx - px, qy - py
            rx, ry = abs(rx), abs(ry)
            qrx, qry = rx * scale + MAGIC - MAGIC, ry * scale + MAGIC - MAGIC
            ux, uy = px - MAGIC, py - MAGIC

            form, data = choose_arc_form(
                x0, y0, x, y, rx, ry, phi, large, sweep, scale, ux, uy, dx, dy, qrx, qry
            )
            if form == "a":
                if last_form == "a":
                    parts.append(f"{texts[qrx]}{texts[qry]}{data}{texts[dx]}{texts[dy]}")
                else:
                    parts.append(f"a{heads[qrx]}{texts[qry]}{data}{texts[dx]}{texts[dy]}")
                    last_form = "a"
            elif form == "c":
                saved_input = tokens, values, index, num_values
                saved_state = command, is_relative, base_x, base_y, x, y
                tokens, values, index, num_values = [], data, 0, len(data)
                command, is_relative, base_x, base_y = "c", False, 0.0, 0.0
                x, y = x0, y0
                continue
        elif command == "m":
            # New subpath; further points are lines.
            if has_vanished and len(parts) == num_parts_before:
                steps = choose_dot(gap_vector, gap_end, is_closed=False)
                parts.append(write_lines(steps, last_form, texts, heads)[0])
                px, py = px + steps[0].real, py + steps[0].imag
            has_vanished = False
            x, y = start_x, start_y = from_x + values[index], from_y + values[index + 1]
            index += 2
            qx, qy = start_px, start_py = x * scale + MAGIC, y * scale + MAGIC
            parts.append(f"m{heads[qx - px]}{texts[qy - py]}")
            num_parts_before = len(parts)
            form, command, last_form, last_curve = "m", "l", "l", ""
        elif command == "q" or command == "t":
            # Quadratic curve: written as `q`, or as `t` if its mirrored control point fits.
            if command == "q":
                x1, y1, x, y = values[index : index + 4]
                index += 4
                control_x, control_y = from_x + x1, from_y + y1
                q1x, q1y, form = control_x * scale + MAGIC, control_y * scale + MAGIC, "q"
                x, y = from_x + x, from_y + y
            else:
                if last_curve == "q":
                    control_x, control_y = 2 * x - control_x, 2 * y - control_y
                else:
                    control_x, control_y = x, y
                x1, y1 = control_x * scale, control_y * scale
                q1x, q1y, form = choose_smooth_form(
                    x1, y1, px, py, written_x, written_y, last_form in "qt", "tq"
                )
                x, y = from_x + values[index], from_y + values[index + 1]
                index += 2

            last_curve = "q"
            qx, qy = x * scale + MAGIC, y * scale + MAGIC

            first_texts = texts
            if form != last_form:
                parts.append(form)
                last_form, first_texts = form, heads
            if form == "q":
                parts.append(f"{first_texts[q1x - px]}{texts[q1y - py]}")
                first_texts = texts
            dx, dy = qx - px, qy - py
            parts.append(f"{first_texts[dx]}{texts[dy]}")
            written_x, written_y = q1x, q1y
        elif command == "z":
            # End of the subpath: back to its first point.
            if has_vanished:
                steps = []
                if len(parts) == num_parts_before:
                    steps = choose_dot(gap_vector, gap_end, is_closed=True)
                elif gap == len(parts) and last_form in "hlv":
                    after = complex(start_px - px, start_py - py)
                    steps = choose_join_steps(read_line(last_form, parts[-1]), gap_vector, after)
                if steps:
                    text, last_form = write_lines(steps, last_form, texts, heads)
                    parts.append(text)
            if is_stroked and px == start_px and py == start_py:
                vanished = complex(start_x - last_x, start_y - last_y) * scale
                close_join(parts, num_parts_before, vanished, last_form, texts, heads)
            if last_form != "z":
                parts.append("z")
                last_form = "z"
            num_parts_before, has_vanished = len(parts), False
            if measure:
                area += abs(start_x * scale - (start_px - MAGIC)) * abs(start_py - py)
                area += abs(start_y * scale - (start_py - MAGIC)) * abs(start_px - px)
            x, y, px, py = start_x, start_y, start_px, start_py
            command = last_curve = ""
            continue
        else:
            raise PathError("numbers after z")

        if form == "l":
            # Line: written as `l`, `h` or `v`, or left out if it has no length.
            dx, dy = qx - px, qy - py
            if has_vanished and num_parts_before < gap == len(parts) and last_form in "hlv":
                after = complex(dx, dy)
                steps = choose_join_steps(read_line(last_form, parts[-1]), gap_vector, after)
                if steps:
                    text, last_form = write_lines(steps, last_form, texts, heads)
                    parts.append(text)
                    px, py = px + steps[0].real, py + steps[0].imag
                    dx, dy = qx - px, qy - py

            if dx and dy:
                if last_form == "l":
                    parts.append(f"{texts[dx]}{texts[dy]}")
                else:
                    parts.append(f"l{heads[dx]}{texts[dy]}")
                    last_form = "l"
            elif dx:
                parts.append(texts[dx] if last_form == "h" else f"h{heads[dx]}")
                last_form = "h"
            elif dy:
                parts.append(texts[dy] if last_form == "v" else f"v{heads[dy]}")
                last_form = "v"
            else:
                has_vanished = True
                if is_stroked:
                    vector = complex(x - last_x, y - last_y)
                    gap_end = vector - gap_vector if gap == len(parts) else vector
                    gap, gap_vector = len(parts), vector
                continue
        px, py = qx, qy

        if measure:
            # Rounding moves the end of the segment by an error in x and one in y.
            if form != "m":
                area += abs(x * scale - (qx - MAGIC)) * abs(dy)
                area += abs(y * scale - (qy - MAGIC)) * abs(dx)
            last_x, last_y = x, y

    if has_vanished and len(parts) == num_parts_before:
        steps = choose_dot(gap_vector, gap_end, is_closed=False)
        parts.append(write_lines(steps, last_form, texts, heads)[0])
    return "".join(parts), area
