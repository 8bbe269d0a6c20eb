"""Five false models, as lists of outputs: the scores rank them and name their faults."""

import re

import numpy as np
import pytest

from app.config import load_config
from app.errors import UserError
from app.evaluation.behaviour import Output
from app.evaluation.config import SCORES
from app.evaluation.facts import score_facts
from app.evaluation.instructions import build_instruction_prompts
from app.evaluation.judge import find_faults, score_captions, score_model
from app.evaluation.metrics import find_best_constant_caption
from app.evaluation.nearest import copy_nearest_captions
from app.evaluation.scores import CONSTANT, NEAREST, TUNED, judge_scores
from data_pipeline.sources.scenes import COLOURS, generate_scenes
from data_pipeline.svg import canonicalise

PROMPT = "You are an expert at describing SVG images. Provide a detailed description of this image:"
SCENES = [*generate_scenes(140, seed=4)]
TRAIN = [(str(scene.svg), str(scene.caption)) for scene in SCENES[:100]]
SVGS = [canonicalise(scene.svg) for scene in SCENES[100:]]
REFERENCES = [str(scene.caption) for scene in SCENES[100:]]
NEXT_COLOUR = dict(zip(COLOURS, [*COLOURS][1:] + [*COLOURS][:1], strict=True))


def swap_colours(caption: str) -> str:
    return re.sub("|".join(COLOURS), lambda match: NEXT_COLOUR[match[0]], caption)


MODELS = {
    "reference": [Output(text, True) for text in REFERENCES],
    "wrong_colour": [Output(swap_colours(text), True) for text in REFERENCES],
    "endless": [Output(" ".join([text] * 4), False) for text in REFERENCES],
    "leak": [Output(f"{PROMPT} {text}", True) for text in REFERENCES],
    "echo": [Output(svg, True) for svg in SVGS],
}


def score(texts: list[str]):
    return score_captions(texts, REFERENCES, {}, score_facts(texts, SVGS))


@pytest.fixture(scope="module")
def judged():
    """The metrics of each model in the report."""
    constant, _ = find_best_constant_caption((caption for _, caption in TRAIN), REFERENCES)
    baselines = {
        CONSTANT: score([constant] * len(SVGS)),
        NEAREST: score(copy_nearest_captions(SVGS, TRAIN)),
    }
    metrics = {}
    for name, outputs in MODELS.items():
        faults = find_faults(outputs, SVGS, PROMPT)
        scores = score_model(np.zeros((0, 2)), faults, [], []) | score(
            [output.text for output in outputs]
        )
        metrics[name] = judge_scores({TUNED: scores, **baselines}, {"bleu4": 0.18})["metrics"]
    return metrics


@pytest.mark.parametrize(
    ("model", "faults"),
    [
        ("reference", set()),
        ("wrong_colour", set()),
        ("endless", {"unfinished", "repetition_loop"}),
        ("leak", {"prompt_leak"}),
        ("echo", {"svg_echo"}),
    ],
)
def test_the_faults_of_a_false_model_are_named(judged, model, faults) -> None:
    found = find_faults(MODELS[model], SVGS, PROMPT)
    assert all(faults <= set(each) for each in found)
    assert set().union(*found) <= faults | {"role_leak", "repetition_loop"}
    assert judged[model]["valid_output"]["value"] == float(not faults)


def test_a_wrong_colour_is_the_only_wrong_claim_of_its_model(judged) -> None:
    facts = score_facts([output.text for output in MODELS["wrong_colour"]], SVGS)
    assert {claim.kind for _, claim in facts.wrong_claims} >= {"colour"}
    assert judged["wrong_colour"]["facts_colour_precision"]["value"] < 0.1
    assert judged["reference"]["facts_colour_precision"]["value"] == 1


def test_the_false_models_are_ranked_below_the_one_that_answers_the_reference(judged) -> None:
    for name in ("bleu4", "rouge_l", "cider_d"):
        values = {model: metrics[name]["value"] for model, metrics in judged.items()}
        assert max(values, key=values.__getitem__) == "reference", name
        assert min(values, key=values.__getitem__) == "echo", name
    assert judged["reference"]["bleu4"]["value"] == 1
    assert judged["reference"]["bleu4"]["holds"] is True
    assert judged["echo"]["bleu4"]["holds"] is False


def test_only_a_score_above_both_baselines_is_said_to_beat_them(judged) -> None:
    assert judged["reference"]["bleu4"]["beats_baselines"] is True
    assert judged["reference"]["facts_colour_precision"]["beats_baselines"] is True
    assert judged["wrong_colour"]["facts_colour_precision"]["beats_baselines"] is False
    assert judged["echo"]["rouge_l"]["beats_baselines"] is False
    assert judged["reference"]["valid_output"]["beats_baselines"] is None


def test_every_score_may_have_a_target_and_no_other_name() -> None:
    instructions = build_instruction_prompts(SVGS, seed=0)
    losses, texts = np.ones((len(SVGS), 2)), REFERENCES
    scores = {
        **score_model(losses, [[]] * len(SVGS), instructions, [""] * len(instructions)),
        **score_captions(texts, texts, {"size": ("big",)}, score_facts(texts, SVGS), losses[:, 0]),
    }
    optional = {"meteor", "embedding_cosine"}  # their packages may be missing here
    assert {*scores} | optional == {*SCORES, "size_accuracy"}

    fields = {"evaluate.fields": {"size": ["big"]}}
    targets = dict.fromkeys([*SCORES, "size_accuracy"], 0.5)
    config = load_config(None, {**fields, "evaluate.targets": targets})
    assert targets.items() <= config.evaluate.targets.items()
    for name in ("bleu_4", "size_accuracy"):
        with pytest.raises(UserError, match=rf"evaluate\.targets: {name} is not a score; .*bleu4"):
            load_config(None, {"evaluate.targets": {name: None}})
