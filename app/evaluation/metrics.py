"""Scores of captions against references: BLEU-4, the best constant caption, named fields. Knows no model."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

from sacrebleu.metrics.bleu import BLEU, BLEUScore
from sacrebleu.metrics.helpers import extract_all_word_ngrams


@dataclass(frozen=True)
class FieldScore:
    """Shares in 0–1 of the `num` references that name a phrase of the field (0 when none does)."""

    accuracy: float
    chance: float
    """Accuracy of naming a phrase at random: 1 / number of phrases."""
    majority: float
    """Accuracy of always naming the references' most frequent phrase."""
    num: int


def compute_bleu4(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU-4 in 0–1, one reference each (Papineni et al. 2002), as sacrebleu computes it by default:
    13a tokeniser, case kept, exponential smoothing (`case:mixed|tok:13a|smooth:exp`)."""
    assert len(hypotheses) == len(references), "sacrebleu would cut the longer list in silence"
    return _share(_bleu().corpus_score(hypotheses, [references]))


def find_best_constant_caption(
    train_captions: Iterable[str], references: Sequence[str]
) -> tuple[str, float]:
    """The training caption that scores best when given for every reference (the first of equals), and its
    score, exactly `bleu4([caption] * len(references), references)`: what a model has to beat.

    BLEU counts min(count in caption, count in reference) matches of an n-gram. In other words, its k-th
    occurrence in the caption matches in those references that hold it k times or more. With these references
    counted once, a candidate costs the time of its own length, whatever the number of references.
    """
    bleu = _bleu()
    num_references = len(references)
    tokenized = [_ngrams(bleu, reference) for reference in references]
    ref_len = sum(length for _, length in tokenized)
    num_holding = Counter(
        occurrence for ngrams, _ in tokenized for occurrence in _occurrences(ngrams)
    )

    def score(caption: str) -> float:
        ngrams, length = _ngrams(bleu, caption)
        correct = [0] * bleu.max_ngram_order
        for ngram, k in _occurrences(ngrams):
            correct[len(ngram) - 1] += num_holding.get((ngram, k), 0)
        total = [num_references * max(0, length - order) for order in range(bleu.max_ngram_order)]
        sys_len = num_references * length
        return _share(
            bleu.compute_bleu(correct, total, sys_len, ref_len, smooth_method=bleu.smooth_method)
        )

    distinct = dict.fromkeys(train_captions)
    return max(((caption, score(caption)) for caption in distinct), key=itemgetter(1))


def score_fields(
    hypotheses: Sequence[str], references: Sequence[str], fields: Mapping[str, Sequence[str]]
) -> dict[str, FieldScore]:
    """How often a caption names what its reference names. A field is a list of phrases, of which a caption
    names one: `{"weight": ["thin", "extra thin", "bold"]}`.

    Phrases match as whole words, in any case, and the longest where one holds another. A reference asks for
    the first phrase that it names (for nothing if it names none); the hypothesis is right when it names that
    phrase and no other of the field.
    """
    scores = {}
    for field, phrases in fields.items():
        named = _namer(phrases)
        asked = [
            (named(ref)[0], hyp)
            for hyp, ref in zip(hypotheses, references, strict=True)
            if named(ref)
        ]
        num_right = sum(set(named(hypothesis)) == {phrase} for phrase, hypothesis in asked)
        num_majority = max(Counter(phrase for phrase, _ in asked).values(), default=0)
        num = len(asked)
        scores[field] = FieldScore(
            num_right / max(num, 1), 1 / len(phrases), num_majority / max(num, 1), num
        )
    return scores


def _bleu() -> BLEU:
    return BLEU(force=True)  # only silences the advice on captions that end in " ."


def _share(score: BLEUScore) -> float:
    return min(score.score / 100, 1.0)  # a perfect score comes as 100.00000000000004


def _ngrams(bleu: BLEU, text: str) -> tuple[Counter[tuple[str, ...]], int]:
    """Counts of the 1- to 4-grams of a text, and its length (tokens), as sacrebleu takes them."""
    return extract_all_word_ngrams(bleu.tokenizer(text.rstrip()), 1, bleu.max_ngram_order)


def _occurrences(ngrams: Counter[tuple[str, ...]]) -> Iterator[tuple[tuple[str, ...], int]]:
    """`{("a",): 2}` → `(("a",), 0), (("a",), 1)`."""
    return ((ngram, k) for ngram, count in ngrams.items() for k in range(count))


def _namer(phrases: Sequence[str]) -> Callable[[str], list[str]]:
    """The function from a caption to the phrases that it names, in their order."""
    alternatives = "|".join(re.escape(phrase) for phrase in sorted(phrases, key=len, reverse=True))
    pattern = re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)", re.IGNORECASE)
    return lambda caption: [match.lower() for match in pattern.findall(caption)]
