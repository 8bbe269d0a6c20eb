"""Dimensions of the published Gemma 2 models, known without a request to the hub."""

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
"""Sizes by name, from table 1 of the Gemma 2 report (arXiv:2408.00118).

The table's feed-forward width counts gate and up projection together; here it is the width of one.
The query scale is that of the published config.json. Vocabulary, windows and softcaps are the same
in all three models: they are the defaults of Gemma2Config.
"""


def load_model_config_offline(model: ModelConfig) -> Gemma2Config:
    """Return a model's own config, without a request to the hub if its name holds a published size.

    `google/gemma-2-9b-it` is such a name. A folder is read; any other name is looked up on the hub.
    Raises UserError for a model that is missing or is not a Gemma 2.
    """
    source = base_model.resolve_model_source(model.name)
    published_size = re.search(r"gemma-2-(2b|9b|27b)\b", source)
    if not published_size or Path(source).exists():
        return base_model.load_model_config(model)

    return Gemma2Config(
        **asdict(SIZES[published_size[1]]),
        attn_logit_softcapping=50.0 if model.attention_softcap else None,
        final_logit_softcapping=30.0 if model.logit_softcap else None,
    )
