"""What is known of a Gemma 2 without asking a hub: its dimensions."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import Gemma2Config

from app.gemma import base_model
from app.gemma.config import ModelConfig


@dataclass(frozen=True)
class _Size:
    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    query_pre_attn_scalar: int


SIZES = {
    "2b": _Size(26, 2304, 9216, 8, 4, 256, 256),
    "9b": _Size(42, 3584, 14336, 16, 8, 256, 256),
    "27b": _Size(46, 4608, 36864, 32, 16, 128, 144),
}
"""Gemma 2 report (arXiv:2408.00118), table 1, whose feed-forward width counts gate and up together; query scale as in
the published config.json. What the three have in common (vocabulary, windows, softcaps) are Gemma2Config's defaults."""


def find_model_config(model: ModelConfig) -> Gemma2Config:
    """Return a model's own config, without a hub where its name says a published size.

    `google/gemma-2-9b-it` is such a name. A folder is read, any other name is asked of the hub.
    Raises UserError for a model that is missing or no Gemma 2.
    """
    source = base_model.resolve_model_source(model.name)
    named = re.search(r"gemma-2-(2b|9b|27b)\b", source)
    if not named or Path(source).exists():
        return base_model.load_model_config(model)
    return Gemma2Config(
        **asdict(SIZES[named[1]]),
        attn_logit_softcapping=50.0 if model.attention_softcap else None,
        final_logit_softcapping=30.0 if model.logit_softcap else None,
    )
