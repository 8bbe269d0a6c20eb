"""Scores of captions against their reference libraries, and intervals, targets and baselines."""

from pathlib import Path

import nltk
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.corpus import wordnet
from nltk.translate.meteor_score import single_meteor_score
from pycocoevalcap.cider.cider import Cider
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU

from app.evaluation.bootstrap import NUM_RESAMPLES, SEED, Bootstrap, Score
from app.evaluation.cider import compute_cider_d, split_words
from app.evaluation.metrics import combine_bleu, count_bleu_matches
from app.evaluation.score_table import format_scores
from app.evaluation.scores import (
    BASE,
    CONSTANT,
    NEAREST,
    TUNED,
    judge_scores,
    measure_groups,
    name_length,
)
from app.evaluation.text_scores import average, find_missing_scores, score_texts

REFERENCES = [
    "A thin red circle beside two small blue squares.",
    "A large green triangle above a yellow star",
    "Two blue squares, one of them small.",
    "a red circle",
    "An icon of a house: roof, door and a window.",
    "A regular icon of pizza, drawn in regular outlines of medium width.",
    "A thin icon of an anchor",
]
CAPTIONS = [
    "A thin red circle beside two big blue squares.",
    "A yellow star",
    "Two blue squares, one of them small.",
    "",
    "An icon of a house: a roof, a door, a window, a chimney, a tree and a fence around it.",
    "A regular icon of of of pizza drawn in bold outlines of medium width .",
    "...",
]
WORDS = ["a", "the", "thin", "circle", "circle,", "red.", "A", ""]
texts = st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)
pairs = st.lists(st.tuples(texts, texts), min_size=1, max_size=8)


def value_of(score):
    return float(score.combine(score.statistics.sum(axis=0)))


@given(pairs)
def test_bleu_of_every_order_is_sacrebleus(pairs):
    captions, references = zip(*pairs, strict=True)
    statistics = count_bleu_matches(captions, references)
    for order in range(1, 5):
        bleu = BLEU(max_ngram_order=order, force=True)
        expected = bleu.corpus_score(list(captions), [list(references)]).score / 100
        assert combine_bleu(statistics.sum(axis=0), order) == pytest.approx(expected, abs=1e-12)


def test_bleu_of_a_resample_is_sacrebleus_of_the_drawn_captions():
    drawn = [0, 0, 4, 6, 5, 5, 2]
    sums = count_bleu_matches(CAPTIONS, REFERENCES)[drawn].sum(axis=0)
    expected = BLEU(force=True).corpus_score(
        [CAPTIONS[i] for i in drawn], [[REFERENCES[i] for i in drawn]]
    )
    assert combine_bleu(sums) == pytest.approx(expected.score / 100, abs=1e-12)


def test_rouge_l_is_that_of_rouge_score():
    scorer = RougeScorer(["rougeL"])
    expected = [
        scorer.score(reference, caption)["rougeL"].fmeasure
        for caption, reference in zip(CAPTIONS, REFERENCES, strict=True)
    ]
    assert value_of(score_texts(CAPTIONS, REFERENCES)["rouge_l"]) == pytest.approx(
        sum(expected) / len(expected), abs=1e-12
    )
    # by hand: 3 of 4 and 3 of 3 words in common
    score = score_texts(["one red circle"], ["one big red circle"])["rouge_l"]
    assert value_of(score) == pytest.approx(2 * 3 / 7)


def reference_cider(captions, references):
    def words(texts):
        return {i: [" ".join(split_words(text))] for i, text in enumerate(texts)}

    return Cider().compute_score(words(references), words(captions))[1]


def test_cider_d_is_that_of_pycocoevalcap():
    scores = compute_cider_d(CAPTIONS, REFERENCES)
    np.testing.assert_allclose(scores, reference_cider(CAPTIONS, REFERENCES), atol=1e-9)
    assert scores[2] == pytest.approx(10)
    assert scores[3] == 0


@given(pairs)
def test_cider_d_is_that_of_pycocoevalcap_for_any_texts(pairs):
    captions, references = zip(*pairs, strict=True)
    if any(split_words(reference) for reference in references):  # the library fails on none
        expected = reference_cider(captions, references)
        np.testing.assert_allclose(compute_cider_d(captions, references), expected, atol=1e-9)


