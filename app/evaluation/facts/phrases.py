"""Phrases of captions: the things that a caption names, with their attributes and relations."""

from dataclasses import dataclass, field

from app.evaluation.facts.words import ALSO_NOUNS, Token, tokenise_caption

OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}


# tags of tokens before which a word is an adjective or the first part of a noun
_BEFORE_NOUN = frozenset(("word", "shape", "half_shape", "colour", "modifier", "size", "style"))


def _is_noun(token: Token) -> bool:
    """Return whether the token makes a compound of a shape's name before it."""
    is_noun = token.tag == "word" and not token.text.endswith(("ing", "ed", "ly"))
    return is_noun or token.tag == "shape"


@dataclass(eq=False)
class Thing:
    """One noun phrase, such as `two small red circles on the left`."""

    noun: str = ""
    shape: str = ""
    """Shape in the vocabulary; empty for other nouns."""
    count: int | None = None
    is_at_least: bool = False
    """Whether the count is a lower limit, as in `several` or in a plural without a number."""
    count_text: str = ""
    colours: list[tuple[str, str]] = field(default_factory=list)
    """Pairs of modifier (may be empty) and colour name."""
    size: str = ""
    style: str = ""
    place: str = ""
    is_doubtful: bool = False
    """Whether the caption denies it or is not sure."""
    is_known: bool = False
    """Whether it may be a thing that the caption has named before: `the circle`."""

    @property
    def is_empty(self) -> bool:
        """Return whether nothing was said yet."""
        return not (self.noun or self.count or self.colours or self.size or self.style)


@dataclass(frozen=True)
class Relation:
    """Place of one thing relative to another."""

    subject: Thing
    side: str
    """left, right, above, below or inside."""
    object: Thing


@dataclass
class Phrases:
    """Parsed caption."""

    things: list[Thing] = field(default_factory=list)
    relations: list[Relation] = field(default_factory=list)
    pens: list[tuple[str, str]] = field(default_factory=list)
    """Text and width of each phrase about outlines; the width may be empty."""
    is_monochrome: bool = False


def parse_caption(caption: str) -> Phrases:
    """Return the things, relations and pens that a caption names."""
    parser = _Parser(tokenise_caption(caption))
    parser.parse()
    return parser.phrases


