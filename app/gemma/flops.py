"""Count the floating-point operations that one training step of Gemma 2 with LoRA needs.

A product of [m, k] and [k, n] has 2·m·k·n operations. Norms, softcaps, softmax and other operations
on single elements are not counted, as in Narayanan et al. 2021 (arXiv:2104.04473). The frozen base
model gets no gradient of its weights. Recomputed operations are not counted.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from transformers import Gemma2Config

from app.gemma.config import LoraConfig

_STAGES = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
"""Linear layers of a decoder layer in the order of the forward pass; a stage has one input."""


@dataclass(frozen=True)
class Workload:
    """The parts of a batch that decide the number of operations."""

    num_tokens: int
    num_targets: int
    """Number of labelled tokens."""
    num_pairs: int
    """Number of pairs of a query and a key that it sees, in one head with full attention."""
    num_window_pairs: int
    """The same with sliding-window attention."""


@dataclass(frozen=True)
class StepFlops:
    """Floating-point operations of one step, forward and backward, by part."""

    base: int
    """Products with the frozen weights of the layers."""
    lora: int
    attention: int
    loss: int
    """Products with the output head."""

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.base + self.lora + self.attention + self.loss


def count_pairs(
    position_ids: npt.NDArray[np.integer], num_tokens: npt.NDArray[np.integer], window: int | None
) -> int:
    """Return the number of (query, key) pairs of one head in packed sequences.

    position_ids is [B, S] and restarts at 0 in each document. num_tokens is [B]: the tokens after
    them are padding, which does not count. A query at position p sees p + 1 keys of its document,
    at most `window`.

    >>> count_pairs(np.array([[0, 1, 2, 0, 1, 0]]), np.array([5]), None)
    9
    >>> count_pairs(np.array([[0, 1, 2, 0, 1, 0]]), np.array([5]), 2)
    8
    """
    num_keys = position_ids.astype(np.int64) + 1
    if window is not None:
        num_keys = np.minimum(num_keys, window)
    is_token = np.arange(position_ids.shape[1]) < np.asarray(num_tokens)[:, None]
    return int(num_keys[is_token].sum())


def count_step_flops(model: Gemma2Config, lora: LoraConfig, work: Workload) -> StepFlops:
    """Return the operations of the forward and backward passes over a workload.

    A gradient that nothing uses is not counted: that of the first layer's input, if the embedding
    is frozen.
    """
    shapes = get_linear_shapes(model)
    needed = [_list_needed_gradients(lora, is_first=i == 0) for i in range(model.num_hidden_layers)]

    # linear layers
    base = lora_products = 0
    for needs_grad_x in needed:
        for name, (width_in, width_out) in shapes.items():
            passes = 2 if needs_grad_x[name] else 1
            base += passes * 2 * work.num_tokens * width_in * width_out
            if name in lora.target_modules:
                # forward: A, B; backward: gradients of x·A, of A and of B, and of x
                widths = 3 * width_out + (1 + passes) * width_in
                lora_products += 2 * work.num_tokens * lora.rank * widths

    # attention
    attention = 0
    for kind, needs_grad_x in zip(model.layer_types or (), needed, strict=True):
        num_pairs = work.num_window_pairs if kind == "sliding_attention" else work.num_pairs
        num_products = 2 + _count_attention_gradients(lora, needs_grad_x)
        attention += num_products * 2 * num_pairs * model.num_attention_heads * model.head_dim

    # loss: logits, gradient of the hidden states, and of the head if it is trained
    loss_products = 3 if lora.train_embeddings else 2
    loss = loss_products * 2 * work.num_targets * model.hidden_size * model.vocab_size
    return StepFlops(base, lora_products, attention, loss)


def get_linear_shapes(model: Gemma2Config) -> dict[str, tuple[int, int]]:
    """Return (input width, output width) of each linear layer of a decoder layer, by name."""
    hidden, inner = model.hidden_size, model.intermediate_size
    queries = model.num_attention_heads * model.head_dim
    keys = model.num_key_value_heads * model.head_dim
    return {
        "q_proj": (hidden, queries),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (queries, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }


def _list_needed_gradients(lora: LoraConfig, *, is_first: bool) -> dict[str, bool]:
    """Return for each linear layer whether the gradient of its input is needed.

    In the first layer above a frozen embedding, no trained weight comes before its first adapter.
    """
    is_trained = lora.train_embeddings or not is_first
    needed: dict[str, bool] = {}
    for stage in _STAGES:
        needed |= dict.fromkeys(stage, is_trained)
        is_trained = is_trained or any(name in lora.target_modules for name in stage)
    return needed


def _count_attention_gradients(lora: LoraConfig, needs_grad_x: dict[str, bool]) -> int:
    """Return the number of products in the backward pass of attention, of 4 at most.

    They are the gradients of the values, of the weights, of the queries and of the keys.
    """
    query, key, value = (
        needs_grad_x[name] or name in lora.target_modules for name in ("q_proj", "k_proj", "v_proj")
    )
    return value + (query or key) + query + key
