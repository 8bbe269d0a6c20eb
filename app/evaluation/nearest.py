"""The baseline that copies the caption of the training drawing that looks most alike."""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from app.evaluation.render import draw_all

SIDE = 32
"""Side of a thumbnail (pixels)."""
MAX_CANDIDATES = 20_000
"""Number of training drawings that are compared. `prepare` has shuffled them."""

Thumbnails = npt.NDArray[np.float32]


def draw_thumbnails(svgs: Iterable[str]) -> Thumbnails:
    """Return grey thumbnails in 0–1 [N, SIDE²]; one that cannot be drawn is an empty page."""
    page = np.full((SIDE, SIDE, 3), 255, np.uint8)
    pictures = (page if picture is None else picture for picture in draw_all(svgs, SIDE))
    rows = [picture.mean(axis=2, dtype=np.float32).ravel() / 255 for picture in pictures]
    return np.array(rows, np.float32).reshape(len(rows), SIDE**2)


def find_nearest(thumbnails: Thumbnails, candidates: Thumbnails) -> list[int]:
    """Return for each thumbnail the index of the candidate at the least Euclidean distance."""
    squares = (candidates**2).sum(axis=1)
    return [
        int(index)
        for part in np.array_split(thumbnails, max(1, len(thumbnails) // 256))
        for index in (squares - 2 * part @ candidates.T).argmin(axis=1)
    ]


def copy_nearest_captions(svgs: Sequence[str], train: Iterable[tuple[str, str]]) -> list[str]:
    """Return for each drawing the caption of the nearest of the (drawing, caption) pairs."""
    pairs = list(train)
    candidates = draw_thumbnails(svg for svg, _ in pairs)
    return [pairs[i][1] for i in find_nearest(draw_thumbnails(svgs), candidates)]
