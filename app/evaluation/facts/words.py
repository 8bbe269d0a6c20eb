"""Words of captions: the vocabulary of claims, and a tokeniser that tags each word."""

import re
from dataclasses import dataclass

from app.evaluation.facts.palette import DARKNESS, LIGHTNESS, PALETTE, SYNONYMS

_NUMBERS = "one two three four five six seven eight nine ten eleven twelve"
NUMBERS = {word: number for number, word in enumerate(_NUMBERS.split(), start=1)}
NUMBERS |= {"single": 1, "pair": 2, "couple": 2}
AT_LEAST = {"several": 3, "many": 4}
MAX_NUMBER = 20  # a larger number is a date, an hour or a name

SIZES = {
    **dict.fromkeys(("small", "tiny", "little"), "small"),
    "medium": "medium",
    **dict.fromkeys(("large", "big", "huge"), "large"),
}
STYLES = {
    **dict.fromkeys(("outlined", "hollow", "unfilled"), "outlined"),
    **dict.fromkeys(("filled", "solid"), "filled"),
}
SHAPES = {
    "circle": "circle", "dot": "dot", "ring": "ring",
    "ellipse": "ellipse", "oval": "ellipse", "square": "square", "rectangle": "rectangle",
    "triangle": "triangle", "diamond": "diamond", "rhombus": "diamond", "star": "star",
    "line": "line", "pentagon": "pentagon", "hexagon": "hexagon", "octagon": "octagon",
    "parallelogram": "parallelogram", "trapezoid": "trapezoid", "pill": "pill", "capsule": "pill",
}  # fmt: skip
PLURALS = {
    **{f"{word}s": shape for word, shape in SHAPES.items()},
    "ellipses": "ellipse",
    "rhombuses": "diamond",
}
# words that are nouns of their own when no noun follows: a fruit, a metal, a flower
ALSO_NOUNS = frozenset(("orange", "lime", "olive", "gold", "silver", "lavender", "violet"))

_DETERMINERS = "a an the this that its each another other of these those"
_NEGATIONS = "no not without never neither nor none isn't aren't"
_HEDGES = """
    maybe perhaps possibly probably might may could seems seem appears appear apparently resembling
"""
_FUNCTION_WORDS = """
    is are was were be there here in on at to of with and from by for as into onto over under it
    them which has have having shows showing made drawn around between inside near beside behind
    next but while surrounded containing contains forming placed
"""
PEN_WORDS = {
    **dict.fromkeys(("hairline", "thin"), "thin"),
    **dict.fromkeys(("light", "fine"), "light"),
    **dict.fromkeys(("regular", "medium"), "medium"),
    **dict.fromkeys(("bold", "heavy", "thick"), "bold"),
}

