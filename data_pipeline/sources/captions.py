"""Read the captions of a drawing from values of any kind, and choose which become records.

A list is several captions. Its items are texts, objects with a key of TEXT_KEYS, or the turns of a
conversation, whose answers are captions. A list in a column of KEYWORD_COLUMNS is one caption. A
text may hold a list or an object as JSON.
"""

import math
import re
import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from data_pipeline.config import PrepareConfig
from data_pipeline.sources.files import detect_encoding
from data_pipeline.sources.json_parser import JSONError, parse_json
from data_pipeline.sources.record import Record, stable_hash

MAX_CAPTION_BYTES = 1 << 20
KEYWORD_COLUMNS = ("keywords", "tags")
TEXT_KEYS = ("caption", "text", "description", "sentence", "raw", "value", "content")
"""In order of preference: the first key of an object in a list whose value is not empty."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_INVISIBLE = f"{string.whitespace}\0\xa0\u200b\u2060\ufeff"
"""Characters that are no caption alone."""
_SPEAKER_KEYS, _WORDS_KEYS = ("role", "from", "speaker"), ("content", "value", "text")  # of a turn
_ASKING = {"user", "human", "system", "developer", "tool", "function"}
_ANSWERING = {"assistant", "gpt", "chatgpt", "model", "bot", "ai"}

Captions = list[tuple[str, object]]
"""Name and value of each caption column of one drawing."""


@dataclass(frozen=True)
class UnreadableCaption:
    """A caption that its source could not read; `reason` describes the value."""

    reason: str


class _NotTextError(Exception):
    """A caption that is not text; the message describes the value."""


def make_records(
    id_: str,
    svg: object,
    captions: Iterable[tuple[str, object]],
    source: str,
    config: PrepareConfig,
    split: str = "",
) -> Iterator[Record]:
    """Yield one record for each caption of the drawing that `config.captions` chooses.

    Records whose first captions are equal, except for case and spacing, are one concept. A drawing
    without a caption yields a record with an empty caption, and with the `problem` of a value that
    is not text. A drawing that is neither text nor bytes yields a record with an empty SVG.
    `prepare` puts both into quarantine.
    """
    texts, problem = read_texts(captions)
    drawing = svg if isinstance(svg, str | bytes) else ""
    if not texts:
        yield Record(id_, drawing, "", source, "", problem, split)
        return

    concept = " ".join(texts[0][1].lower().split())
    if config.captions == "all" and len(texts) > 1:
        for name, text in texts:
            yield Record(f"{id_}:{name}", drawing, text, source, concept, split=split)
        return
    chosen = stable_hash(config.seed, id_) % len(texts) if config.captions == "random" else 0
    yield Record(id_, drawing, texts[chosen][1], source, concept, split=split)


def read_texts(captions: Iterable[tuple[str, object]]) -> tuple[list[tuple[str, str]], str]:
    """Return name and text of each caption that is not empty, and the first problem or ""."""
    texts: list[tuple[str, str]] = []
    problem = ""
    for name, value in _split_lists(captions):
        try:
            text = _read_text(value)
        except _NotTextError as error:
            label = f"the caption {name!r}" if name else "the caption"
            problem = problem or f"{label} is {error}, not text"
        else:
            texts += [(name, text)] if text.strip() else []
    return texts, problem


def _split_lists(captions: Iterable[tuple[str, object]]) -> Iterator[tuple[str, object]]:
    """Yield the name and the value of each caption, and each item of a list as one caption."""
    for name, raw in captions:
        value = _parse_json(raw)
        if not isinstance(value, list):
            yield name, value
        elif name.lower() in KEYWORD_COLUMNS:
            yield name, ", ".join(word for word in value if isinstance(word, str) and word)
        else:
            prefix = f"{name}:" if name else ""
            for number, item in enumerate(value):
                yield f"{prefix}{number}", _unwrap_item(item)


def _parse_json(value: object) -> object:
    """Return the list or object that a text holds as JSON; return any other value as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        parsed = parse_json(value)
    except JSONError:
        return value
    items = parsed if isinstance(parsed, list) else [parsed]
    return parsed if any(item and isinstance(item, str | dict) for item in items) else value


def _unwrap_item(item: object) -> object:
    """Return the text of an object in a list, or None for a turn that is not an answer.

    An object without a known key is returned as it is.
    """
    if not isinstance(item, dict):
        return item
    speakers = [str(item[key]).lower() for key in _SPEAKER_KEYS if item.get(key) is not None]
    words = [key for key in _WORDS_KEYS if item.get(key) is not None]
    if speakers and words:
        if speakers[0] in _ANSWERING:
            return _join_parts(item[words[0]])
        if speakers[0] in _ASKING or words[0] != "text":  # the text may be of a captioning model
            return None
    texts = [item[key] for key in TEXT_KEYS if key in item]
    return next((text for text in texts if text and not is_missing(text)), None) if texts else item


def _join_parts(words: object) -> object:
    """Return the words of an answer, which may be parts {"type": "text", "text"}."""
    if not isinstance(words, list):
        return words
    parts = [part.get("text") if isinstance(part, dict) else part for part in words]
    return " ".join(part for part in parts if isinstance(part, str))


def _read_text(value: object) -> str:
    """Return the text of one value, empty if it is missing. Raises _NotTextError."""
    if is_missing(value):
        return ""
    if isinstance(value, UnreadableCaption):
        raise _NotTextError(value.reason)
    if isinstance(value, bytes):
        value = decode_caption(value)
    if isinstance(value, str):
        if "</svg>" in value:
            raise _NotTextError("a drawing")
        if "\ufffd" in value:
            raise _NotTextError("in another encoding than UTF-8")
        if _SURROGATE.search(value):
            raise _NotTextError("broken Unicode (a lone surrogate)")
        return value if value.strip(_INVISIBLE) else ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # JSON writers turn the caption "5" into a number
    raise _NotTextError(_describe(value))


def is_missing(value: object) -> bool:
    """Return whether the value stands for no value: null, or NaN, which pandas writes instead."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _describe(value: object) -> str:
    if isinstance(value, dict):
        return f"an object with {', '.join(map(str, value)) or 'no key'}"
    if isinstance(value, list):
        return "a list in a list"
    return f"{type(value).__name__} {value}"


def decode_caption(data: bytes) -> str:
    """Decode the text of a caption in UTF-8, or in the Unicode encoding of its byte order mark.

    A byte that is not of the encoding becomes U+FFFD, which no caption may have.
    """
    return data.decode(detect_encoding(data), "replace").strip()
