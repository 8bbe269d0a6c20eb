"""Path data: scale and round it, up to its first error."""

from data_pipeline.svg.errors import PathError
from data_pipeline.svg.numbers import TEXTS_AFTER_LETTER, TEXTS_AFTER_NUMBER
from data_pipeline.svg.rewrite import rewrite_path
from data_pipeline.svg.tokens import cut_at_error, tokenise_path


def scale_path(
    d: str,
    scale: float,
    origin: tuple[float, float] = (0.0, 0.0),
    decimals: int = 0,
    *,
    measure: bool = False,
    is_stroked: bool = False,
) -> tuple[str, float]:
    """Return `m0 0h48v24z` for `M0,0H24V12z` and scale 2: (point - origin) * scale, rounded.

    The written numbers are differences of rounded absolute points, so that rounding errors never
    accumulate. If `is_stroked`, short segments that decide a join or a cap survive rounding. Data
    with an error is read up to the error (SVG 1.1, F.2).

    Also returns the area over which rounding moves the outline if `measure` or `is_stroked`, else
    0. The area of a segment is the mean distance of its ends from their rounded points, times its
    length, in squares of the last decimal's unit. Raises PathError for a number beyond ±MAX_NUMBER.
    """
    texts, heads = TEXTS_AFTER_NUMBER[decimals], TEXTS_AFTER_LETTER[decimals]
    units, base = scale * 10**decimals, (-origin[0], -origin[1])
    measure = measure or is_stroked
    try:
        tokens, values = tokenise_path(d)
        try:
            known = (texts.known, heads.known)
            return rewrite_path(tokens, values, units, base, known, measure, is_stroked)
        except KeyError:  # a number without a cached text
            return rewrite_path(tokens, values, units, base, (texts, heads), measure, is_stroked)
    except (PathError, TypeError, ValueError, IndexError):
        # TypeError and others: a letter (None) or the end in place of a number
        valid = cut_at_error(d)
        if len(valid) == len(d):
            raise
    return scale_path(valid, scale, origin, decimals, measure=measure, is_stroked=is_stroked)