_PAGE = "(?:page|icon|image|picture|drawing|canvas|scene|frame|illustration)"
_IN_PAGE = rf"(?:[ ]of[ ]the[ ]{_PAGE})?(?![ ]of\b)"
_CORNER = "(?:top|upper|bottom|lower)[ ](?:left|right)"
_EDGE = "(?:top|upper|bottom|lower|left|right)"
_PEN = f"(?:(?:{'|'.join(PEN_WORDS)})[, ]+)*"
_TOKEN = re.compile(
    rf"""(?<!\w)(?:
      (?P<monochrome> black[ ]and[ ]white | monochrome)
    | (?P<relation> (?:to|on)[ ]the[ ](?:left|right)(?:[ ]side)?[ ]of(?![ ]the[ ]{_PAGE})
        | left[ ]of | right[ ]of | above | below | beneath | underneath | inside | within)
    | (?P<place> (?:(?:(?:on|at|to|in)[ ]the[ ])?{_CORNER} | (?:on|at|to|in)[ ]the[ ]{_EDGE})
        (?:[ ](?:corner|side|half))?{_IN_PAGE}
        | (?:in|at)[ ]the[ ](?:cent(?:er|re)|middle){_IN_PAGE} | cent(?:er|re)d)
    | (?P<opposite> opposite)
    | (?P<pen> {_PEN}(?:outlines?|strokes?|contours?)
        (?:[ ]of[ ]medium[ ]width)? | (?:thin|bold)[ ]icon)
    | (?P<half_shape> (?:half|quarter|semi)[ ]?circles?)
    | (?P<times> x\d{{1,2}})
    | (?P<topic> about | like)
    | (?P<word> [a-z]+(?:'[a-z]+)? | \d+)
    )(?!\w) | (?P<stop> [.;:!?]) | (?P<comma> [,()])""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Token:
    """One word or phrase of a caption."""

    tag: str
    text: str
    value: str = ""
    """Meaning in the vocabulary, such as `small` for `tiny`."""
    is_plural: bool = False


def tokenise_caption(caption: str) -> list[Token]:
    """Return the tagged words of a caption.

    >>> [(token.tag, token.value) for token in tokenise_caption("Two tiny circles")]
    [('number', '2'), ('size', 'small'), ('shape', 'circle')]
    """
    text = re.sub(r"\b[a-z]+-pointed\b|[-=/_*]", " ", caption.lower())
    tokens = [_tag(str(match.lastgroup), match[0]) for match in _TOKEN.finditer(text)]
    return [
        _downgrade_modifier(token, tokens[n + 1] if n + 1 < len(tokens) else None)
        for n, token in enumerate(tokens)
    ]


def _tag(tag: str, text: str) -> Token:
    if tag == "word":
        return _tag_word(text)
    if tag == "relation":
        sides = {"beneath": "below", "underneath": "below", "within": "inside"}
        found = re.search(r"left|right|above|inside", text)
        return Token(tag, text, found[0] if found else sides.get(text, "below"))
    if tag == "place":
        return Token(tag, text, _read_place(text))
    if tag == "pen":
        words = [PEN_WORDS[word] for word in re.findall(r"\w+", text) if word in PEN_WORDS]
        return Token(tag, text, " ".join(dict.fromkeys(words)))
    if tag == "times":
        return Token(tag, text, text[1:])
    return Token(tag, text)


def _read_place(text: str) -> str:
    """Return `top left`, `top`, `left` or `centre`."""
    if "cent" in text or "middle" in text:
        return "centre"
    rows = ["top"] if re.search("top|upper", text) else []
    rows += ["bottom"] if re.search("bottom|lower", text) else []
    return " ".join(rows + re.findall("left|right", text))


_WORD_TAGS: tuple[tuple[str, dict[str, str]], ...] = (
    ("number", {word: str(number) for word, number in NUMBERS.items()}),
    ("at_least", {word: str(number) for word, number in AT_LEAST.items()}),
    ("colour", {word: word for word in (*PALETTE, *SYNONYMS)}),
    ("modifier", {word: word for word in (*LIGHTNESS, *DARKNESS)}),
    ("size", SIZES),
    ("style", STYLES),
    ("shape", SHAPES),
)


def _tag_word(text: str) -> Token:
    for tag, words in _WORD_TAGS:
        if text in words:
            return Token(tag, text, words[text])
    if text in PLURALS:
        return Token("shape", text, PLURALS[text], is_plural=True)
    if text.isdigit():
        return Token("number" if 0 < int(text) <= MAX_NUMBER else "word", text, text)
    for tag, group in (
        ("determiner", _DETERMINERS),
        ("negation", _NEGATIONS),
        ("hedge", _HEDGES),
        ("function", _FUNCTION_WORDS),
    ):
        if text in group.split():
            return Token(tag, text)
    if text == "or":
        return Token("or", text)
    return Token("word", text)


def _downgrade_modifier(token: Token, following: Token | None) -> Token:
    """Make `light` a plain word unless a colour follows."""
    is_modifier = following is not None and following.tag == "colour"
    return Token("word", token.text) if token.tag == "modifier" and not is_modifier else token
