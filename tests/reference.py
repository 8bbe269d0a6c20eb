"""Naive references and measurements that several test files compare with."""

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
    """Packed documents of 8 to 19 tokens: longer than the tiny model's window of 8."""
    return tensors(pack_examples(examples(num), length)[0])


def jogged(loss):
    """An adapter that changes something: B is 0 in a new one."""
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
    """Largest difference of loss and of any gradient, in units of the loss and of that gradient's largest value."""
    assert ours[1].keys() == theirs[1].keys()
    assert all(reference.abs().max() > 0 for reference in theirs[1].values())
    return max(
        abs(ours[0] - theirs[0]) / abs(theirs[0]),
        *(float((ours[1][name] - g).abs().max() / g.abs().max()) for name, g in theirs[1].items()),
    )


def visible(document_ids, window):
    """[B, S, S]: which key (last) each query sees."""
    places = torch.arange(document_ids.shape[1])
    back = places[:, None] - places
    seen = (document_ids[:, :, None] == document_ids[:, None, :]) & (back >= 0)
    return seen if window is None else seen & (back < window)


def naive(query, key, value, *, scale, softcap, window, document_ids):
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return (
        scores.masked_fill(~visible(document_ids, window)[:, None], float("-inf")).softmax(dim=-1)
        @ value
    )


def packed(*orders):
    """document_ids [B, S]."""
    return torch.stack(
        [torch.repeat_interleave(torch.arange(len(order)), torch.tensor(order)) for order in orders]
    )


def inputs(batch, length, *, heads=4, kv_heads=2, width=8, dtype=torch.float64, spread=1.0):
    """Queries as transformers has them, a transposed [B, S, Hq, D]; and what flows back into the output."""
    torch.manual_seed(0)
    made = [
        (torch.randn(batch, length, num, width, dtype=torch.float64) * spread)
        .to(dtype)
        .transpose(1, 2)
        for num in (heads, kv_heads, kv_heads, heads)
    ]
    return [tensor.requires_grad_() for tensor in made[:3]], made[3].detach()


def with_gradients(attention, tensors, upstream, **how):
    output = attention(*tensors, **how)
    return (output, *torch.autograd.grad(output, tensors, upstream))


def saved_bytes(run):
    """Bytes that the graph of run() keeps for its backward pass, each storage once."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    assert result.requires_grad
    return sum(storages.values())
