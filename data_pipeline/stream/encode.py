"""Encode (svg, caption) pairs as token ids in Gemma 2's chat format.

Two tokenizer instances encode the template and the content separately. Only the tokenizer of the
template has the control tokens. No byte of an SVG or caption can therefore become a control token.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import Tokenizer

from data_pipeline.errors import DataError
from data_pipeline.fetch import fetch_folder

IGNORE_INDEX = -100
"""Target of a position that is not trained on: the value that torch's cross-entropy ignores."""

# Gemma's vocabulary also lists runs of white space and HTML tags as added tokens. They are plain
# text to the model. All other added tokens (<bos>, <start_of_turn>, <unused7>, <mask>, …) are
# control tokens.
_HTML_TAGS = (
    "table|caption|thead|tbody|tfoot|tr|th|td|h[1-6]|blockquote|strong|em|b|i|u|s|sub|sup|code"
)
_PLAIN_ADDED = re.compile(rf"\s+|▁+|</?(?:{_HTML_TAGS})>")


class Example(NamedTuple):
    """Token ids of one record, and the targets of the loss."""

    input_ids: npt.NDArray[np.int32]
    """[n]"""
    targets: npt.NDArray[np.int32]
    """[n]; the token that follows position t, or IGNORE_INDEX."""

    @classmethod
    def from_ids(cls, input_ids: npt.NDArray[np.int32], num_prompt_tokens: int) -> Self:
        """Return the example whose tokens after the prompt are trained on."""
        targets = np.full(len(input_ids), IGNORE_INDEX, np.int32)
        targets[num_prompt_tokens - 1 : -1] = input_ids[num_prompt_tokens:]
        return cls(input_ids, targets)

    @property
    def num_prompt_tokens(self) -> int:
        """Number of tokens before the model's turn."""
        return int((self.targets != IGNORE_INDEX).argmax()) + 1


