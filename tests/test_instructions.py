"""Instruction following, against answers that a person labelled and a naive form of IFEval."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.evaluation.instructions import (
    SUITE,
    InstructionPrompt,
    build_instruction_prompts,
    list_loose_variants,
    score_instructions,
    summarise_scores,
)

BY_NAME = {instruction.name: instruction for instruction in SUITE}
CAT = "A black cat sits."
Y, N = True, False

LABELLED = [
    # (instruction, answer, followed strictly, followed loosely)
    ("one_sentence", "A red circle above a blue square.", Y, Y),
    ("one_sentence", "A red circle above a blue square", Y, Y),
    ("one_sentence", "A pie, e.g. An apple pie, 1.5 inches wide.", Y, Y),
    ("one_sentence", "A red circle. It is small.", N, N),
    ("one_sentence", "Sure, here it is:\nA red circle.", N, Y),
    ("one_sentence", "A red circle.\nI hope that this helps!", N, Y),
    ("one_sentence", "", N, N),
    ("one_sentence", "...", N, N),
    ("two_sentences", "A red circle. It is small.", Y, Y),
    ("two_sentences", 'It says "Stop!" A hand is raised.', Y, Y),
    ("two_sentences", "A red circle.", N, N),
    ("two_sentences", "Here:\nA dog. It runs.", N, Y),
    ("max_10_words", "A black-and-white cat that doesn't move, on a mat.", Y, Y),
    ("max_10_words", "one two three four five six seven eight nine ten eleven", N, N),
    ("max_10_words", "Here is a caption of ten words at most:\nA cat.", N, Y),
    ("max_25_words", "A cat.", Y, Y),
    ("max_25_words", "word " * 25, Y, Y),
    ("max_25_words", "word " * 26, N, N),
    ("min_15_words", "word " * 15, Y, Y),
    ("min_15_words", "word " * 14, N, N),
    ("exact_5_words", "A cat on a mat.", Y, Y),
    ("exact_5_words", "A cat on the red mat.", N, N),
    ("exact_5_words", "A cat.", N, N),
    ("begin_drawing", "The drawing shows a cat.", Y, Y),
    ("begin_drawing", "the drawing shows: a cat", Y, Y),
    ("begin_drawing", "The drawing showed a cat.", N, N),
    ("begin_drawing", "This drawing shows a cat.", N, N),
    ("begin_drawing", "**The drawing shows** a cat.", N, Y),
    ("begin_picture", "A picture of a cat.", Y, Y),
    ("begin_picture", "Picture of a cat.", N, N),
    ("begin_here", "Here is a cat.", Y, Y),
    ("begin_here", "Hereby a cat is shown.", N, N),
    ("end_all", "A cat. That is all.", Y, Y),
    ("end_all", 'A cat. "That is all."', Y, Y),
    ("end_all", "That is all: a cat.", N, N),
    ("end_all", "A cat. That is all.\nDo you need more?", N, Y),
    ("end_exclamation", "A cat!", Y, Y),
    ("end_exclamation", "A cat! It sits.", N, N),
    ("end_exclamation", "A **cat!**", N, Y),
    ("lower_case", "a black cat, 3 mice.", Y, Y),
    ("lower_case", CAT, N, N),
    ("lower_case", "3 + 4", N, N),
    ("upper_case", "A BLACK CAT.", Y, Y),
    ("upper_case", CAT, N, N),
    ("upper_case", "Sure:\nA BLACK CAT.", N, Y),
    ("no_digits", "Two cats.", Y, Y),
    ("no_digits", "2 cats.", N, N),
    ("no_digits", "1.\nTwo cats.", N, Y),
    ("no_commas", "A cat and a dog.", Y, Y),
    ("no_commas", "A cat, and a dog.", N, N),
    ("name_colour", "A dark-blue circle.", Y, Y),
    ("name_colour", "A reddish circle, in lightgreen.", Y, Y),
    ("name_colour", "A tired circle that is bored.", N, N),
    ("name_colour", "A colourful flower.", N, N),
    ("count_shapes", "There are three circles.", Y, Y),
    ("count_shapes", "3 circles", Y, Y),
    ("count_shapes", "There are some circles of wood and stone.", N, N),
    ("no_icon", "A cat, drawn in ironic lines.", Y, Y),
    ("no_icon", "An Icon of a cat.", N, N),
    ("use_shape", "The SHAPES are round.", Y, Y),
    ("use_shape", "A shapeless cloud.", N, N),
    ("use_drawing_twice", "A drawing of a drawing.", Y, Y),
    ("use_drawing_twice", "A drawing.", N, N),
    ("title", "<<The cat>>\nA black cat.", Y, Y),
    ("title", "<The cat> A black cat.", N, N),
    ("title", "<< >> A black cat.", N, N),
    ("quoted", '"A black cat."', Y, Y),
    ("quoted", "“A black cat.”", Y, Y),
    ("quoted", 'The caption is "a black cat".', N, N),
    ("quoted", '"A cat" and "a dog"', N, N),
    ("quoted", '""', N, N),
    ("quoted", 'Sure:\n"A black cat."', N, Y),
    ("three_bullets", "* a cat\n* a dog\n* a bird", Y, Y),
    ("three_bullets", "* a cat\n* a dog", N, N),
    ("three_bullets", "- a cat\n- a dog\n- a bird", N, N),
    ("three_bullets", "Here are three:\n* a cat\n* a dog\n* a bird", N, Y),
    ("three_keywords", "cat, black fur, mat", Y, Y),
    ("three_keywords", "cat, dog", N, N),
    ("three_keywords", "There is a big black cat, a dog, and a bird in a tree.", N, N),
    ("json_caption", '{"caption": "A cat."}', Y, Y),
    ("json_caption", '```json\n{"caption": "A cat."}\n```', Y, Y),
    ("json_caption", 'Here:\n{"caption": "A cat."}', N, Y),
    ("json_caption", "{'caption': 'A cat.'}", N, N),
    ("json_caption", '{"caption": ""}', N, N),
    ("json_caption", '{"Caption": "A cat."}', N, N),
    ("json_caption", '"caption"', N, N),
    ("json_caption", "[" * 100_000, N, N),
    ("json_subject_colours", '{"subject": "cat", "colours": ["black"]}', Y, Y),
    ("json_subject_colours", '{"subject": "cat"}', N, N),
    ("json_subject_colours", '{"subject": "cat", "colours": "black", "size": 1}', N, N),
]


@pytest.mark.parametrize(("name", "answer", "strict", "loose"), LABELLED)
def test_every_answer_is_judged_as_a_person_judges_it(name, answer, strict, loose):
    prompt = InstructionPrompt("<svg/>", (BY_NAME[name],))
    (score,) = score_instructions([prompt], [answer])
    assert (score.strict, score.loose) == ((strict,), (loose,))


def test_the_labelled_answers_follow_and_break_every_instruction():
    assert len(LABELLED) >= 60
    assert len(SUITE) >= 20
    labels = {(name, strict) for name, _, strict, _ in LABELLED}
    assert labels == set(itertools.product(BY_NAME, (True, False)))


@pytest.mark.parametrize(
    "unit", [".", "a. ", '"', "<<a", "<<.", "* ", "a-", ",", "```", " ", "\n", "["]
)
def test_long_hostile_answers_are_judged(unit):
    prompts = [InstructionPrompt("", (one,)) for one in SUITE]
    assert len(score_instructions(prompts, [unit * 5_000] * len(SUITE))) == len(SUITE)


def compose_answers():
    """Return answers that differ in every aspect of the suite."""
    free = [
        "2 shapes", "two shapes in red", "three red shapes here", "red", "black lines cross",
        "a drawing of two red shapes in a drawing", "a drawing and a drawing", "shape",
        "a drawing, a red drawing", "red and black circles", "two", "red drawing drawing two",
        "a shape and a black shape and a white shape and a red shape and one more shape there",
        "a drawing of a red drawing with a line and a line and a line and two more lines there",
        "two drawings",
    ]  # fmt: skip
    starts = ["", "The drawing shows ", "A picture of ", "Here "]
    ends = [
        "",
        "!",
        ". That is all.",
        ". It is red.",
        ". A drawing",
        ". Two shapes.",
        ". Two drawings",
    ]
    titles = ["", "<<red>> "]
    for start, body, end, title in itertools.product(starts, free, ends, titles):
        text = f"{start}{title}{body}{end}"
        yield from (text, text.lower(), text.upper())
    for red in ("red", "circle"):
        yield f'"{red}"'
        yield f"* {red}\n* line\n* line"
        yield f"{red}, line, line"
        yield json.dumps({"caption": red})
        yield json.dumps({"subject": red, "colours": red})


def test_every_prompt_can_be_answered():
    prompts = build_instruction_prompts(["<svg/>"] * 3_000, seed=0)
    wanted = {tuple(sorted(one.name for one in prompt.instructions)) for prompt in prompts}
    assert {len(names) for names in wanted} == {1, 2, 3}
    answers = [
        frozenset(one.name for one in SUITE if one.is_followed(answer))
        for answer in set(compose_answers())
    ]
    distinct = set(answers)
    impossible = [names for names in wanted if not any(set(names) <= found for found in distinct)]
    assert impossible == []


def test_prompts_are_a_pure_function_and_use_every_instruction_equally_often():
    svgs = [f"<svg id='{i}'/>" for i in range(len(SUITE) * 4)]
    prompts = build_instruction_prompts(svgs, seed=3)
    assert prompts == build_instruction_prompts(svgs, seed=3)
    assert prompts != build_instruction_prompts(svgs, seed=4)
    assert [prompt.svg for prompt in prompts] == svgs
    first = [prompt.instructions[0].name for prompt in prompts]
    assert {first.count(name) for name in BY_NAME} == {4}
    for prompt in prompts:
        aspects = [one.aspect for one in prompt.instructions]
        assert len(aspects) == len(set(aspects))


def test_instructions_follow_the_system_prompt():
    prompt = InstructionPrompt("<svg/>", (BY_NAME["one_sentence"], BY_NAME["no_commas"]))
    expected = "Describe it. Answer in one sentence. Do not use commas."
    assert prompt.add_to("Describe it:") == prompt.add_to("Describe it.") == expected


def test_the_four_shares_are_those_of_ifeval():
    followed = InstructionPrompt("", (BY_NAME["no_commas"], BY_NAME["end_exclamation"]))
    prompts = [followed, followed, InstructionPrompt("", (BY_NAME["one_sentence"],))]
    scores = score_instructions(prompts, ["A cat!", "A cat.", "Sure:\nA cat."])
    assert summarise_scores(scores) == pytest.approx(
        {
            "prompt_strict": 1 / 3,
            "instruction_strict": 3 / 5,
            "prompt_loose": 2 / 3,
            "instruction_loose": 4 / 5,
        }
    )


@given(st.text(alphabet="ab*\n ", max_size=30))
def test_loose_variants_are_those_of_ifeval(answer):
    """As in instruction_following_eval/evaluation_lib.py, test_instruction_following_loose."""
    lines = answer.split("\n")
    first, last = "\n".join(lines[1:]).strip(), "\n".join(lines[:-1]).strip()
    both = "\n".join(lines[1:-1]).strip()
    plain = [answer, answer.replace("*", "")]
    theirs = [*plain, *(text.replace("*", "") for text in (first, last, both)), first, last, both]
    assert {text.strip() for text in list_loose_variants(answer)} == {t.strip() for t in theirs}


def test_the_document_lists_the_suite():
    text = (Path(__file__).parent.parent / "docs" / "instructions.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    listed = [(row[0].strip("| `"), row[1].strip()) for row in rows]
    assert listed == [(one.name, one.text.replace("* ", "\\* ")) for one in SUITE]
