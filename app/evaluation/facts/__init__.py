"""Facts: check the claims of captions against the parsed drawing, without a judge model."""

from app.evaluation.facts.check import check_claims
from app.evaluation.facts.score import FactScores, score_facts
from app.evaluation.facts.verdict import KINDS, Claim

__all__ = ["KINDS", "Claim", "FactScores", "check_claims", "score_facts"]