class PromptEncoder:
    """Encode prompts and whole examples; decode captions.

    `tokenizer` is a folder or URI with a `tokenizer.json`, or a hub name such as `owner/name` or
    `owner/name@revision`. Raises DataError if it is neither, or if the tokenizer lacks one of
    Gemma 2's control tokens.
    """

    def __init__(self, tokenizer: str, system_prompt: str) -> None:
        self._template = _load_tokenizer(tokenizer)
        self._content = _remove_control_tokens(self._template)

        # control tokens
        self.pad_id = self._control_id("<pad>")
        self.stop_ids = (self._control_id("<end_of_turn>"), self._control_id("<eos>"))
        self._control_id("<start_of_turn>")

        # prompt template
        user_turn = _encode_text(self._template, "<start_of_turn>user\n")
        self._before_system_prompt = [self._control_id("<bos>"), *user_turn]
        self._before_svg = self._encode_before_svg(system_prompt)
        self._after_svg = _encode_text(self._template, "\n<end_of_turn>\n<start_of_turn>model\n")

    def encode_prompt(
        self, svg: str, max_tokens: int | None = None, *, system_prompt: str | None = None
    ) -> list[int]:
        """Return the ids up to and including `<start_of_turn>model\\n`.

        The end of the SVG is cut if the prompt would be longer than `max_tokens`. `system_prompt`
        replaces that of the encoder.
        """
        before_svg = self._before_svg
        if system_prompt is not None:
            before_svg = self._encode_before_svg(system_prompt)
        svg_ids = _encode_text(self._content, svg)
        if max_tokens is not None:
            svg_ids = svg_ids[: max(0, max_tokens - len(before_svg) - len(self._after_svg))]
        return [*before_svg, *svg_ids, *self._after_svg]

    def encode(self, svg: str, caption: str) -> Example:
        """Return the whole example.

        Only the model's turn is trained on: caption, `<end_of_turn>` and `<eos>`.
        """
        return self.encode_batch([(svg, caption)])[0]

    def encode_batch(self, pairs: Sequence[tuple[str, str]]) -> list[Example]:
        """Encode many (svg, caption) pairs at once, several times faster than `encode`."""
        texts = [text for pair in pairs for text in pair]
        encoded = self._content.encode_batch_fast(texts, add_special_tokens=False)

        examples = []
        for svg, caption in zip(encoded[::2], encoded[1::2], strict=True):
            prompt = [*self._before_svg, *svg.ids, *self._after_svg]
            ids = np.array([*prompt, *caption.ids, *self.stop_ids], dtype=np.int32)
            examples.append(Example.from_ids(ids, len(prompt)))

        return examples

    def truncate(self, example: Example, max_tokens: int) -> Example | None:
        """Return the example without the end of its SVG, max_tokens long.

        Return None if template and caption alone are longer than max_tokens.
        """
        num_prompt_tokens = example.num_prompt_tokens
        svg_end = num_prompt_tokens - len(self._after_svg)
        num_cut = len(example.input_ids) - max_tokens
        if num_cut > svg_end - len(self._before_svg):
            return None
        kept = [example.input_ids[: svg_end - num_cut], example.input_ids[svg_end:]]
        return Example.from_ids(np.concatenate(kept), num_prompt_tokens - num_cut)

    @property
    def min_tokens(self) -> int:
        """Number of tokens of the shortest example: its SVG and its caption are empty."""
        return len(self._before_svg) + len(self._after_svg) + len(self.stop_ids)

    @cached_property
    def tokenizer_sha256(self) -> str:
        """Hash of the tokenizer alone."""
        return hashlib.sha256(self._template.to_str().encode()).hexdigest()

    @property
    def max_id(self) -> int:
        """Largest token id."""
        return max(self._template.get_vocab().values())

    @cached_property
    def fingerprint(self) -> bytes:
        """32-byte hash of all that a pair's tokens depend on: tokenizer, template, library."""
        template = [self._before_svg, self._after_svg, self.stop_ids]
        parts = (self._content.to_str(), json.dumps(template), tokenizers.__version__)
        return hashlib.blake2b("\0".join(parts).encode(), digest_size=32).digest()

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of generated ids, without control tokens."""
        return str(self._template.decode(list(ids), skip_special_tokens=True))

    def _encode_before_svg(self, system_prompt: str) -> list[int]:
        system_ids = _encode_text(self._content, f"{system_prompt}\n\n")
        return [*self._before_system_prompt, *system_ids]

    def _control_id(self, token: str) -> int:
        index = self._template.token_to_id(token)
        if index is None:
            raise DataError(
                f"the tokenizer has no token {token}: give the tokenizer of a Gemma 2 model"
            )
        return int(index)


def build_chat_template(system_prompt: str) -> str:
    """Return a Jinja template, for transformers and others, that renders the prompt of training.

    The message of the user is the canonical SVG, without white space around it. A message of the
    role `system` replaces the system prompt. A message of the assistant is its caption.
    """
    return (
        "{{ '<bos>' }}"
        "{% set ns = namespace(system=" + json.dumps(system_prompt, ensure_ascii=False) + ") %}"
        "{% for message in messages %}"
        "{% if message.role == 'system' %}{% set ns.system = message.content %}"
        "{% elif message.role == 'user' %}"
        "{{ '<start_of_turn>user\\n' + ns.system + '\\n\\n' + message.content | trim }}"
        "{{ '\\n<end_of_turn>\\n' }}"
        "{% else %}"
        "{{ '<start_of_turn>model\\n' + message.content + '<end_of_turn><eos>' }}"
        "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
    )


def _encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def _load_tokenizer(tokenizer: str) -> Tokenizer:
    if "://" in tokenizer:
        tokenizer = fetch_folder(tokenizer)
    file = Path(tokenizer) / "tokenizer.json"
    if file.is_file():
        return Tokenizer.from_file(str(file))
    if Path(tokenizer).exists():
        raise DataError(
            f"{tokenizer} holds no tokenizer.json: save the model's tokenizer beside its weights"
        )

    name, _, revision = tokenizer.partition("@")
    try:
        return Tokenizer.from_pretrained(name, revision=revision or "main")
    except Exception as error:  # the hub client raises bare Exceptions of many kinds
        raise DataError(
            f"no tokenizer {tokenizer!r}: "
            f"it is neither a local folder nor a tokenizer on the hub ({error})"
        ) from error


def _remove_control_tokens(template: Tokenizer) -> Tokenizer:
    """Return a copy of the tokenizer that encodes control tokens as plain text."""
    spec = json.loads(template.to_str())
    spec["added_tokens"] = [
        token
        for token in spec["added_tokens"]
        if not token["special"] and _PLAIN_ADDED.fullmatch(token["content"])
    ]
    content = Tokenizer.from_str(json.dumps(spec))
    content.no_truncation()
    content.no_padding()
    return content
