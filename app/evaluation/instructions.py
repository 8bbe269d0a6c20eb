"""Score how well a model follows instructions about its caption, by rules and without a judge.

The measures are those of IFEval (Zhou et al. 2023, arXiv:2311.07911): the share of prompts of which
all instructions are followed, and the share of instructions that are followed; both strict and
loose. docs/instructions.md lists the suite.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from app.evaluation import text_rules as rules

MAX_INSTRUCTIONS = 3
"""Most instructions in one prompt."""


@dataclass(frozen=True)
class Instruction:
    """A sentence for the user's turn, and the rule that an answer must fulfil."""

    name: str
    text: str
    aspect: str
    """Property of the answer that it sets. A prompt has one instruction for each aspect."""
    is_followed: Callable[[str], bool]


SUITE = (
    Instruction("one_sentence", "Answer in one sentence.", "length", rules.has_sentences(1)),
    Instruction("two_sentences", "Answer in two sentences.", "length", rules.has_sentences(2)),
    Instruction("max_10_words", "Use at most 10 words.", "length", rules.has_words(1, 10)),
    Instruction("max_25_words", "Use at most 25 words.", "length", rules.has_words(1, 25)),
    Instruction("min_15_words", "Use at least 15 words.", "length", rules.has_words(15)),
    Instruction("exact_5_words", "Use exactly 5 words.", "length", rules.has_words(5, 5)),
    Instruction(
        "begin_drawing",
        'Begin with "The drawing shows".',
        "start",
        rules.begins_with("The drawing shows"),
    ),
    Instruction(
        "begin_picture", 'Begin with "A picture of".', "start", rules.begins_with("A picture of")
    ),
    Instruction("begin_here", 'Begin with "Here".', "start", rules.begins_with("Here")),
    Instruction("end_all", 'End with "That is all."', "end", rules.ends_with("That is all.")),
    Instruction("end_exclamation", "End with an exclamation mark.", "end", rules.ends_with("!")),
    Instruction("lower_case", "Write in lower case only.", "case", str.islower),
    Instruction("upper_case", "Write in capital letters only.", "case", str.isupper),
    Instruction("no_digits", "Do not use digits.", "signs", rules.lacks(r"\d")),
    Instruction("no_commas", "Do not use commas.", "signs", rules.lacks(",")),
    Instruction("name_colour", "Name the colours.", "colour", rules.names_colour),
    Instruction("count_shapes", "Say how many shapes there are.", "count", rules.names_number),
    Instruction("no_icon", 'Do not use the word "icon".', "words", rules.lacks(r"\bicons?\b")),
    Instruction("use_shape", 'Use the word "shape".', "words", rules.uses(r"\bshapes?\b", 1)),
    Instruction(
        "use_drawing_twice",
        'Use the word "drawing" at least twice.',
        "words",
        rules.uses(r"\bdrawings?\b", 2),
    ),
    Instruction(
        "title",
        "Give a title in double angle brackets, such as <<a title>>.",
        "title",
        rules.uses(r"<<(?=[^<>\n]*\w)[^<>\n]+>>", 1),
    ),
    Instruction("quoted", "Put the answer in double quotes.", "format", rules.is_quoted),
    Instruction(
        "three_bullets",
        'Answer with 3 bullet points that begin with "* ".',
        "format",
        rules.has_bullets(3),
    ),
    Instruction(
        "three_keywords",
        "Answer with 3 keywords and a comma between them.",
        "format",
        rules.has_keywords(3),
    ),
    Instruction(
        "json_caption",
        'Answer as JSON with the key "caption".',
        "format",
        rules.is_json_with("caption"),
    ),
    Instruction(
        "json_subject_colours",
        'Answer as JSON with the keys "subject" and "colours".',
        "format",
        rules.is_json_with("subject", "colours"),
    ),
)

_CLASHES = ({"case", "start"}, {"case", "end"}, {"length", "end"}, {"length", "title"})
"""Pairs of aspects that a prompt does not have together."""


