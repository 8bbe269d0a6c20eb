"""One (svg, caption) pair → token ids in Gemma 2's chat format, of which no byte of the pair can forge a part.

Template and content are encoded apart, by two tokenizer instances: the template's knows the control tokens,
the content's does not have them at all. Knows no Ray and no model.
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

IGNORE_INDEX = -100
"""Target of a position that is not trained on (the value that torch's cross-entropy ignores)."""

# Gemma's vocabulary also lists runs of white space and HTML tags as added tokens. They are plain text to the
# model; everything else among the added tokens (<bos>, <start_of_turn>, <unused7>, <mask>, …) is control.
_PLAIN_ADDED = re.compile(
    r"\s+|▁+|</?(?:table|caption|thead|tbody|tfoot|tr|th|td|h[1-6]|blockquote|strong|em|b|i|u|s|sub|sup|code)>"
)


class Example(NamedTuple):
    """`input_ids` [n] int32, and `targets` [n] int32: what position t must predict, or IGNORED."""

    input_ids: npt.NDArray[np.int32]
    targets: npt.NDArray[np.int32]

    @classmethod
    def from_ids(cls, input_ids: npt.NDArray[np.int32], num_prompt_tokens: int) -> Self:
        """All that follows the prompt is trained on."""
        targets = np.full(len(input_ids), IGNORE_INDEX, np.int32)
        targets[num_prompt_tokens - 1 : -1] = input_ids[num_prompt_tokens:]
        return cls(input_ids, targets)

    @property
    def num_prompt_tokens(self) -> int:
        return int((self.targets != IGNORE_INDEX).argmax()) + 1


class PromptEncoder:
    """Encodes prompts and whole examples; decodes captions.

    `tokenizer` is a folder that holds `tokenizer.json`, or a hub name. Raises DataError when it is neither, or
    when it lacks one of Gemma 2's control tokens.
    """

    def __init__(self, tokenizer: str, system_prompt: str) -> None:
        self._template = _load(tokenizer)
        self._content = _without_control_tokens(self._template)
        self.pad_id = self._control_id("<pad>")
        self.stop_ids = (self._control_id("<end_of_turn>"), self._control_id("<eos>"))
        self._control_id("<start_of_turn>")
        opening = self._ids(self._template, "<start_of_turn>user\n")
        self._before_svg = [
            self._control_id("<bos>"), *opening, *self._ids(self._content, f"{system_prompt}\n\n")
        ]  # fmt: skip
        self._after_svg = self._ids(self._template, "\n<end_of_turn>\n<start_of_turn>model\n")

    def prompt(self, svg: str) -> list[int]:
        """Ids up to and including `<start_of_turn>model\\n`."""
        return [*self._before_svg, *self._ids(self._content, svg), *self._after_svg]

    def encode(self, svg: str, caption: str) -> Example:
        """The whole example; only the model's turn (caption, `<end_of_turn>`, `<eos>`) is trained on."""
        return self.encode_batch([(svg, caption)])[0]

    def encode_batch(self, pairs: Sequence[tuple[str, str]]) -> list[Example]:
        """`encode` for many (svg, caption) pairs at once, several times faster."""
        texts = [text for pair in pairs for text in pair]
        encoded = self._content.encode_batch_fast(texts, add_special_tokens=False)
        examples = []
        for svg, caption in zip(encoded[::2], encoded[1::2], strict=True):
            prompt = [*self._before_svg, *svg.ids, *self._after_svg]
            ids = np.array([*prompt, *caption.ids, *self.stop_ids], dtype=np.int32)
            examples.append(Example.from_ids(ids, len(prompt)))
        return examples

    def truncate(self, example: Example, max_tokens: int) -> Example | None:
        """The example without the end of its SVG; None if template and caption alone are longer than max_tokens."""
        num_prompt_tokens = example.num_prompt_tokens
        svg_end = num_prompt_tokens - len(self._after_svg)
        num_cut = len(example.input_ids) - max_tokens
        if num_cut > svg_end - len(self._before_svg):
            return None
        kept = [example.input_ids[: svg_end - num_cut], example.input_ids[svg_end:]]
        return Example.from_ids(np.concatenate(kept), num_prompt_tokens - num_cut)

    @property
    def min_tokens(self) -> int:
        """Tokens of an example whose SVG and caption are empty; no example has fewer."""
        return len(self._before_svg) + len(self._after_svg) + len(self.stop_ids)

    @cached_property
    def fingerprint(self) -> bytes:
        """32 bytes that differ where the same pair may get other tokens: tokenizer, template, library."""
        template = [self._before_svg, self._after_svg, self.stop_ids]
        parts = (self._content.to_str(), json.dumps(template), tokenizers.__version__)
        return hashlib.blake2b("\0".join(parts).encode(), digest_size=32).digest()

    def decode(self, ids: Iterable[int]) -> str:
        """Text of generated ids, control tokens left out."""
        return str(self._template.decode(list(ids), skip_special_tokens=True))

    def _control_id(self, token: str) -> int:
        index = self._template.token_to_id(token)
        if index is None:
            raise DataError(
                f"the tokenizer has no token {token}: give the tokenizer of a Gemma 2 model"
            )
        return int(index)

    @staticmethod
    def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)


def _load(tokenizer: str) -> Tokenizer:
    file = Path(tokenizer) / "tokenizer.json"
    if file.is_file():
        return Tokenizer.from_file(str(file))
    if Path(tokenizer).exists():
        raise DataError(
            f"{tokenizer} holds no tokenizer.json: save the model's tokenizer beside its weights"
        )
    try:
        return Tokenizer.from_pretrained(tokenizer)
    except Exception as error:  # the hub client raises bare Exceptions of many kinds
        raise DataError(
            f"no tokenizer {tokenizer!r}: it is neither a local folder nor to be had from the hub ({error})"
        ) from error


def _without_control_tokens(template: Tokenizer) -> Tokenizer:
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
