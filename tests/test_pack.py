"""Packing: nothing lost, nothing mixed, nothing over the limit, and little air."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.stream.encode import IGNORE_INDEX, Example
from data_pipeline.stream.pack import pack_examples


def example(length: int, mark: int) -> Example:
    ids = np.full(length, mark, np.int32)
    targets = np.full(length, IGNORE_INDEX, np.int32)
    targets[length // 2 : -1] = mark
    return Example(ids, targets)


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(50, 120))
def test_every_example_is_in_exactly_one_row_whole_and_alone(lengths, limit):
    examples = [example(length, i) for i, length in enumerate(lengths)]
    rows = pack_examples(examples, limit)
    assert sorted(i for row in rows for i in row.members) == list(range(len(lengths)))
    for row in rows:
        assert len(row.input_ids) == len(row.position_ids) == len(row.targets) <= limit
        start = 0
        for i in row.members:
            part = slice(start, start + lengths[i])
            assert (row.input_ids[part] == i).all()
            assert (row.targets[part] == examples[i].targets).all()
            assert (row.position_ids[part] == np.arange(lengths[i])).all()
            start += lengths[i]
        assert start == len(row.input_ids)


def test_best_fit_chooses_the_fullest_row_that_has_room():
    rows = pack_examples([example(n, n) for n in (6, 5, 4, 3, 2)], 10)
    assert [[int(n) for n in row.input_ids[row.position_ids == 0]] for row in rows] == [
        [6, 4],
        [5, 3, 2],
    ]


def test_a_window_of_icon_like_lengths_fills_its_rows():
    lengths = np.random.default_rng(0).lognormal(5.5, 0.5, 1000).clip(40, 1024).astype(int)
    rows = pack_examples([example(int(n), 1) for n in lengths], 1024)
    assert lengths.sum() / (1024 * len(rows)) > 0.99