def write_wordnet(folder: Path) -> None:
    """Write a WordNet of one noun synset, disc and ring, in the format of the database."""
    folder.mkdir(parents=True)
    for pos in ("noun", "verb", "adj", "adv"):
        for name in (f"index.{pos}", f"data.{pos}", f"{pos}.exc"):
            (folder / name).touch()
    (folder / "data.noun").write_text("00000000 03 n 02 disc 0 ring 0 000 | a round plate  \n")
    (folder / "index.noun").write_text(
        "".join(f"{word} n 1 0 1 0 00000000  \n" for word in ("disc", "ring"))
    )
    (folder / "index.sense").write_text(
        "".join(f"{word}%1:03:00:: 00000000 1 0\n" for word in ("disc", "ring"))
    )
    (folder / "lexnames").write_text(
        "00\tadj.all\t3\n01\tadj.pert\t3\n02\tadv.all\t4\n03\tnoun\t1\n"
    )


def test_meteor_is_nltks_and_is_named_as_missing_without_wordnet(tmp_path, monkeypatch):
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    assert "wordnet" in find_missing_scores()["meteor"]
    assert "meteor" not in score_texts(CAPTIONS, REFERENCES)

    write_wordnet(tmp_path / "corpora" / "wordnet")
    try:
        assert "meteor" not in find_missing_scores()
        score = score_texts(["A red disc."], ["a red ring"])["meteor"]
        assert value_of(score) == single_meteor_score(["a", "red", "ring"], ["a", "red", "disc"])
        assert value_of(score) > 0.9  # a synonym counts
        score = score_texts(["a red square"], ["a red ring"])["meteor"]
        assert value_of(score) < 0.7
    finally:
        wordnet._unload()


def test_embedding_cosine_of_equal_captions_is_1():
    pytest.importorskip("sentence_transformers", reason="the extra `embeddings` is not installed")
    same, other = (
        value_of(score_texts([text], ["a red circle"])["embedding_cosine"])
        for text in ("a red circle", "a timetable of trains")
    )
    assert same == pytest.approx(1, abs=1e-6)
    assert other < 0.5


def resample(num):
    random = np.random.default_rng(SEED)
    return [random.integers(num, size=num) for _ in range(NUM_RESAMPLES)]


def test_an_interval_is_that_of_drawings_that_are_drawn_one_by_one():
    scores = score_texts(CAPTIONS, REFERENCES)
    for name in ("bleu4", "rouge_l"):
        score = scores[name]
        values = [value_of(Score(score.statistics[drawn], score.combine)) for drawn in resample(7)]
        interval = Bootstrap(7).measure(score)
        assert interval.low == pytest.approx(np.percentile(values, 2.5), abs=1e-12)
        assert interval.high == pytest.approx(np.percentile(values, 97.5), abs=1e-12)
        assert interval.value == pytest.approx(value_of(score))
        assert interval.n == 7


def test_an_interval_holds_the_true_value_in_about_95_of_100_samples():
    random = np.random.default_rng(0)
    samples = random.random((200, 60)) < 0.3
    bootstrap, held = Bootstrap(60), 0
    for sample in samples:
        interval = bootstrap.measure(average(sample.astype(float)))
        held += interval.low <= 0.3 <= interval.high
    assert 180 <= held <= 198


def test_a_paired_interval_sees_a_difference_that_two_intervals_hide():
    random = np.random.default_rng(1)
    values = random.random(80)
    better, worse = average(values + 0.02), average(values)
    bootstrap = Bootstrap(80)
    low, high = bootstrap.compare(better, worse)
    assert low == pytest.approx(0.02) == high
    assert bootstrap.measure(better).low < bootstrap.measure(worse).high


def test_drawings_without_a_value_count_nothing():
    score = average(np.array([1.0, np.nan, 0.0, np.nan]))
    assert Bootstrap(4).measure(score)[0] == 0.5
    assert Bootstrap(4).measure(score).n == 2
    empty = average(np.array([np.nan, np.nan]))
    assert Bootstrap(2).measure(empty) == (None, None, None, 0)
    assert Bootstrap(2).compare(empty, average(np.ones(2))) is None
    assert Bootstrap(0).measure(average(np.zeros(0))) == (None, None, None, 0)


