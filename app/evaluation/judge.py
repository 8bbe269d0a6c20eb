"""All scores of a model's answers: against references, by rules, and by the loss."""

from collections.abc import Mapping, Sequence

import numpy as np

from app.evaluation.behaviour import Output, classify_output
from app.evaluation.bootstrap import Array, Score
from app.evaluation.facts import FactScores
from app.evaluation.instructions import InstructionPrompt, score_instructions
from app.evaluation.perplexity import combine_perplexity
from app.evaluation.text_scores import average, score_texts

CLIP_SCALE = 2.5
"""Factor of the cosine in CLIPScore, which is 2.5 · max(cosine, 0) (Hessel et al. 2021, §3)."""


def score_captions(
    captions: Sequence[str],
    references: Sequence[str],
    fields: Mapping[str, Sequence[str]],
    facts: FactScores,
    clip_cosines: Array | None = None,
) -> dict[str, Score]:
    """Return the scores that captions of any origin have, by name."""
    scores = score_texts(captions, references, fields) | _score_facts(facts)
    if clip_cosines is not None:
        scores["clip_cosine"] = average(clip_cosines)
        scores["clip_score"] = average(CLIP_SCALE * clip_cosines)
    return scores


def _score_facts(facts: FactScores) -> dict[str, Score]:
    """Return precision and recall of the claims of all kinds together, and of each kind."""
    by_kind: dict[str, Array] = {
        kind: np.array(
            [
                [one.num_right, one.num_right + one.num_wrong, one.num_named, one.num_facts]
                for one in score.counts
            ],
            np.float64,
        )
        for kind, score in facts.kinds.items()
    }
    scores = {}
    overall = np.sum(list(by_kind.values()), axis=0)
    for name, counts in [("", overall), *by_kind.items()]:
        prefix = f"facts_{name}".rstrip("_")
        scores[f"{prefix}_precision"] = Score(counts[:, :2])
        scores[f"{prefix}_recall"] = Score(counts[:, 2:])
    return scores


def find_faults(outputs: Sequence[Output], svgs: Sequence[str], prompt: str) -> list[list[str]]:
    """Return the names of the faults of each output; `prompt` is the sentence before the SVG."""
    return [
        classify_output(output, svg=svg, prompt=prompt)
        for output, svg in zip(outputs, svgs, strict=True)
    ]


def score_model(
    losses: Array,
    faults: Sequence[Sequence[str]],
    instructions: Sequence[InstructionPrompt],
    answers: Sequence[str],
) -> dict[str, Score]:
    """Return the scores that only a model has, by name: loss, valid outputs, instructions followed.

    `instruction_following` is the strict share of prompts of which all instructions are followed.
    """
    scores = {"eval_loss": Score(losses), "perplexity": Score(losses, combine_perplexity)}
    if faults:
        scores["valid_output"] = average(np.array([not found for found in faults], np.float64))
    if instructions:
        results = score_instructions(instructions, answers)
        strict, loose = [one.strict for one in results], [one.loose for one in results]
        scores |= {
            "instruction_following": _average_prompts(strict),
            "instruction_following_loose": _average_prompts(loose),
            "single_instruction": _average_instructions(strict),
            "single_instruction_loose": _average_instructions(loose),
        }
    return scores


def _average_prompts(followed: Sequence[Sequence[bool]]) -> Score:
    return average(np.array([all(one) for one in followed], np.float64))


def _average_instructions(followed: Sequence[Sequence[bool]]) -> Score:
    return Score(np.array([[sum(one), len(one)] for one in followed], np.float64))
