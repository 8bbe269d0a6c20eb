"""Shorter forms of Bézier curves: the smooth commands `s` and `t`, and lines."""

from data_pipeline.svg.numbers import MAGIC

# Output units by which a shorter form may move a control point, and rounding the midpoint of an
# arc. The mirrored control point of `s` or `t` adds up the rounding of three points: where it moves
# further, the curve is written in full.
MAX_SHIFT = 0.75
MAX_SQUARED_SHIFT = MAX_SHIFT * MAX_SHIFT


def choose_smooth_form(
    x1: float,
    y1: float,
    px: float,
    py: float,
    control_x: float,
    control_y: float,
    is_mirrored: bool,
    forms: str,
) -> tuple[float, float, str]:
    """Return the rounded control point plus MAGIC, and the command that draws the curve.

    The exact control point is (x1, y1). A reader of the smooth command mirrors the last written
    control point at (px, py) if `is_mirrored`, and takes (px, py) otherwise. `forms` holds the
    smooth command, for the case that the reader finds nearly (x1, y1), and the full command.
    """
    seen_x, seen_y = (2 * px - control_x, 2 * py - control_y) if is_mirrored else (px, py)
    if abs(seen_x - MAGIC - x1) <= MAX_SHIFT and abs(seen_y - MAGIC - y1) <= MAX_SHIFT:
        return seen_x, seen_y, forms[0]
    return x1 + MAGIC, y1 + MAGIC, forms[1]


def is_flat(x1: float, y1: float, x2: float, y2: float, dx: float, dy: float) -> bool:
    """Return whether a line can replace the cubic from (0, 0) to (dx, dy).

    No point of the curve may be further than three quarters of MAX_SHIFT from the chord.
    """
    squared_length = dx * dx + dy * dy
    if not squared_length:
        return not (x1 or y1 or x2 or y2)

    # distances of the control points from the chord, times its length
    distance_1, distance_2 = x1 * dy - y1 * dx, x2 * dy - y2 * dx
    limit = MAX_SQUARED_SHIFT * squared_length
    if distance_1 * distance_1 > limit or distance_2 * distance_2 > limit:
        return False

    # The control points must lie between the ends.
    along_1, along_2 = x1 * dx + y1 * dy, x2 * dx + y2 * dy
    return 0 <= along_1 <= squared_length and 0 <= along_2 <= squared_length
