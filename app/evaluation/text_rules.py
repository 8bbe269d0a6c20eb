"""Rules about a text, as predicates: sentences, words, beginnings, signs, JSON and others."""

import json
import re
from collections.abc import Callable

Rule = Callable[[str], bool]

_COLOUR = re.compile(
    r"\b(?:dark|light|pale)?(?:aqua|azure|beige|black|blue|bronze|brown|burgundy|crimson|cyan|"
    r"fuchsia|gold|golden|gray|green|grey|indigo|ivory|khaki|lavender|lilac|magenta|maroon|mauve|"
    r"navy|orange|pink|purple|red|scarlet|silver|tan|teal|turquoise|violet|white|yellow|"
    r"(?:brown|gray|green|grey|pink|yellow|redd|blu|purpl|whit|orang)ish)s?\b",
    re.IGNORECASE,
)
_NUMBER = re.compile(
    r"\d|\b(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|dozen|single|"
    r"both|pair)\b",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W_]+(?:['’.-][^\W_]+)*")
_ABBREVIATIONS = ("e.g.", "i.e.", "etc.", "mr.", "mrs.", "ms.", "dr.", "st.", "vs.", "approx.")


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text.

    A sentence ends at `.`, `!`, `?` or `…` (also inside a closing quote or bracket) before a space
    and a word that does not begin with a small letter, except after an abbreviation. In a text
    without capital letters, the next word may be any. A sentence also ends at a line break.

    >>> split_sentences("A dot, e.g. a pixel. It is 1.5 wide! Why?")
    ['A dot, e.g. a pixel.', 'It is 1.5 wide!', 'Why?']
    """
    next_word = "" if text.islower() else "(?![a-zß-ÿ])"
    end_of_sentence = re.compile(r"(?<![.!?…])[.!?…]+[\"'”’)\]*]*\s++" + next_word)

    sentences = []
    for line in text.splitlines():
        start = 0
        for end in end_of_sentence.finditer(line):
            last_word = line[start : end.end()].split()[-1].lower()
            if last_word.lstrip("(\"'") not in _ABBREVIATIONS:
                sentences.append(line[start : end.end()])
                start = end.end()
        sentences.append(line[start:])
    return [sentence.strip() for sentence in sentences if _WORD.search(sentence)]


def count_words(text: str) -> int:
    """Return the number of words; `three-legged` and `it's` are one each."""
    return len(_WORD.findall(text))


def has_sentences(num: int) -> Rule:
    """Return the rule of exactly `num` sentences."""
    return lambda text: len(split_sentences(text)) == num


def has_words(least: int, most: int | None = None) -> Rule:
    """Return the rule of `least` to `most` words (None: any number)."""
    return lambda text: least <= count_words(text) and (most is None or count_words(text) <= most)


def begins_with(start: str) -> Rule:
    """Return the rule that a text begins with these words, in any case, as whole words."""
    pattern = re.compile(re.escape(start) + r"(?!\w)", re.IGNORECASE)
    return lambda text: bool(pattern.match(text.strip()))


def ends_with(end: str) -> Rule:
    """Return the rule that a text ends with these characters, in any case; quotes may follow."""
    return lambda text: text.strip().strip("\"'”’").lower().endswith(end.lower())


def lacks(pattern: str) -> Rule:
    """Return the rule that a text has no match of a pattern, in any case."""
    compiled = re.compile(pattern, re.IGNORECASE)
    return lambda text: not compiled.search(text)


def uses(pattern: str, times: int) -> Rule:
    """Return the rule that a text has `times` matches of a pattern or more, in any case."""
    compiled = re.compile(pattern, re.IGNORECASE)
    return lambda text: len(compiled.findall(text)) >= times


def names_colour(text: str) -> bool:
    """Return True if the text has the name of a colour; `dark-blue` and `reddish` count."""
    return bool(_COLOUR.search(text))


def names_number(text: str) -> bool:
    """Return True if the text has a number, in digits or as a word."""
    return bool(_NUMBER.search(text))


def is_quoted(text: str) -> bool:
    """Return True if the text is one double-quoted text."""
    stripped = text.strip()
    is_pair = stripped[:1] + stripped[-1:] in {'""', "“”"}
    return is_pair and bool(_WORD.search(stripped)) and not re.search('["“”]', stripped[1:-1])


def has_bullets(num: int) -> Rule:
    """Return the rule of `num` lines that begin with `* `, and no other line with words."""

    def is_followed(text: str) -> bool:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return len(lines) == num and all(re.match(r"\*\s+\S", line) for line in lines)

    return is_followed


def has_keywords(num: int) -> Rule:
    """Return the rule of `num` entries of 1 to 3 words with commas between them."""

    def is_followed(text: str) -> bool:
        entries = text.strip().rstrip(".").split(",")
        return len(entries) == num and all(1 <= count_words(entry) <= 3 for entry in entries)

    return is_followed


def is_json_with(*keys: str) -> Rule:
    """Return the rule of a JSON object with exactly these keys, each with a value.

    As in IFEval, the object may be in a Markdown code block.
    """

    def is_followed(text: str) -> bool:
        fenced = re.fullmatch(
            r"```(?:json)?\s*(.*?)\s*```", text.strip(), re.DOTALL | re.IGNORECASE
        )
        try:
            value = json.loads(fenced[1] if fenced else text)
        except (ValueError, RecursionError):
            return False
        return isinstance(value, dict) and set(value) == set(keys) and all(value.values())

    return is_followed
