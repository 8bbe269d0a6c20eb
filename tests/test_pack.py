"""Packing loses nothing, mixes nothing, respects the limit and leaves little padding."""

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
def test_every_example_is_whole_and_unmixed_in_exactly_one_sequence(lengths, limit):
    examples = [example(length, i) for i, length in enumerate(lengths)]
    sequences = pack_examples(examples, limit)
    assert sorted(i for sequence in sequences for i in sequence.members) == list(
        range(len(lengths))
    )
    for sequence in sequences:
        assert (
            len(sequence.input_ids) == len(sequence.position_ids) == len(sequence.targets) <= limit
        )
        start = 0
        for i in sequence.members:
            part = slice(start, start + lengths[i])
            assert (sequence.input_ids[part] == i).all()
            assert (sequence.targets[part] == examples[i].targets).all()
            assert (sequence.position_ids[part] == np.arange(lengths[i])).all()
            start += lengths[i]
        assert start == len(sequence.input_ids)


def test_best_fit_chooses_the_fullest_sequence_that_has_room():
    sequences = pack_examples([example(n, n) for n in (6, 5, 4, 3, 2)], 10)
    assert [
        [int(n) for n in sequence.input_ids[sequence.position_ids == 0]] for sequence in sequences
    ] == [
        [6, 4],
        [5, 3, 2],
    ]


def test_a_shuffle_block_of_icon_like_lengths_fills_its_sequences():
    lengths = np.random.default_rng(0).lognormal(5.5, 0.5, 1000).clip(40, 1024).astype(int)
    sequences = pack_examples([example(int(n), 1) for n in lengths], 1024)
    assert lengths.sum() / (1024 * len(sequences)) > 0.99