def judge(tuned, **others):
    scores = {
        kind: {"rouge_l": average(np.array(values)), "perplexity": average(np.array(values))}
        for kind, values in {TUNED: tuned, **others}.items()
    }
    return judge_scores(scores, {"rouge_l": 0.5, "perplexity": 0.5})


@pytest.mark.parametrize(
    ("tuned", "holds", "beats"),
    [(0.9, True, True), (0.3, False, False), (0.1, False, False), (0.5, False, True)],
)
def test_a_score_is_compared_with_its_target_and_with_both_baselines(tuned, holds, beats):
    judged = judge([tuned] * 9, **{BASE: [0.95] * 9, CONSTANT: [0.1] * 9, NEAREST: [0.4] * 9})
    metric = judged["metrics"]["rouge_l"]
    assert (metric["holds"], metric["beats_baselines"]) == (holds, beats)
    # lower is better
    metric = judged["metrics"]["perplexity"]
    assert (metric["holds"], metric["beats_baselines"]) == (tuned < 0.5, tuned < 0.1)
    lead = judged["compared_with"][CONSTANT]["rouge_l"]
    assert lead["lead_low"] == pytest.approx(tuned - 0.1) == lead["lead_high"]


def test_a_score_without_target_and_baseline_is_neither_held_nor_beaten():
    metric = judge_scores({TUNED: {"bleu4": average(np.ones(3))}}, {})["metrics"]["bleu4"]
    assert metric == {
        "value": 1.0,
        "low": 1.0,
        "high": 1.0,
        "n": 3,
        "target": None,
        "holds": None,
        "beats_baselines": None,
    }


def test_a_baseline_without_the_score_is_not_compared():
    nothing = average(np.full(3, np.nan))
    others = {CONSTANT: {"bleu4": nothing}, NEAREST: {"bleu4": average(np.zeros(3))}}
    judged = judge_scores({TUNED: {"bleu4": average(np.ones(3))}, **others}, {})
    assert judged["metrics"]["bleu4"]["beats_baselines"] is True
    judged = judge_scores({TUNED: {"bleu4": nothing}, **others}, {"bleu4": 0.5})
    metric = judged["metrics"]["bleu4"]
    assert (metric["value"], metric["holds"], metric["beats_baselines"]) == (None, None, None)


def test_groups_have_the_scores_of_their_own_drawings():
    scores = score_texts(CAPTIONS, REFERENCES)
    groups = ["a", "b", "a", "b", "a", "a", "b"]
    measured = measure_groups(scores, groups)
    for group in ("a", "b"):
        chosen = [i for i, name in enumerate(groups) if name == group]
        bleu = BLEU(force=True).corpus_score(
            [CAPTIONS[i] for i in chosen], [[REFERENCES[i] for i in chosen]]
        )
        assert measured[group]["bleu4"]["value"] == pytest.approx(bleu.score / 100)
        assert measured[group]["bleu4"]["n"] == len(chosen)


@pytest.mark.parametrize(
    ("num_tokens", "name"),
    [(1, "1-1 tokens"), (2, "2-2 tokens"), (512, "257-512 tokens"), (513, "513-1024 tokens")],
)
def test_a_bucket_of_lengths_ends_at_a_power_of_two(num_tokens, name):
    assert name_length(num_tokens) == name


def test_the_table_marks_a_score_below_a_baseline_and_an_uncertain_target():
    judged = judge([0.4, 0.7] * 9, **{CONSTANT: [0.1] * 18, NEAREST: [0.54] * 18})
    table = format_scores({**judged, "not_measured": {"meteor": "no WordNet here"}})
    row = next(line for line in table.splitlines() if line.startswith("rouge_l"))
    assert "0.550*" in row
    assert "0.540" in row
    assert row.endswith("0.5 pass, not certain")
    assert table.endswith("meteor not measured: no WordNet here")
