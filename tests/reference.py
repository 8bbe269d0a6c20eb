"""Naive references and measurements for several test files."""

import torch

from app.gemma.config import MemoryConfig
from data_pipeline.stream.pack import pack_examples
from tests.tiny import examples


def tensors(row):
    return {
        name: torch.from_numpy(getattr(row, name))[None].long()
        for name in ("input_ids", "position_ids", "targets")
    }


POLICIES = {
    "kept": MemoryConfig(gradient_checkpointing=False),
    "recomputed": MemoryConfig(),
    "tiled": MemoryConfig(tile_tokens=7),
    "some": MemoryConfig(tile_tokens=13, keep_layers=1, offload=True),
    "all": MemoryConfig(tile_tokens=1, offload=True),
}


def row(num=6, length=200):
    """Return the tensors of one packed sequence.

    Its documents have 8 to 19 tokens: more than the tiny model's window of 8.
    """
    return tensors(pack_examples(examples(num), length)[0])


def jogged(loss):
    """Change all trained weights, so that the adapter has an effect: B is 0 in a new one."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in loss.parameters():
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter) * 0.05
    return loss


def loss_and_gradients(loss, batch, seed=0):
    torch.manual_seed(seed)
    value, _ = loss(**batch)
    trained = {
        name: parameter for name, parameter in loss.named_parameters() if parameter.requires_grad
    }
    gradients = torch.autograd.grad(value, list(trained.values()))
    return value.item(), dict(zip(trained, gradients, strict=True))


def furthest(ours, theirs):
    """Return the largest relative difference of the losses and of any gradient.

    A gradient's difference is relative to its largest absolute value.
    """
    assert ours[1].keys() == theirs[1].keys()
    assert all(reference.abs().max() > 0 for reference in theirs[1].values())
    return max(
        abs(ours[0] - theirs[0]) / abs(theirs[0]),
        *(float((ours[1][name] - g).abs().max() / g.abs().max()) for name, g in theirs[1].items()),
    )


def visible(document_ids, window):
    """Return the mask [B, S, S]: True where a query sees a key (last)."""
    positions = torch.arange(document_ids.shape[1])
    distance = positions[:, None] - positions
    seen = (document_ids[:, :, None] == document_ids[:, None, :]) & (distance >= 0)
    return seen if window is None else seen & (distance < window)


def naive(query, key, value, *, scale, softcap, window, document_ids):
    """Return Gemma 2's attention by its definition, with [S, S] scores."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    masked = ~visible(document_ids, window)[:, None]
    return scores.masked_fill(masked, float("-inf")).softmax(dim=-1) @ value


def packed(*orders):
    """Return document_ids [B, S] for the lengths of the documents of each sequence."""
    return torch.stack(
        [torch.repeat_interleave(torch.arange(len(order)), torch.tensor(order)) for order in orders]
    )


def inputs(batch, length, *, heads=4, kv_heads=2, width=8, dtype=torch.float64, spread=1.0):
    """Return query, key and value, and a gradient of the output.

    They are transposed [B, S, H, D], as in transformers.
    """
    torch.manual_seed(0)
    made = [
        (torch.randn(batch, length, num, width, dtype=torch.float64) * spread)
        .to(dtype)
        .transpose(1, 2)
        for num in (heads, kv_heads, kv_heads, heads)
    ]
    return [tensor.requires_grad_() for tensor in made[:3]], made[3].detach()


def with_gradients(attention, tensors, grad_output, **options):
    output = attention(*tensors, **options)
    return (output, *torch.autograd.grad(output, tensors, grad_output))


def saved_bytes(run):
    """Return the bytes that the graph of run() keeps for its backward pass, each storage once."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    assert result.requires_grad
    return sum(storages.values())
