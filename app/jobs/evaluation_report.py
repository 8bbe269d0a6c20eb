"""The report of an evaluation: scores with intervals, baselines, groups, and each drawing."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from app.config import Config
from app.evaluation.bootstrap import Score
from app.evaluation.facts import FactScores, score_facts
from app.evaluation.judge import find_faults, score_captions, score_model
from app.evaluation.metrics import get_bleu_signature, score_fields
from app.evaluation.scores import (
    BASE,
    CONSTANT,
    TUNED,
    judge_scores,
    measure_groups,
    name_length,
)
from app.evaluation.text_scores import find_missing_scores
from app.jobs.evaluation_actors import ModelEvaluation
from app.jobs.held_out import HeldOut, measure_clip

Captions = Mapping[str, list[str]]
"""One caption for each drawing, by kind: tuned, base, constant, nearest."""


def make_report(
    config: Config,
    held_out: HeldOut,
    evaluations: Mapping[str, ModelEvaluation],
    captions: Captions,
) -> dict[str, Any]:
    """Return the scores of all captions, and the figures that are named before and after."""
    svgs, prompt = [record.svg for record in held_out.records], config.data.system_prompt
    faults = {
        model: find_faults(held_out.list_captions(one.outputs), svgs, prompt)
        for model, one in evaluations.items()
    }

    # scores of models, and of captions
    scores: dict[str, dict[str, Score]] = {
        model: score_model(
            one.losses, faults[model], held_out.instructions, held_out.list_answers(one.outputs)
        )
        for model, one in evaluations.items()
    }
    references = [record.caption for record in held_out.records]
    facts = {kind: score_facts(texts, svgs) for kind, texts in captions.items()}
    clip_cosines = measure_clip(config, svgs, captions)
    for kind, texts in captions.items():
        scores.setdefault(kind, {}).update(
            score_captions(
                texts, references, config.evaluate.fields, facts[kind], clip_cosines.get(kind)
            )
        )

    judged = judge_scores(scores, config.evaluate.targets)
    report = {
        "signature": get_bleu_signature(),
        **judged,
        "not_measured": _list_missing(config, judged["metrics"]),
        **_name_figures(config, held_out, evaluations, judged, captions),
        "faults": {
            model: dict(Counter(fault for found in each for fault in found))
            for model, each in faults.items()
        },
        "claims": _count_claims(facts[TUNED]),
    }
    drawings = _describe_drawings(held_out, scores[TUNED], captions, faults[TUNED])
    for number, claim in facts[TUNED].wrong_claims:
        wrong = {"kind": claim.kind, "text": claim.text, "reason": claim.reason}
        drawings[number]["wrong_claims"].append(wrong)
    return report | _measure_groups(held_out, scores[TUNED]) | {"drawings": drawings}


def _count_claims(facts: FactScores) -> dict[str, dict[str, int]]:
    """Return the numbers of right and wrong claims, and of those that cannot be told, by kind."""
    return {
        kind: {
            verdict: score.total(f"num_{verdict}") for verdict in ("right", "wrong", "cannot_tell")
        }
        for kind, score in facts.kinds.items()
    }


def _list_missing(config: Config, metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return the reason for each score that is not measured, and each target without its score."""
    missing = find_missing_scores()
    if config.evaluate.clip_model is None:
        missing["clip_cosine"] = "set evaluate.clip_model to a CLIP model"
    unknown = {
        name: "evaluate.targets names it, but this evaluation has no such score"
        for name, target in config.evaluate.targets.items()
        if target is not None and name not in metrics
    }
    return {**unknown, **missing}


def _name_figures(
    config: Config,
    held_out: HeldOut,
    evaluations: Mapping[str, ModelEvaluation],
    judged: Mapping[str, Any],
    captions: Captions,
) -> dict[str, Any]:
    """Return the figures of both models and of the constant caption under names of their own."""
    before, after = evaluations[BASE], evaluations[TUNED]
    figures: dict[str, Any] = {
        "eval_loss_before": before.eval_loss,
        "eval_loss_after": after.eval_loss,
        "perplexity_before": math.exp(min(before.eval_loss, 80.0)),
        "perplexity_after": math.exp(min(after.eval_loss, 80.0)),
        "num_captions": len(held_out.records),
        "num_validation_dropped": after.num_dropped,
        "num_too_long": len(held_out.too_long),
        "too_long": held_out.too_long,
    }
    if not held_out.records:
        return figures

    # BLEU-4
    metrics, compared = judged["metrics"], judged["compared_with"]
    figures |= {
        "bleu4_before": compared[BASE]["bleu4"]["value"],
        "bleu4_after": metrics["bleu4"]["value"],
        "bleu4_constant": compared[CONSTANT]["bleu4"]["value"],
        "constant_caption": captions[CONSTANT][0],
    }

    # named fields
    references = [record.caption for record in held_out.records]
    by_model = {
        model: score_fields(captions[model], references, config.evaluate.fields)
        for model in evaluations
    }
    for name, score in by_model[TUNED].items():
        figures |= {
            f"{name}_accuracy_before": by_model[BASE][name].accuracy,
            f"{name}_accuracy": score.accuracy,
            f"{name}_chance": score.chance,
            f"{name}_majority": score.majority,
        }
    return figures


def _measure_groups(held_out: HeldOut, scores: Mapping[str, Score]) -> dict[str, Any]:
    """Return the scores of captions by source and by length of the prompt."""
    by_drawing = _select_drawings(scores)
    lengths = [len(prompt) for prompt in held_out.caption_prompts]
    by_length = measure_groups(by_drawing, [name_length(length) for length in lengths])
    ordered = dict.fromkeys(name_length(length) for length in sorted(lengths))
    return {
        "by_source": measure_groups(by_drawing, [record.source for record in held_out.records]),
        "by_length": {name: by_length[name] for name in ordered},
    }


def _describe_drawings(
    held_out: HeldOut,
    scores: Mapping[str, Score],
    captions: Captions,
    faults: Sequence[Sequence[str]],
) -> list[dict[str, Any]]:
    """Return each drawing with its captions, and the faults and scores of the tuned model."""
    values = {name: score.measure_each() for name, score in _select_drawings(scores).items()}
    return [
        {
            "id": record.id,
            "source": record.source,
            "svg": record.svg,
            "reference": record.caption,
            **{kind: texts[i] for kind, texts in captions.items()},
            "faults": faults[i],
            "wrong_claims": [],
            "scores": {
                name: None if math.isnan(each[i]) else float(each[i])
                for name, each in values.items()
            },
        }
        for i, record in enumerate(held_out.records)
    ]


def _select_drawings(scores: Mapping[str, Score]) -> dict[str, Score]:
    """Return the scores whose statistics are those of the captioned drawings, in their order."""
    others = ("eval_loss", "perplexity", "instruction", "single_instruction")
    return {name: score for name, score in scores.items() if not name.startswith(others)}
