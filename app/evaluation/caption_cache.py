"""Keys and values of a batch of prompts and of the captions that are generated for them."""

from collections.abc import Sequence

import torch
from torch import Tensor


class CaptionCache:
    """Cache of a batch, allocated once: transformers' layers call `update`.

    Row i holds prompt i from slot 0 on, and then the generated tokens, each in the slot of its
    position. A query therefore sees the slots up to its own position, and no row has padding at its
    start. transformers' own caches are copied for each token.
    """

    def __init__(self, num_prompts: int, num_slots: int) -> None:
        self._shape = num_prompts, num_slots
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}  # keys and values [N, K, slots, D]
        self._packed: dict[int, slice] | None = None
        self._positions = torch.empty(0)

    def expect_prompts(self, packed: dict[int, slice]) -> None:
        """Announce a packed sequence: the tokens of each row's prompt, by row."""
        self._packed = packed

    def expect_tokens(self, positions: Tensor) -> None:
        """Announce one token for every row, at these positions [N, 1]."""
        self._packed, self._positions = None, positions

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Store the announced tokens; return the keys and values that their queries attend to.

        For a packed sequence [1, K, S, D] these are its own, for one token of each row
        [N, K, 1, D] those of the cache [N, K, slots, D].
        """
        if layer not in self._layers:
            num_prompts, num_slots = self._shape
            shape = (num_prompts, key.shape[1], num_slots, key.shape[3])
            self._layers[layer] = key.new_zeros(shape), value.new_zeros(shape)
        cached = self._layers[layer]

        if self._packed is not None:
            for stored, new in zip(cached, (key, value), strict=True):
                for row, tokens in self._packed.items():
                    stored[row, :, : tokens.stop - tokens.start] = new[0, :, tokens]
            return key, value

        rows = torch.arange(len(key), device=key.device)
        for stored, new in zip(cached, (key, value), strict=True):
            stored[rows, :, self._positions[:, 0]] = new[:, :, 0]
        return cached

    def select_rows(self, rows: Tensor) -> None:
        """Keep these rows only."""
        for layer, (keys, values) in self._layers.items():
            self._layers[layer] = keys[rows], values[rows]


def plan_batches(
    lengths: Sequence[int], *, max_prompts: int, max_new_tokens: int, max_cache_tokens: int | None
) -> list[list[int]]:
    """Return the indices of the prompts of each batch; the longest prompts come first.

    All prompts of a batch have slots for the longest one and its caption. These are at most
    `max_cache_tokens` (None: any number), except in a batch of one prompt.

    >>> plan_batches([5, 40, 20, 18], max_prompts=3, max_new_tokens=10, max_cache_tokens=70)
    [[1], [2, 3], [0]]
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True):
        batch = batches[-1] if batches else []
        slots = (len(batch) + 1) * (lengths[batch[0] if batch else i] + max_new_tokens)
        fits = max_cache_tokens is None or slots <= max_cache_tokens
        if batch and fits and len(batch) < max_prompts:
            batch.append(i)
        else:
            batches.append([i])
    return batches
