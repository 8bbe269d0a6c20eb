"""Scores of captions against references: BLEU, the best constant caption, named fields."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
from sacrebleu.metrics.bleu import BLEU, BLEUScore
from sacrebleu.metrics.helpers import extract_all_word_ngrams

from app.evaluation.bootstrap import Array

MAX_ORDER = 4
"""Longest n-gram of BLEU (words)."""


@dataclass(frozen=True)
class FieldScore:
    """Shares in 0–1 of the references that name a phrase of the field (0 if none does)."""

    accuracy: float
    chance: float
    """Accuracy of naming a phrase at random: 1 / number of phrases."""
    majority: float
    """Accuracy of always naming the references' most frequent phrase."""
    num_references: int
    """Number of references that name a phrase of the field."""


def compute_bleu4(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Return corpus BLEU-4 in 0–1 with one reference each (Papineni et al. 2002).

    The settings are sacrebleu's defaults: 13a tokeniser, case kept, exponential smoothing
    (`case:mixed|tok:13a|smooth:exp`).
    """
    assert len(hypotheses) == len(references), "sacrebleu would cut the longer list in silence"
    return _share(_bleu().corpus_score(hypotheses, [references]))


def count_bleu_matches(hypotheses: Sequence[str], references: Sequence[str]) -> Array:
    """Return the statistics of BLEU for each drawing: [N, 10].

    They are matched and all n-grams for n = 1 to 4, and the lengths of hypothesis and reference.
    """
    bleu = BLEU(effective_order=True)  # `effective_order` only hides a warning about sentences
    counted = [
        bleu.sentence_score(hypothesis, [reference])
        for hypothesis, reference in zip(hypotheses, references, strict=True)
    ]
    rows = [[*one.counts, *one.totals, one.sys_len, one.ref_len] for one in counted]
    return np.array(rows, np.float64).reshape(len(rows), 2 * MAX_ORDER + 2)


def combine_bleu(sums: Array, order: int = MAX_ORDER) -> Array:
    """Return corpus BLEU of `order` in 0–1 from sums [.., 10] of `count_bleu_matches`.

    The settings are those of `compute_bleu4`. Exponential smoothing takes the k-th n-gram length
    without a match as 1 / 2^k matches.
    """
    matches, totals = sums[..., :order], sums[..., MAX_ORDER : MAX_ORDER + order]
    lengths, reference_lengths = sums[..., -2], sums[..., -1]

    # precisions
    is_zero = matches == 0
    smoothed = np.where(is_zero, 0.5 ** is_zero.cumsum(axis=-1), matches)
    log_precisions = np.log(smoothed / np.maximum(totals, 1))

    # brevity
    penalty = np.exp(np.minimum(0, 1 - reference_lengths / np.maximum(lengths, 1)))
    bleu: Array = penalty * np.exp(log_precisions.mean(axis=-1))
    return np.where(is_zero.all(axis=-1) | (totals == 0).any(axis=-1), 0.0, bleu)


def get_bleu_signature() -> str:
    """Return sacrebleu's signature of the settings: version, tokeniser, case, smoothing."""
    bleu = _bleu()
    bleu.corpus_score([""], [[""]])
    return str(bleu.get_signature())


def find_best_constant_caption(
    train_captions: Iterable[str], references: Sequence[str]
) -> tuple[str, float]:
    """Return the training caption that scores best for all references, and its score.

    The score is exactly `compute_bleu4([caption] * len(references), references)`. It is the
    baseline that a model has to beat. Among captions of equal score, return the first.

    BLEU counts min(count in caption, count in reference) matches of an n-gram. In other words, the
    k-th occurrence in the caption matches in those references that have it k times or more. These
    references are counted once. A candidate then costs the time of its own length, for any number
    of references.
    """
    bleu = _bleu()
    num_references = len(references)

    # number of references with each occurrence
    tokenized = [_count_ngrams(bleu, reference) for reference in references]
    ref_len = sum(length for _, length in tokenized)
    num_holding = Counter(
        occurrence for ngrams, _ in tokenized for occurrence in _list_occurrences(ngrams)
    )

    def score(caption: str) -> float:
        ngrams, length = _count_ngrams(bleu, caption)
        correct = [0] * bleu.max_ngram_order
        for ngram, k in _list_occurrences(ngrams):
            correct[len(ngram) - 1] += num_holding.get((ngram, k), 0)

        total = [num_references * max(0, length - order) for order in range(bleu.max_ngram_order)]
        sys_len = num_references * length
        return _share(
            bleu.compute_bleu(correct, total, sys_len, ref_len, smooth_method=bleu.smooth_method)
        )

    # best candidate
    distinct = dict.fromkeys(train_captions)
    return max(((caption, score(caption)) for caption in distinct), key=itemgetter(1))


def score_fields(
    hypotheses: Sequence[str], references: Sequence[str], fields: Mapping[str, Sequence[str]]
) -> dict[str, FieldScore]:
    """Return for each field how often a caption names the same phrase as its reference.

    A field is a list of phrases, of which a caption names one:
    `{"weight": ["thin", "extra thin", "bold"]}`.

    Phrases match as whole words in any case. Where one phrase contains another, the longest
    matches. The expected phrase is the first that the reference names; a reference that names none
    is not counted. The hypothesis is right if it names that phrase and no other of the field.
    """
    scores = {}
    counts = count_fields(hypotheses, references, fields)
    for field, phrases in fields.items():
        find_phrases = _make_phrase_finder(phrases)
        expected = Counter(named[0] for named in map(find_phrases, references) if named)

        num_right, num_references = counts[field].sum(axis=0)
        scores[field] = FieldScore(
            accuracy=float(num_right / max(num_references, 1)),
            chance=1 / len(phrases),
            majority=max(expected.values(), default=0) / max(int(num_references), 1),
            num_references=int(num_references),
        )
    return scores


def count_fields(
    hypotheses: Sequence[str], references: Sequence[str], fields: Mapping[str, Sequence[str]]
) -> dict[str, Array]:
    """Return for each field and drawing (1 if it is right, 1 if the reference names it): [N, 2]."""
    counts = {}
    for field, phrases in fields.items():
        find_phrases = _make_phrase_finder(phrases)
        rows = np.zeros((len(references), 2))

        for row, hypothesis, reference in zip(rows, hypotheses, references, strict=True):
            named = find_phrases(reference)
            if named:
                row[:] = set(find_phrases(hypothesis)) == {named[0]}, 1
        counts[field] = rows
    return counts


def _bleu() -> BLEU:
    return BLEU(force=True)  # `force` only hides the warning about captions that end in " ."


def _share(score: BLEUScore) -> float:
    return min(score.score / 100, 1.0)  # sacrebleu returns 100.00000000000004 for a perfect score


def _count_ngrams(bleu: BLEU, text: str) -> tuple[Counter[tuple[str, ...]], int]:
    """Return the counts of 1- to 4-grams of a text, and its length (tokens), as sacrebleu does."""
    return extract_all_word_ngrams(bleu.tokenizer(text.rstrip()), 1, bleu.max_ngram_order)


def _list_occurrences(ngrams: Counter[tuple[str, ...]]) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yield each occurrence with its number: `{("a",): 2}` → `(("a",), 0), (("a",), 1)`."""
    return ((ngram, k) for ngram, count in ngrams.items() for k in range(count))


def _make_phrase_finder(phrases: Sequence[str]) -> Callable[[str], list[str]]:
    """Return a function from a caption to the phrases that it names, in their order."""
    alternatives = "|".join(re.escape(phrase) for phrase in sorted(phrases, key=len, reverse=True))
    pattern = re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)", re.IGNORECASE)
    return lambda caption: [match.lower() for match in pattern.findall(caption)]
