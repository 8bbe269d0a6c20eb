"""Scores of captions: BLEU-4, the best constant caption, named fields."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from py_phosphor_icons import all_icons
from sacrebleu import corpus_bleu

from app.evaluation.metrics import (
    FieldScore,
    compute_bleu4,
    find_best_constant_caption,
    score_fields,
)

WORDS = ["a", "the", "thin", "circle", "circle,", "red.", "3.5", "A", "&amp;", ""]
captions = st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)


@pytest.mark.parametrize(
    ("hypothesis", "reference", "expected"),
    [
        ("a thin red circle", "a thin red circle", 1.0),
        ("a thin red circle", "A THIN RED CIRCLE", 0.0),  # case counts
        ("a thin red circle .", "a thin red circle.", 1.0),  # 13a splits the full stop off
        # 4/5, 3/4, 2/3, 1/2 of the 1- to 4-grams; equally long, so no brevity penalty
        ("a thin red circle x", "a thin red circle y", (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25),
        # 4/4, 3/3, 2/2, 1/1; brevity penalty exp(1 - 5/4)
        ("a thin red circle", "a thin red circle y", 0.7788007830714049),
        # 3/4, 1/3, none of 2 (smoothed to 1/2 of 1/2), none of 1 (to 1/4 of 1/1)
        ("a thin blue circle", "a thin red circle", (3 / 4 * 1 / 3 * 1 / 4 * 1 / 4) ** 0.25),
        ("", "a thin red circle", 0.0),
    ],
)
def test_bleu4_by_hand(hypothesis: str, reference: str, expected: float) -> None:
    assert compute_bleu4([hypothesis], [reference]) == pytest.approx(expected, abs=1e-12)


def test_bleu4_pools_the_corpus_instead_of_averaging_sentences() -> None:
    hypotheses = ["a thin red circle", "two blue squares stand beside each other"]
    references = ["a thin red circle", "a green line"]
    # 4/11, 3/9, 2/7, 1/5
    assert compute_bleu4(hypotheses, references) == pytest.approx(
        (4 / 11 * 3 / 9 * 2 / 7 * 1 / 5) ** 0.25
    )


def test_bleu4_refuses_lists_of_unequal_length() -> None:
    with pytest.raises(AssertionError, match="in silence"):
        compute_bleu4(["a", "b"], ["a"])


@given(st.lists(captions, min_size=1, max_size=8), st.lists(captions, min_size=1, max_size=5))
def test_best_constant_caption_is_the_brute_force_winner(
    train: list[str], references: list[str]
) -> None:
    scores = {
        text: corpus_bleu([text] * len(references), [references]).score / 100 for text in train
    }
    winner, score = find_best_constant_caption(iter(train), references)
    assert score == compute_bleu4([winner] * len(references), references)
    assert score == pytest.approx(max(scores.values()), abs=1e-12)
    assert winner == next(text for text, value in scores.items() if min(value, 1.0) == score)


def test_best_constant_caption_of_hundreds_of_real_references() -> None:
    texts = [
        f"A {weight} icon of {icon.name.replace('-', ' ')}: {', '.join(icon.tags)}."
        for icon in all_icons()[:400]
        for weight in ("thin", "bold", "bold")
    ]
    train, references = texts[:900], texts[900:]
    winner, score = find_best_constant_caption(train, references)
    assert score == compute_bleu4([winner] * len(references), references)
    for rival in train[::45]:
        assert compute_bleu4([rival] * len(references), references) <= score


WEIGHTS = ("thin", "extra thin", "bold", "semi bold")


@pytest.mark.parametrize(
    ("hypothesis", "reference", "right"),
    [
        ("a thin line", "one thin icon", True),
        ("THIN", "a Thin icon", True),
        ("a bold line", "one thin icon", False),
        ("a line", "one thin icon", False),
        ("thin and thin", "one thin icon", True),
        ("thin or bold", "one thin icon", False),  # hedging names another
        ("a thinner line", "one thin icon", False),  # whole words
        ("extra thin", "one thin icon", False),  # the longest phrase, and only it
        ("thin", "an extra thin icon", False),
        ("an extra thin icon", "extra thin", True),
        ("extra thin", "extra thin, then bold", True),  # the reference's first one
        ("bold", "extra thin, then bold", False),
        ("semi-bold", "bold", True),  # a hyphen is no letter, and `semi-bold` not `semi bold`
    ],
)
def test_field_accuracy_of_one_caption(hypothesis: str, reference: str, right: bool) -> None:
    assert score_fields([hypothesis], [reference], {"weight": WEIGHTS}) == {
        "weight": FieldScore(accuracy=float(right), chance=0.25, majority=1.0, num_references=1)
    }


def test_field_accuracy_counts_only_the_references_that_name_the_field() -> None:
    hypotheses = ["red circle", "red square", "no colour", "blue", "red"]
    references = ["a red circle", "a blue square", "a red line", "a line", "a red c++ logo"]
    fields = {
        "colour": ["red", "blue", "green"],
        "shape": ["circle", "square"],
        "tool": ["c++"],
        "none": ["x"],
    }
    assert score_fields(hypotheses, references, fields) == {
        "colour": FieldScore(accuracy=2 / 4, chance=1 / 3, majority=3 / 4, num_references=4),
        "shape": FieldScore(accuracy=2 / 2, chance=1 / 2, majority=1 / 2, num_references=2),
        "tool": FieldScore(accuracy=0 / 1, chance=1, majority=1, num_references=1),
        "none": FieldScore(accuracy=0, chance=1, majority=0, num_references=0),
    }
