"""Line drawings: a pure function of the seed, whose pen can be read off the drawing."""

import itertools
import re

from data_pipeline.sources.line_drawings import PENS, generate_line_drawings
from data_pipeline.svg import canonicalise


def pen_of(row):
    return next(pen for pen in PENS if re.search(rf"\b{pen}\b", row.caption))


def test_the_same_seed_gives_the_same_drawings():
    assert list(generate_line_drawings(30, seed=4)) == list(
        itertools.islice(generate_line_drawings(60, seed=4), 30)
    )
    assert list(generate_line_drawings(30, seed=4)) != list(generate_line_drawings(30, seed=5))


def test_round_ends_have_the_radius_that_the_caption_names():
    seen = set()
    for row in generate_line_drawings(400, seed=1):
        if "line" not in row.caption:
            continue
        pen = pen_of(row)
        assert len(re.findall(rf"A{PENS[pen]} {PENS[pen]} 0 0 1", row.svg)) >= 2, row
        seen.add(pen)
    assert seen == set(PENS)


def test_only_tinted_drawings_have_a_pale_shape_and_every_drawing_is_one_path():
    for row in generate_line_drawings(200, seed=2):
        canonical = canonicalise(row.svg)
        assert ('opacity=".2"' in canonical) == (pen_of(row) == "tinted")
        assert canonical.count("<path") == 1 + (pen_of(row) == "tinted")
        assert canonicalise(canonical) == canonical
        assert re.search(r"line|ring|dot|bow|frame|blob", row.caption)
