"""Loss of each document, whose sums give the loss and the perplexity of a split."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from app.evaluation.bootstrap import Array, divide_sums
from app.gemma.load import CaptionLoss, autocast, evaluation_mode
from data_pipeline.stream.encode import IGNORE_INDEX

MAX_LOSS = 80.0
"""Largest exponent of a perplexity (nats)."""


def measure_documents(
    objective: CaptionLoss, batches: Iterable[Mapping[str, Any]], device: torch.device
) -> Array:
    """Return the sum of the loss (nats) and the number of targets of each document: [N, 2]."""
    sums: list[list[float]] = []
    with evaluation_mode(objective), autocast(device, objective.dtype):
        for batch in batches:
            input_ids, position_ids, targets = (
                torch.as_tensor(batch[name]).to(device, torch.int64)
                for name in ("input_ids", "position_ids", "targets")
            )
            hidden = objective.compute_hidden(input_ids, position_ids)
            for document in _find_documents(position_ids, targets):
                loss_and_count = objective.compute_loss(
                    hidden[document], targets.flatten()[document]
                )
                sums.append([each.item() for each in loss_and_count])
    return np.array(sums, np.float64).reshape(len(sums), 2)


def combine_perplexity(sums: Array) -> Array:
    """Return the perplexity of sums [.., 2] of `measure_documents`."""
    perplexity: Array = np.exp(np.minimum(divide_sums(sums), MAX_LOSS))
    return perplexity


def _find_documents(position_ids: Tensor, targets: Tensor) -> Iterator[slice]:
    """Yield the documents with a target as slices of the flattened [B, S].

    A document begins where the position is 0. Padding has the position 0 and no target.
    """
    starts = (position_ids.flatten() == 0).nonzero()[:, 0].tolist()
    has_target = (targets.flatten() != IGNORE_INDEX).tolist()
    for start, stop in zip(starts, [*starts[1:], len(has_target)], strict=True):
        if any(has_target[start:stop]):
            yield slice(start, stop)
