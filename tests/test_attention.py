"""Block-wise attention against transformers' eager attention, document by document: outputs and gradients."""

import pytest
import torch

from app.gemma.attention import BLOCK, softcapped_attention


def eager(query, key, value, *, scale, softcap, window, position_ids):
    """The definition, with whole [S, S] matrices."""
    length = query.shape[2]
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    document = (position_ids == 0).cumsum(dim=1)
    place = torch.arange(length)
    seen = (document[:, :, None] == document[:, None, :]) & (place[:, None] >= place[None, :])
    if window is not None:
        seen &= place[:, None] - place[None, :] < window
    return scores.masked_fill(~seen[:, None], float("-inf")).softmax(dim=-1) @ value


@pytest.mark.parametrize("lengths", [[300], [1, 127, 128, 44], [40, 40, 40, 40, 40, 40, 40, 20], [200, 1, 1, 1, 97]])
@pytest.mark.parametrize(("softcap", "window"), [(None, None), (2.0, None), (50.0, 16), (2.0, 129)])
def test_outputs_and_gradients_equal_the_definition(lengths, softcap, window):
    torch.manual_seed(0)
    length = sum(lengths)
    assert length > 2 * BLOCK
    position_ids = torch.stack([torch.cat([torch.arange(n) for n in order]) for order in (lengths, lengths[::-1])])
    shapes = [(2, 4, length, 8), (2, 2, length, 8), (2, 2, length, 8)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    upstream = torch.randn(shapes[0], dtype=torch.float64)
    results = []
    for attention in (softcapped_attention, eager):
        output = attention(*inputs, scale=0.3, softcap=softcap, window=window, position_ids=position_ids)
        results.append((output, *torch.autograd.grad(output, inputs, upstream)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)  # the softmax is fp32
