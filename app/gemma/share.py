"""Copies of a base model's modules over the same frozen weights."""

import copy
from typing import Any

from bitsandbytes.nn.modules import Linear4bit
from transformers import Gemma2ForCausalLM


def copy_modules(base_model: Gemma2ForCausalLM) -> Gemma2ForCausalLM:
    """Return new modules that share the weights and buffers of a loaded base model.

    An adapter, patches and hooks of the copy do not change `base_model`, so that another adapter
    can be added to another copy. The copy needs almost no memory.
    """
    shared: list[Any] = [*base_model.parameters(), *base_model.buffers()]
    for module in base_model.modules():
        if isinstance(module, Linear4bit):
            shared += [module.quant_state, getattr(module.weight, "quant_state", None)]
    return copy.deepcopy(base_model, {id(value): value for value in shared if value is not None})