class _Parser:
    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.position = 0
        self.phrases = Phrases()
        self.pending = Thing()
        self.modifier = ""
        self.has_determiner = False
        self.is_doubtful = False  # until the end of the clause
        self.is_predicate = False  # attributes belong to the last thing
        self.is_topic = False  # `about …` says nothing on the drawing
        self.relation: tuple[Thing | None, str, bool] | None = None

    def parse(self) -> None:
        """Read all tokens."""
        for position, token in enumerate(self.tokens):
            self.position = position
            if not self.is_topic or token.tag == "stop":
                getattr(self, f"_read_{token.tag}")(token)
        self._close()

    @property
    def last(self) -> Thing | None:
        return self.phrases.things[-1] if self.phrases.things else None

    def _peek(self) -> Token | None:
        following = self.position + 1
        return self.tokens[following] if following < len(self.tokens) else None

    # words before a noun

    def _read_number(self, token: Token) -> None:
        before = self.tokens[self.position - 1] if self.position else None
        if before is not None and before.tag == "shape" and self.last is not None:
            if before.is_plural:  # `dots nine`, the name of an icon
                self.last.count, self.last.is_at_least = int(token.value), False
                self.last.count_text = token.text
            return
        if not self.pending.is_empty:
            self._close()
        self.pending.count = int(token.value)
        self.pending.count_text = token.text

    def _read_at_least(self, token: Token) -> None:
        self._read_number(token)
        self.pending.is_at_least = True

    def _read_modifier(self, token: Token) -> None:
        self.modifier = token.value

    def _read_colour(self, token: Token) -> None:
        self.pending.colours.append((self.modifier, token.value))
        self.modifier = ""

    def _read_size(self, token: Token) -> None:
        self.pending.size = token.value

    def _read_style(self, token: Token) -> None:
        self.pending.style = token.value

    def _read_determiner(self, token: Token) -> None:
        if token.text != "of":
            self._close()
            self.has_determiner = True
            self.pending.is_known = token.text in ("the", "this", "that", "its", "each")
            self.is_predicate = False

    def _read_negation(self, token: Token) -> None:
        self._close()
        self.is_doubtful = True

    _read_hedge = _read_negation

    def _read_or(self, token: Token) -> None:
        if self.pending.is_empty:
            if self.last is not None:
                self.last.is_doubtful = True
        else:
            self.pending.is_doubtful = True

    def _read_topic(self, token: Token) -> None:
        self._close()
        self.is_topic = True

    # nouns

    def _read_shape(self, token: Token) -> None:
        following = self._peek()
        if following is not None and not token.is_plural and _is_noun(following):
            self._read_word(token)  # `star sign`, `diamond ring`: the second word is the noun
            return
        self.pending.shape = token.value
        self.pending.noun = token.text
        if token.is_plural and self.pending.count is None:
            self.pending.count, self.pending.is_at_least = 2, True
            self.pending.count_text = "plural"
        self._close()

    def _read_half_shape(self, token: Token) -> None:
        self.pending.noun = token.text
        self._close()

    def _read_word(self, token: Token) -> None:
        following = self._peek()
        has_noun_next = following is not None and following.tag in _BEFORE_NOUN
        if self.pending.is_empty or has_noun_next:
            return
        self.pending.noun = token.text
        self._close()

    # after a noun

    def _read_times(self, token: Token) -> None:
        if self.last is not None:
            self.last.count, self.last.is_at_least = int(token.value), False
            self.last.count_text = token.text

    def _read_function(self, token: Token) -> None:
        if token.text == "and":
            following = self._peek()
            if following is not None and following.tag in ("colour", "size", "style", "modifier"):
                return
            self._close()
            return
        self._close()
        if token.text in ("is", "are", "in"):
            self.is_predicate = True
        elif token.text in ("with", "there"):
            self.is_predicate = False

    def _read_comma(self, token: Token) -> None:
        self._close()
        self.is_predicate = True
        if token.text == ",":
            self.is_doubtful = False

    def _read_stop(self, token: Token) -> None:
        self._close()
        self.is_predicate = self.is_doubtful = self.is_topic = False
        self.relation = None

    def _read_place(self, token: Token) -> None:
        self._close()
        if self.last is not None and not self.last.place:
            self.last.place = token.value

    def _read_opposite(self, token: Token) -> None:
        if len(self.phrases.things) > 1:
            before, last = self.phrases.things[-2:]
            last.place = OPPOSITE.get(before.place, "")

    def _read_relation(self, token: Token) -> None:
        self._close()
        following = self._peek()
        refers_back = following is not None and following.text in ("it", "them", "this")
        self.relation = (self.last, token.value, refers_back)

    # statements on the whole drawing

    def _read_pen(self, token: Token) -> None:
        self._close()
        for width in token.value.split() or [""]:
            self.phrases.pens.append((token.text, width))

    def _read_monochrome(self, token: Token) -> None:
        self.phrases.is_monochrome = True

    # ends of phrases

    def _close(self) -> None:
        """End the noun phrase."""
        thing, has_determiner = self.pending, self.has_determiner
        self.pending, self.has_determiner, self.modifier = Thing(), False, ""
        if thing.is_empty:
            return
        if not thing.noun:
            self._close_attributes(thing, has_determiner)
            return

        thing.is_doubtful |= self.is_doubtful
        before = self.last
        self.phrases.things.append(thing)
        self.is_predicate = False
        if self.relation is None:
            return
        subject, side, refers_back = self.relation
        if subject is None:
            self.relation = (thing, side, True)  # `above the circle, a square`
            return
        self.relation = None
        if refers_back:
            self.phrases.relations.append(Relation(thing, side, subject))
        elif before is not None:
            self.phrases.relations.append(Relation(subject, side, thing))

    def _close_attributes(self, thing: Thing, has_determiner: bool) -> None:
        """Add attributes without a noun to the last thing, or to the drawing."""
        token = self.tokens[self.position]
        is_group = token.tag == "place" or token.text == "in"
        if self.is_predicate and self.last is not None:
            self.last.colours += thing.colours
            self.last.size = thing.size or self.last.size
            self.last.style = thing.style or self.last.style
            self.last.is_doubtful |= self.is_doubtful or thing.is_doubtful
            return

        thing.colours = [
            (modifier, name)
            for modifier, name in thing.colours
            if modifier or name not in ALSO_NOUNS or not has_determiner
        ]
        if thing.count is not None and self.last is not None and self.last.shape and is_group:
            # `two squares on the left, three on the right`
            thing.shape, thing.noun, thing.is_known = self.last.shape, self.last.noun, True
            self.phrases.things.append(thing)
            return
        thing.count = None
        if thing.colours or thing.style:
            thing.is_doubtful |= self.is_doubtful
            thing.size = ""
            self.phrases.things.append(thing)
