"""A loaded model that captions drawings: in batches, or one drawing piece by piece."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from app.evaluation.bootstrap import Array
from app.evaluation.caption_cache import CaptionCache
from app.evaluation.config import EvaluateConfig
from app.evaluation.generate import generate_captions, read_prompts, read_tokens
from app.gemma.activation_checkpoint import apply_memory_config
from app.gemma.base_model import get_tokenizer_source
from app.gemma.config import MemoryConfig, ModelConfig, QuantizationConfig
from app.gemma.load import (
    DTYPES,
    CaptionLoss,
    autocast,
    evaluation_mode,
    load_adapter,
    load_base_model,
    unwrap_gemma,
)
from app.gemma.loss import apply_softcap
from data_pipeline.config import DataConfig
from data_pipeline.stream.encode import IGNORE_INDEX, PromptEncoder

MAX_SCORED_TOKENS = 64
"""Limit of the tokens of a caption with log-probabilities: 64 MB for Gemma 2's vocabulary."""


class Captioner:
    """A model in memory, with its prompt and its limits. Captions are greedy."""

    def __init__(
        self,
        model: nn.Module,
        encoder: PromptEncoder,
        *,
        dtype: torch.dtype,
        max_prompt_tokens: int,
        evaluate: EvaluateConfig,
    ) -> None:
        self._model = model
        self._gemma = unwrap_gemma(model)
        self._gemma.set_attn_implementation("blockwise")
        self._encoder = encoder
        self._dtype = dtype
        self._evaluate = evaluate
        self.max_prompt_tokens = max_prompt_tokens
        """The SVG of a longer prompt is cut (`data.sequence_tokens`)."""

    def count_prompt_tokens(self, svg: str) -> int:
        """Return the length of the prompt of a canonical drawing (tokens)."""
        return len(self._encoder.encode_prompt(svg))

    def caption(
        self, svgs: Sequence[str], *, on_batch: Callable[[dict[int, str]], None] | None = None
    ) -> list[str]:
        """Return the caption of each canonical drawing, in their order.

        Batches are those of `generate_captions`: similar lengths together, within
        `evaluate.generation_batch_size` and `evaluate.max_cache_tokens`. After each batch
        `on_batch` is called with its captions, by the index of the drawing.
        """
        with self._compute():
            return generate_captions(
                self._model,
                self._encoder,
                svgs,
                batch_size=self._evaluate.generation_batch_size,
                max_new_tokens=self._evaluate.max_new_tokens,
                max_prompt_tokens=self.max_prompt_tokens,
                max_cache_tokens=self._evaluate.max_cache_tokens,
                on_batch=on_batch,
            )

    def stream(self, svg: str) -> Iterator[str]:
        """Yield the caption of one canonical drawing in pieces, while the model generates it."""
        return decode_pieces(self._encoder, self._generate_ids(svg))

    def _generate_ids(self, svg: str) -> Iterator[int]:
        """Yield the ids of a caption. No context of torch is open while the caller runs."""
        prompt = self._encoder.encode_prompt(svg, self.max_prompt_tokens)
        max_new_tokens = self._evaluate.max_new_tokens
        cache = CaptionCache(1, len(prompt) + max_new_tokens)
        with self._compute():
            token = read_prompts(self._gemma, cache, [prompt])

        for position in range(len(prompt), len(prompt) + max_new_tokens):
            new_id = int(token)
            if new_id in self._encoder.stop_ids:
                return
            yield new_id
            positions = torch.tensor([[position]], device=token.device)
            with self._compute():
                token = read_tokens(self._gemma, cache, token, positions)

    def measure_losses(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        on_progress: Callable[[int], None] | None = None,
    ) -> Array:
        """Return the sum of the loss (nats) and the number of targets of each pair: [N, 2].

        A pair is a canonical drawing and its caption. Both numbers are 0 if it is longer than
        `max_prompt_tokens`. `on_progress` is called with the number of pairs measured so far.
        """
        model: Any = self._model
        objective = CaptionLoss(model, self._dtype)
        sums = np.zeros((len(pairs), 2))
        for i, pair in enumerate(pairs):
            example = self._encoder.encode(*pair)
            num_tokens = len(example.input_ids)
            if num_tokens <= self.max_prompt_tokens:
                ids = torch.as_tensor(example.input_ids, dtype=torch.int64)[None]
                targets = torch.as_tensor(example.targets, dtype=torch.int64)[None]
                arguments = (ids, torch.arange(num_tokens)[None], targets)
                with self._compute():
                    loss = objective(*(each.to(self._gemma.device) for each in arguments))
                sums[i] = [float(value) for value in loss]
            if on_progress is not None:
                on_progress(i + 1)
        return sums

    @property
    def tokenizer_sha256(self) -> str:
        """Hash of the tokenizer: losses for a token compare under equal ones only."""
        return self._encoder.tokenizer_sha256

    def compute_log_probs(self, svg: str, caption: str) -> Tensor:
        """Return log-probabilities [T, V] at the first tokens of a caption, in fp32 on the host.

        Tokens are those of the loss (caption, `<end_of_turn>`, `<eos>`), at most MAX_SCORED_TOKENS.
        """
        ids, positions = encode_scored_caption(self._encoder, svg, caption)
        gemma, device = self._gemma, self._gemma.device
        with self._compute():
            hidden = gemma.model(
                input_ids=ids.to(device),
                position_ids=torch.arange(ids.shape[1], device=device)[None],
                use_cache=False,
            ).last_hidden_state[0, positions.to(device)]
            logits = hidden @ gemma.lm_head.weight.to(hidden).T
        capped = apply_softcap(logits.float(), gemma.config.final_logit_softcapping)
        return capped.log_softmax(-1).cpu()

    def _compute(self) -> ExitStack:
        """Return a context without gradients and dropout, that computes in the model's dtype."""
        stack = ExitStack()
        stack.enter_context(evaluation_mode(self._model))
        stack.enter_context(autocast(self._gemma.device, self._dtype))
        return stack


