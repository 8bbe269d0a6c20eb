"""Line drawings: a pure function of the seed, with a pen that can be read from the drawing."""

import itertools
import re

from data_pipeline.sources.line_drawings import PENS, generate_line_drawings
from data_pipeline.svg import canonicalise


def pen_of(record):
    return next(pen for pen in PENS if re.search(rf"\b{pen}\b", record.caption))


def test_the_same_seed_gives_the_same_drawings():
    assert list(generate_line_drawings(30, seed=4)) == list(
        itertools.islice(generate_line_drawings(60, seed=4), 30)
    )
    assert list(generate_line_drawings(30, seed=4)) != list(generate_line_drawings(30, seed=5))


def test_round_ends_have_the_radius_that_the_caption_names():
    seen = set()
    for record in generate_line_drawings(400, seed=1):
        if "line" not in record.caption:
            continue
        pen = pen_of(record)
        assert len(re.findall(rf"A{PENS[pen]} {PENS[pen]} 0 0 1", record.svg)) >= 2, record
        seen.add(pen)
    assert seen == set(PENS)


def test_only_tinted_drawings_have_a_pale_shape_and_every_drawing_is_one_path():
    for record in generate_line_drawings(200, seed=2):
        canonical = canonicalise(record.svg)
        assert ('opacity=".2"' in canonical) == (pen_of(record) == "tinted")
        assert canonical.count("<path") == 1 + (pen_of(record) == "tinted")
        assert canonicalise(canonical) == canonical
        assert re.search(r"line|ring|dot|bow|frame|blob", record.caption)
