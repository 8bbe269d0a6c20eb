"""CIDEr-D, the consensus of captions (Vedantam et al. 2015, arXiv:1411.5726, §4)."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from app.evaluation.bootstrap import Array

MAX_NGRAM = 4
SIGMA = 6.0
"""Standard deviation of the Gaussian penalty of a difference in length (number of bigrams)."""

Ngram = tuple[str, ...]


def split_words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    return re.findall(r"\w+", text.lower())


def compute_cider_d(hypotheses: Sequence[str], references: Sequence[str]) -> Array:
    """Return CIDEr-D (0 to 10) of each hypothesis against its one reference: [N].

    An n-gram weighs the more, the fewer references have it. The values are those of
    `pycocoevalcap.cider`, whose package brings 100 MB of Java archives.
    """
    expected = [_count_ngrams(reference) for reference in references]
    num_holding = Counter(ngram for ngrams in expected for ngram in ngrams)
    log_num_references = math.log(max(len(references), 1))

    def compute_idf(ngram: Ngram) -> float:
        """Return the inverse document frequency; an n-gram of no reference counts as of one."""
        return log_num_references - math.log(max(1, num_holding[ngram]))

    scores = [
        _score_pair(_count_ngrams(hypothesis), reference, compute_idf)
        for hypothesis, reference in zip(hypotheses, expected, strict=True)
    ]
    return np.array(scores, np.float64)


def _score_pair(
    hypothesis: Counter[Ngram], reference: Counter[Ngram], compute_idf: Callable[[Ngram], float]
) -> float:
    """Return ten times the mean over n of the clipped cosines of the weights of n-grams."""
    products, squares, reference_squares = ([0.0] * MAX_NGRAM for _ in range(3))
    for ngram, count in hypothesis.items():
        idf = compute_idf(ngram)
        products[len(ngram) - 1] += min(count, reference[ngram]) * reference[ngram] * idf**2
        squares[len(ngram) - 1] += (count * idf) ** 2
    for ngram, count in reference.items():
        reference_squares[len(ngram) - 1] += (count * compute_idf(ngram)) ** 2

    cosine_sum = sum(
        product / math.sqrt(square * reference_square)
        for product, square, reference_square in zip(
            products, squares, reference_squares, strict=True
        )
        if square and reference_square
    )
    length_difference = _count_bigrams(hypothesis) - _count_bigrams(reference)
    penalty = math.exp(-(length_difference**2) / (2 * SIGMA**2))
    return 10 * penalty * cosine_sum / MAX_NGRAM


def _count_ngrams(text: str) -> Counter[Ngram]:
    words = split_words(text)
    return Counter(
        tuple(words[first : first + size])
        for size in range(1, MAX_NGRAM + 1)
        for first in range(len(words) - size + 1)
    )


def _count_bigrams(ngrams: Counter[Ngram]) -> int:
    return sum(count for ngram, count in ngrams.items() if len(ngram) == 2)