def encode_scored_caption(encoder: PromptEncoder, svg: str, caption: str) -> tuple[Tensor, Tensor]:
    """Return (ids [1, S], positions [T] that predict the first tokens of the caption)."""
    example = encoder.encode(svg, caption)
    positions = torch.from_numpy(example.targets != IGNORE_INDEX).nonzero()[:MAX_SCORED_TOKENS, 0]
    num_ids = int(positions[-1]) + 1
    return torch.tensor(example.input_ids[None, :num_ids]), positions


def decode_pieces(encoder: PromptEncoder, ids: Iterable[int]) -> Iterator[str]:
    """Yield the text of ids in pieces, as they come; the pieces joined are the stripped text.

    A character of several bytes, and white space, wait for the next token.
    """
    read: list[int] = []
    text = ""
    for new_id in ids:
        read.append(new_id)
        longer = encoder.decode(read).rstrip("\ufffd").strip()
        if len(longer) > len(text):
            yield longer[len(text) :]
            text = longer

    rest = encoder.decode(read).strip()[len(text) :]
    if rest:
        yield rest


def load_captioner(
    adapter: Path | None,
    *,
    model: ModelConfig,
    quantization: QuantizationConfig,
    memory: MemoryConfig,
    data: DataConfig,
    evaluate: EvaluateConfig,
    precision: str,
    device: torch.device,
) -> Captioner:
    """Load a base model once, with the adapter in a folder; None: the base model alone.

    Raises UserError for a model that cannot be loaded.
    """
    dtype = DTYPES[precision]
    blockwise = model.model_copy(update={"attention": "blockwise"})  # the one that generates
    base_model = load_base_model(blockwise, quantization, device=device, dtype=dtype)
    loaded: nn.Module = base_model if adapter is None else load_adapter(base_model, adapter)
    apply_memory_config(base_model, memory)
    return Captioner(
        loaded,
        PromptEncoder(get_tokenizer_source(model), data.system_prompt),
        dtype=dtype,
        max_prompt_tokens=data.sequence_tokens,
        evaluate=evaluate,
    )
