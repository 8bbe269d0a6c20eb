"""Find the faults of generated captions: no end, no words, echoes, leaks and repetition loops.

The rules read the text alone. No model judges.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

FAULTS = ("unfinished", "empty", "svg_echo", "prompt_leak", "role_leak", "repetition_loop")
"""Names of all faults, in the order in which `classify_output` returns them."""

COPIED_CHARACTERS = 20
"""Length of a copy of the drawing's markup that counts as an echo (characters)."""
LEAKED_WORDS = 6
"""Length of a copy of the prompt that counts as a leak (words); a shorter prompt leaks whole."""
MAX_UNIT_WORDS = 100
"""Longest unit whose repetition is found (words)."""

_WORD = re.compile(r"[^\W_]+")
_TAG = re.compile(
    r"</?(?:svg|g|path|rect|circle|ellipse|line|polyline|polygon|text|tspan|defs|use|image|"
    r"linearGradient|radialGradient|stop|clipPath|mask|symbol|style|title)\b[^<>]{0,200}/?>?"
)
_ATTRIBUTE = re.compile(
    r"\b(?:d|[xy][12]?|[cr][xy]|r|width|height|points|viewBox|transform|xmlns|"
    r"(?:fill|stroke)(?:-\w+)*|opacity)\s*=\s*[\"']"
)
# two commands of a path with six numbers or more between and after them, such as M1 2 3l4 5 6
# (?>…), ++ and *+ try one way only: otherwise a long number would take exponential time
_NUMBER = r"(?>[\s,]*[-+]?(?:\d+\.?\d*|\.\d+))"
_PATH = re.compile(
    rf"[MLHVCSQTA](?:{_NUMBER})++[\s,]*+(?:[MLHVCSQTAZ](?:{_NUMBER})*+[\s,]*+)++", re.IGNORECASE
)
_CONTROL_TOKEN = re.compile(
    r"<(?:start_of_turn|end_of_turn|bos|eos|pad|unk|mask|unused\d+|\|im_(?:start|end)\|)>|\[/?INST\]"
)
_ROLE_LINE = re.compile(
    r"^[ \t#*]*(?:user|model|assistant|system|human)[ \t]*:?[ \t*]*$|"  # a line of its own
    r"^[ \t#*]*(?:user|model|assistant|system|human)[ \t]*:\s",  # a line of a dialogue
    re.IGNORECASE | re.MULTILINE,
)
_REPEATED_CHARACTERS = re.compile(r"(?=\S{0,9}\w)(\S{1,10}?)\1{7,}")


class Output(NamedTuple):
    """Text that a model generated."""

    text: str
    is_finished: bool
    """True if the model ended it by a stop token; False if the length limit cut it."""


def classify_output(output: Output, *, svg: str, prompt: str) -> list[str]:
    """Return the names of the output's faults, in the order of `FAULTS`; none for a valid one.

    `svg` is the drawing and `prompt` the sentence before it in the user's turn.

    >>> classify_output(Output("<svg><path", is_finished=False), svg="<svg/>", prompt="Describe:")
    ['unfinished', 'svg_echo']
    """
    found = {
        "unfinished": not output.is_finished,
        "empty": not _WORD.search(output.text),
        "svg_echo": _echoes_svg(output.text, svg),
        "prompt_leak": _leaks_prompt(output.text, prompt),
        "role_leak": bool(_CONTROL_TOKEN.search(output.text) or _ROLE_LINE.search(output.text)),
        "repetition_loop": _has_loop(output.text),
    }
    return [fault for fault in FAULTS if found[fault]]


def score_behaviour(faults: Sequence[Iterable[str]]) -> dict[str, float]:
    """Return the share of valid outputs, and of outputs with each fault (0–1).

    `faults` holds the result of `classify_output` for each output, at least one.
    """
    sets = [set(found) for found in faults]
    shares = {fault: sum(fault in found for found in sets) / len(sets) for fault in FAULTS}
    return {"valid": sum(not found for found in sets) / len(sets), **shares}


def _echoes_svg(text: str, svg: str) -> bool:
    """Return True for a tag, an attribute, path data, or a copy of the drawing's markup."""
    if _TAG.search(text) or _ATTRIBUTE.search(text):
        return True
    if any(len(re.findall(_NUMBER, path)) >= 6 for path in _find_paths(text)):
        return True

    # A caption may quote the words that are written in the drawing.
    markup = " ".join(re.sub(r">[^<]+<", "> <", svg).split())
    copied = " ".join(text.split())
    return any(
        copied[i : i + COPIED_CHARACTERS] in markup
        for i in range(len(copied) - COPIED_CHARACTERS + 1)
    )


def _find_paths(text: str) -> list[str]:
    """Return the runs of path commands with their numbers, except those inside a word."""
    return [
        match[0]
        for match in _PATH.finditer(text)
        if not text[max(0, match.start() - 1) : match.start()].isalpha()
    ]


def _leaks_prompt(text: str, prompt: str) -> bool:
    """Return True if the text repeats LEAKED_WORDS words of the prompt, or a short one whole.

    A prompt of one or two words is too common to count.
    """
    words, prompt_words = (_WORD.findall(each.casefold()) for each in (text, prompt))
    num_words = min(LEAKED_WORDS, len(prompt_words))
    if num_words < 3:
        return False

    runs = {
        tuple(prompt_words[i : i + num_words]) for i in range(len(prompt_words) - num_words + 1)
    }
    return any(tuple(words[i : i + num_words]) in runs for i in range(len(words) - num_words + 1))


def _has_loop(text: str) -> bool:
    """Return True if a unit is repeated without a break.

    Words are a loop if they occur 6 times, or 3 times or more with 12 words in all. A unit of up
    to 10 characters without a space is a loop if it occurs 8 times.
    """
    if _REPEATED_CHARACTERS.search(text):
        return True

    words = _WORD.findall(text.casefold())
    for unit in range(1, min(len(words) // 3, MAX_UNIT_WORDS) + 1):
        num_repeats = max(3, min(6, -(-12 // unit)))
        num_equal = 0  # words in a row that equal the word one unit before
        for i in range(unit, len(words)):
            num_equal = num_equal + 1 if words[i] == words[i - unit] else 0
            if num_equal >= unit * (num_repeats - 1):
                return True
    return False
