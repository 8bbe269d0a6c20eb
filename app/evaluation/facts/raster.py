"""Masks: the pixels that an outline covers, on a coarse grid over the page."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_pipeline.svg import GRID

Mask = NDArray[np.bool_]

NUM_PIXELS = 128  # on each side: a pixel covers 2 units of the canonical page
UNITS = GRID / NUM_PIXELS


def fill_mask(polygons: Sequence[NDArray[np.complex128]], *, is_even_odd: bool = False) -> Mask:
    """Return the pixels (row, column) whose centres are inside the closed polygons."""
    shape = (NUM_PIXELS, NUM_PIXELS)
    if not polygons:
        return np.zeros(shape, dtype=bool)

    # edges, in pixels, shifted so that the centre of pixel n is at n
    begins = np.concatenate(polygons) / UNITS - (0.5 + 0.5j)
    ends = np.concatenate([part for p in polygons for part in (p[1:], p[:1])]) / UNITS - (
        0.5 + 0.5j
    )
    signs = np.where(begins.imag < ends.imag, 1, -1)
    tops = np.where(signs > 0, begins, ends)
    bottoms = np.where(signs > 0, ends, begins)

    # rows that each edge crosses
    first = np.clip(np.ceil(tops.imag), 0, NUM_PIXELS).astype(np.intp)
    behind = np.clip(np.ceil(bottoms.imag), 0, NUM_PIXELS).astype(np.intp)
    counts = behind - first
    edge = np.repeat(np.arange(len(counts)), counts)
    starts = np.cumsum(counts) - counts
    rows = np.arange(len(edge)) - starts[edge] + first[edge]

    # columns of the crossings, and winding numbers from left to right
    heights = np.where(counts > 0, bottoms.imag - tops.imag, 1.0)
    slopes = (bottoms.real - tops.real) / heights
    x = tops.real[edge] + (rows - tops.imag[edge]) * slopes[edge]
    columns = np.clip(np.ceil(x), 0, NUM_PIXELS).astype(np.intp)
    cells = rows * (NUM_PIXELS + 1) + columns
    weights = None if is_even_odd else signs[edge]
    changes = np.bincount(cells, weights, minlength=NUM_PIXELS * (NUM_PIXELS + 1))
    winding = np.cumsum(changes.reshape(NUM_PIXELS, NUM_PIXELS + 1), axis=1)[:, :NUM_PIXELS]
    mask: Mask = winding % 2 == 1 if is_even_odd else winding != 0
    return mask
