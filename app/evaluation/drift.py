"""Compare an exported model with the trained model that it was made from, on a few drawings.

The trained model runs as in `evaluate`. The exported model runs in plain transformers and PEFT, as
its users run it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from app.evaluation.captioner import encode_scored_caption
from data_pipeline.shards import ShardRecord
from data_pipeline.stream.encode import PromptEncoder


@dataclass(frozen=True)
class ModelOutputs:
    """Outputs of one model for some drawings."""

    log_probs: list[Tensor]
    """Log-probabilities [T, V] at the tokens of each reference caption; fp32 on the host."""
    captions: list[str]
    """Greedy captions."""


@dataclass(frozen=True)
class Drift:
    """Difference of an exported model from the trained model."""

    mean_kl: float
    """Mean KL divergence of the exported model from the trained one (nats per caption token)."""
    max_kl: float
    num_tokens: int
    num_drawings: int
    num_same_captions: int
    changed_captions: list[dict[str, str]]
    """id, trained and exported caption of each drawing whose greedy captions differ."""


def compute_drift(
    drawings: Sequence[ShardRecord], trained: ModelOutputs, exported: ModelOutputs
) -> Drift:
    """Return the drift of the exported model's outputs from the trained model's."""
    divergences = torch.cat(
        [
            compute_kl(ours, theirs)
            for ours, theirs in zip(trained.log_probs, exported.log_probs, strict=True)
        ]
    )
    changed = [
        {"id": drawing.id, "trained": ours, "exported": theirs}
        for drawing, ours, theirs in zip(drawings, trained.captions, exported.captions, strict=True)
        if ours != theirs
    ]
    return Drift(
        mean_kl=divergences.mean().item(),
        max_kl=divergences.max().item(),
        num_tokens=len(divergences),
        num_drawings=len(drawings),
        num_same_captions=len(drawings) - len(changed),
        changed_captions=changed,
    )


def compute_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p ‖ q) [T] of log-probabilities [T, V] (nats), in fp64."""
    log_p, log_q = log_p.double().log_softmax(-1), log_q.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@torch.no_grad()
def run_plain_model(
    model: nn.Module,
    encoder: PromptEncoder,
    drawings: Sequence[ShardRecord],
    *,
    max_new_tokens: int,
) -> ModelOutputs:
    """Return the outputs of a model of transformers or PEFT, by its own forward and generate."""
    plain: Any = model.eval()
    log_probs, captions = [], []
    for drawing in drawings:
        ids, positions = encode_scored_caption(encoder, drawing.svg, drawing.caption)
        logits = plain(
            input_ids=ids.to(plain.device),
            use_cache=False,
            logits_to_keep=positions.to(plain.device),
        ).logits[0]
        log_probs.append(logits.float().log_softmax(-1).cpu())

        prompt = torch.tensor([encoder.encode_prompt(drawing.svg)], device=plain.device)
        generated = plain.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=list(encoder.stop_ids),
            pad_token_id=encoder.pad_id,
        )
        captions.append(encoder.decode(generated[0, prompt.shape[1] :].tolist()).strip())
    return ModelOutputs(log_probs, captions)
