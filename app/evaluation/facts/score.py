"""Scores of captions by their facts: precision and recall of each kind of claim."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from app.evaluation.facts.check import check_phrases
from app.evaluation.facts.phrases import parse_caption
from app.evaluation.facts.picture import read_picture
from app.evaluation.facts.salient import Fact, list_facts
from app.evaluation.facts.verdict import KINDS, Claim, Kind
from data_pipeline.svg import SVGRefused


@dataclass(frozen=True)
class FactCounts:
    """Counts of one kind in one drawing, from which a bootstrap can resample."""

    num_right: int = 0
    num_wrong: int = 0
    num_cannot_tell: int = 0
    num_named: int = 0
    """Salient facts that a right claim names."""
    num_facts: int = 0
    """Salient facts of the drawing."""


@dataclass(frozen=True)
class KindScore:
    """Score of one kind of claim over all drawings."""

    counts: list[FactCounts]
    """One entry for each drawing, in their order."""

    def total(self, name: str) -> int:
        """Return the sum of one field over all drawings."""
        return sum(getattr(counts, name) for counts in self.counts)

    @property
    def num_judged(self) -> int:
        """Return the number of claims with the verdict right or wrong."""
        return self.total("num_right") + self.total("num_wrong")

    @property
    def precision(self) -> float:
        """Return the share of right claims among the judged ones (0 if there are none)."""
        return self.total("num_right") / max(self.num_judged, 1)

    @property
    def recall(self) -> float:
        """Return the share of salient facts that a right claim names (0 if there are none)."""
        return self.total("num_named") / max(self.total("num_facts"), 1)


@dataclass(frozen=True)
class FactScores:
    """Scores of all kinds, and the wrong claims."""

    kinds: dict[Kind, KindScore]
    wrong_claims: list[tuple[int, Claim]] = field(default_factory=list)
    """Number of the drawing and the claim."""
    num_refused: int = 0
    """Drawings that are no valid SVG; their captions are not judged."""


def score_facts(captions: Sequence[str], svgs: Sequence[str]) -> FactScores:
    """Return precision and recall of the captions' claims on their drawings, by kind."""
    counts: dict[Kind, list[FactCounts]] = {kind: [] for kind in KINDS}
    wrong_claims = []
    num_refused = 0
    for number, (caption, svg) in enumerate(zip(captions, svgs, strict=True)):
        try:
            picture = read_picture(svg)
        except SVGRefused:
            num_refused += 1
            claims, facts = [], []
        else:
            claims, facts = check_phrases(parse_caption(caption), picture), list_facts(picture)

        wrong_claims += [(number, claim) for claim in claims if claim.verdict == "wrong"]
        for kind in KINDS:
            counts[kind].append(_count(kind, claims, facts))
    scores = {kind: KindScore(of_kind) for kind, of_kind in counts.items()}
    return FactScores(scores, wrong_claims, num_refused)


def _count(kind: Kind, claims: list[Claim], facts: list[Fact]) -> FactCounts:
    verdicts = Counter(claim.verdict for claim in claims if claim.kind == kind)
    words = {claim.word for claim in claims if claim.kind == kind and claim.verdict == "right"}
    of_kind = [fact for fact in facts if fact.kind == kind]
    return FactCounts(
        verdicts["right"],
        verdicts["wrong"],
        verdicts["cannot_tell"],
        sum(not fact.words.isdisjoint(words) for fact in of_kind),
        len(of_kind),
    )