@dataclass(frozen=True)
class InstructionPrompt:
    """A drawing, and the instructions for its caption."""

    svg: str
    instructions: tuple[Instruction, ...]

    def add_to(self, system_prompt: str) -> str:
        """Return the sentences of the user's turn before the SVG.

        >>> prompt = InstructionPrompt("<svg/>", SUITE[:1])
        >>> prompt.add_to("Describe this drawing:")
        'Describe this drawing. Answer in one sentence.'
        """
        sentences = [instruction.text for instruction in self.instructions]
        return " ".join(
            [system_prompt.rstrip().removesuffix(":").removesuffix(".") + ".", *sentences]
        )


@dataclass(frozen=True)
class PromptScore:
    """Instructions of one prompt that an answer follows, in their order."""

    names: tuple[str, ...]
    strict: tuple[bool, ...]
    loose: tuple[bool, ...]


def build_instruction_prompts(svgs: Sequence[str], seed: int) -> list[InstructionPrompt]:
    """Return one prompt of 1 to 3 instructions for each drawing: a pure function of the arguments.

    The first instructions are the suite in a random order, again and again. The others are drawn
    from those that the first one allows.
    """
    random = np.random.default_rng(seed)
    order = itertools.cycle(random.permutation(len(SUITE)).tolist())

    prompts = []
    for svg, first in zip(svgs, order, strict=False):
        chosen = [SUITE[first]]
        num_instructions = int(random.integers(1, MAX_INSTRUCTIONS + 1))
        for i in random.permutation(len(SUITE)).tolist():
            if len(chosen) < num_instructions and all(_agree(SUITE[i], one) for one in chosen):
                chosen.append(SUITE[i])
        prompts.append(InstructionPrompt(svg, tuple(chosen)))
    return prompts


def _agree(one: Instruction, other: Instruction) -> bool:
    """Return True if an answer can follow both instructions; only colours go with a format."""
    aspects = {one.aspect, other.aspect}
    if "format" in aspects:
        return aspects == {"format", "colour"}
    return len(aspects) == 2 and aspects not in _CLASHES


def score_instructions(
    prompts: Sequence[InstructionPrompt], answers: Sequence[str]
) -> list[PromptScore]:
    """Return the score of each answer, for `summarise_scores` and for a bootstrap over prompts."""
    scores = []
    for prompt, answer in zip(prompts, answers, strict=True):
        variants = list_loose_variants(answer)
        strict = [_is_followed(one, answer) for one in prompt.instructions]
        loose = [
            any(_is_followed(one, variant) for variant in variants) for one in prompt.instructions
        ]
        names = tuple(one.name for one in prompt.instructions)
        scores.append(PromptScore(names, tuple(strict), tuple(loose)))
    return scores


def summarise_scores(scores: Sequence[PromptScore]) -> dict[str, float]:
    """Return the four shares of IFEval (0–1), over at least one prompt."""
    shares = {}
    for kind in ("strict", "loose"):
        followed: list[tuple[bool, ...]] = [getattr(score, kind) for score in scores]
        flat = list(itertools.chain.from_iterable(followed))
        shares[f"prompt_{kind}"] = sum(map(all, followed)) / len(followed)
        shares[f"instruction_{kind}"] = sum(flat) / len(flat)
    return shares


def list_loose_variants(answer: str) -> list[str]:
    r"""Return the answer, and it without first line, last line, both, and without asterisks each.

    A model may put "Sure, here it is:" before its answer, or write it in bold type.

    >>> list_loose_variants("Sure:\n**a cat**")
    ['Sure:\n**a cat**', '**a cat**', 'Sure:', '', 'Sure:\na cat', 'a cat', 'Sure:', '']
    """
    lines = answer.split("\n")
    variants = ["\n".join(part).strip() for part in (lines, lines[1:], lines[:-1], lines[1:-1])]
    return [*variants, *(variant.replace("*", "") for variant in variants)]


def _is_followed(instruction: Instruction, answer: str) -> bool:
    return bool(answer.strip()) and instruction.is_followed(answer)
