"""Captions by vLLM, behind the methods of `Captioner` that `caption` and `serve` call.

Never run: vLLM needs a GPU. The tests end where vLLM would be imported.
"""

import importlib
import importlib.util
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from app.errors import UserError
from app.evaluation.config import EvaluateConfig
from app.gemma.base_model import get_tokenizer_source, load_model_config, resolve_model_source
from app.gemma.config import ModelConfig, QuantizationConfig
from data_pipeline.config import DataConfig
from data_pipeline.stream.encode import PromptEncoder

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values of vLLM's `max_lora_rank` (vllm/config/lora.py, 0.14)."""
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


class VllmCaptioner:
    """A base model and an adapter in vLLM. Captions are greedy."""

    def __init__(
        self,
        adapter: Path,
        *,
        model: ModelConfig,
        quantization: QuantizationConfig,
        data: DataConfig,
        evaluate: EvaluateConfig,
        precision: str,
    ) -> None:
        """Load the model. Raises UserError if this machine has no vLLM or no GPU."""
        arguments = build_engine_arguments(
            adapter,
            model=model,
            quantization=quantization,
            data=data,
            evaluate=evaluate,
            precision=precision,
        )
        if importlib.util.find_spec("vllm") is None or not torch.cuda.is_available():
            raise UserError(
                "evaluate.caption_engine=vllm needs vLLM and a GPU, and one of them is missing "
                "here: run `pip install vllm` on each GPU node, or set evaluate.caption_engine=own"
            )
        vllm: Any = importlib.import_module("vllm")
        request: Any = importlib.import_module("vllm.lora.request")

        self._engine = vllm.LLM(**arguments)
        self._encoder = PromptEncoder(get_tokenizer_source(model), data.system_prompt)
        self._sampling = vllm.SamplingParams(
            temperature=0.0,
            max_tokens=evaluate.max_new_tokens,
            stop_token_ids=list(self._encoder.stop_ids),
            detokenize=False,
        )
        self._lora = request.LoRARequest("adapter", 1, str(adapter))
        self.max_prompt_tokens = data.sequence_tokens
        """The SVG of a longer prompt is cut (`data.sequence_tokens`)."""

    def count_prompt_tokens(self, svg: str) -> int:
        """Return the length of the prompt of a canonical drawing (tokens)."""
        return len(self._encoder.encode_prompt(svg))

    def caption(
        self, svgs: Sequence[str], *, on_batch: Callable[[dict[int, str]], None] | None = None
    ) -> list[str]:
        """Return the caption of each canonical drawing, in their order. All are one batch."""
        limit = self.max_prompt_tokens
        prompts = [{"prompt_token_ids": self._encoder.encode_prompt(svg, limit)} for svg in svgs]
        answers = self._engine.generate(
            prompts, self._sampling, lora_request=self._lora, use_tqdm=False
        )
        captions = [self._decode(answer.outputs[0].token_ids) for answer in answers]
        if on_batch is not None:
            on_batch(dict(enumerate(captions)))
        return captions

    def stream(self, svg: str) -> Iterator[str]:
        """Yield the caption of one canonical drawing, in one piece."""
        yield from self.caption([svg])

    def _decode(self, ids: Sequence[int]) -> str:
        """Return the text before the first control token that ends an answer."""
        stop_ids = self._encoder.stop_ids
        return self._encoder.decode(itertools.takewhile(lambda i: i not in stop_ids, ids)).strip()


def build_engine_arguments(
    adapter: Path,
    *,
    model: ModelConfig,
    quantization: QuantizationConfig,
    data: DataConfig,
    evaluate: EvaluateConfig,
    precision: str,
) -> dict[str, Any]:
    """Return the arguments of `vllm.LLM`. Imports no vLLM.

    Raises UserError if vLLM cannot hold the adapter in the folder, or compute as the training did.
    """
    rank = _find_rank(adapter)
    limit = load_model_config(model).max_position_embeddings
    num_tokens = data.sequence_tokens + evaluate.max_new_tokens
    own = "set evaluate.caption_engine=own"
    if rank > LORA_RANKS[-1]:
        raise UserError(
            f"the adapter {adapter} has rank {rank}, and vLLM takes ranks up to {LORA_RANKS[-1]}: "
            f"{own}, or merge it with `export --merged`"
        )
    if not (model.attention_softcap and model.logit_softcap):
        raise UserError(
            "vLLM takes both softcaps from the base model's config, and the training switched off "
            f"model.attention_softcap or model.logit_softcap: {own}"
        )
    if quantization.kind == "fp4":
        raise UserError(f"vLLM quantises to nf4, and quantization.kind=fp4: {own}")
    if num_tokens > limit:
        raise UserError(
            f"data.sequence_tokens={data.sequence_tokens} and evaluate.max_new_tokens="
            f"{evaluate.max_new_tokens} are {num_tokens} tokens, and vLLM takes {limit} with this "
            f"model: lower one of them, or {own}"
        )
    return {
        "model": resolve_model_source(model.name),
        "revision": model.revision,
        "dtype": _DTYPES[precision],
        "quantization": None if quantization.kind == "none" else "bitsandbytes",
        "max_model_len": num_tokens,
        "enable_lora": True,
        "max_lora_rank": next(each for each in LORA_RANKS if each >= rank),
        "skip_tokenizer_init": True,
    }


def _find_rank(adapter: Path) -> int:
    """Return the largest rank of an adapter. Raises UserError if it has trained embeddings."""
    saved = json.loads((adapter / "adapter_config.json").read_text())
    whole = saved.get("modules_to_save") or []
    if whole:
        raise UserError(
            f"the adapter {adapter} has trained whole modules ({', '.join(whole)}; "
            "lora.train_embeddings=true), which vLLM cannot hold: set evaluate.caption_engine=own"
        )
    return int(max([saved["r"], *(saved.get("rank_pattern") or {}).values()]))
