"""Check that a saved adapter is one of a job: its settings, its rank, and each shape."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from transformers import Gemma2Config

from app.errors import UserError
from app.gemma.adapter import CONFIG_FILE, EMBEDDING, FACTOR, HEAD, SavedAdapter
from app.gemma.config import ALL_LINEAR, LoraConfig

_HARMLESS_OPTIONS = {
    *("auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version"),
    *("task_type", "lora_dropout", "fan_in_fan_out", "megatron_core", "qalora_group_size"),
    # checked by their values
    *("peft_type", "bias", "init_lora_weights", "use_rslora", "lora_alpha"),
    # compared with the names and shapes of the weights
    *("r", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("modules_to_save", "ensure_weight_tying"),
    # used for the first values of the factors only
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),
}
_INITS_OFFACTORS_ONLY = (True, False, None, "gaussian", "eva", "orthogonal")


def require_same_adapter(adapter: SavedAdapter, lora: LoraConfig, model: Gemma2Config) -> None:
    """Raise UserError if the adapter is not one of `lora` on a base model of these shapes.

    Each difference is named with both values. A variant of LoRA that this application would train
    as something else is refused by its name.
    """
    _require_plain_lora(adapter)
    name, factors = adapter.name, [FACTOR.fullmatch(key) for key in adapter.weights]
    ranks = {
        adapter.weights[found[0]].shape[:1].numel()
        for found in factors
        if found and found[3] == "A"
    }
    if len(ranks) != 1:
        raise UserError(f"{name} has the ranks {_list(ranks)}: give an adapter of one rank")
    rank = ranks.pop()
    targets = {found[2] for found in factors if found}
    num_layers = 1 + max(int(found[1]) for found in factors if found)
    _require_true_options(adapter, rank, targets, lora)

    # settings
    differences = []
    for path, theirs, ours in (
        ("lora.rank", rank, lora.rank),
        ("lora.alpha", _get_alpha(adapter, rank, lora), lora.alpha),
        ("lora.target_modules", _list(targets), _list(lora.target_modules)),
        ("lora.train_embeddings", _has_embeddings(adapter), lora.train_embeddings),
        ("the number of layers", num_layers, model.num_hidden_layers),
    ):
        if theirs != ours:
            differences.append(f"{path} of the adapter is {theirs} and of the job {ours}")
    if differences:
        raise UserError(
            f"{name} does not fit the job: {'; '.join(differences)}: set the adapter's values, "
            "or give another adapter"
        )

    # names and shapes
    expected = list_weight_shapes(lora, model)
    for key in sorted(adapter.weights.keys() ^ expected.keys()):
        state = "lacks" if key in expected else "also holds"
        raise UserError(f"{name} {state} the weight {key}: give a LoRA adapter of a Gemma 2")
    for key, shape in expected.items():
        if tuple(adapter.weights[key].shape) != shape:
            raise UserError(
                f"{name} is of another base model: {key} has the shape "
                f"{tuple(adapter.weights[key].shape)} instead of {shape}: set model.name to its "
                "base model"
            )


def list_weight_shapes(lora: LoraConfig, model: Gemma2Config) -> dict[str, tuple[int, int]]:
    """Return the shape of each weight of an adapter, by PEFT's names."""
    hidden, inner = model.hidden_size, model.intermediate_size
    queries = model.num_attention_heads * model.head_dim
    keys = model.num_key_value_heads * model.head_dim
    sizes = dict(
        zip(
            ALL_LINEAR,
            [
                *((hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)),
                *((hidden, inner), (hidden, inner), (inner, hidden)),
            ],
            strict=True,
        )
    )

    shapes: dict[str, tuple[int, int]] = {}
    for layer in range(model.num_hidden_layers):
        for target in lora.target_modules:
            part = "self_attn" if target in ALL_LINEAR[:4] else "mlp"
            prefix = f"base_model.model.model.layers.{layer}.{part}.{target}"
            num_inputs, num_outputs = sizes[target]
            shapes[f"{prefix}.lora_A.weight"] = (lora.rank, num_inputs)
            shapes[f"{prefix}.lora_B.weight"] = (num_outputs, lora.rank)
    if lora.train_embeddings:
        shapes[EMBEDDING] = shapes[HEAD] = (model.vocab_size, hidden)
    return shapes


def _require_plain_lora(adapter: SavedAdapter) -> None:
    """Raise UserError for an option of PEFT under which the weights mean another computation."""
    options, fix = adapter.options, "give an adapter of plain LoRA"
    kind = options.get("peft_type", "LORA")
    if kind != "LORA":
        raise UserError(f"{adapter.name} is a PEFT adapter of the type {kind}, not LORA: {fix}")
    if options.get("bias", "none") != "none":
        raise UserError(f"{adapter.name} has trained biases (bias={options['bias']}): {fix}")
    init = options.get("init_lora_weights", True)
    if init not in _INITS_OFFACTORS_ONLY:
        raise UserError(
            f"{adapter.name} was made with init_lora_weights={init!r}, which changes the base "
            f"model's weights: {fix}"
        )
    if not isinstance(options.get("lora_alpha", 1), int | float):
        raise UserError(f"{adapter.name} has lora_alpha={options['lora_alpha']!r}: {fix}")
    for option, value in options.items():
        if value and option not in _HARMLESS_OPTIONS:
            raise UserError(f"{adapter.name} has {option}={value!r}, which is not trained: {fix}")

    # embedding and head are one weight here
    saved = [adapter.weights[key] for key in (EMBEDDING, HEAD) if key in adapter.weights]
    if saved and not (len(saved) == 2 and torch.equal(*saved)):
        raise UserError(
            f"{adapter.name} trained embed_tokens apart from lm_head, but Gemma 2 has one weight "
            "for both: give an adapter that was trained with ensure_weight_tying=True"
        )


def _require_true_options(
    adapter: SavedAdapter, rank: int, targets: Iterable[str], lora: LoraConfig
) -> None:
    """Raise UserError if adapter_config.json contradicts the weights.

    PEFT computes the scale from `r` in this file: with another rank than that of the weights, PEFT
    and this application would compute different models.
    """
    name, options = adapter.name, adapter.options
    stated = options.get("r", rank)
    if stated != rank:
        raise UserError(
            f"{name}: {CONFIG_FILE} has r={stated!r} and lora_alpha={options.get('lora_alpha')!r}, "
            f"but the weights have the rank {rank} (the job: lora.rank={lora.rank}, "
            f"lora.alpha={lora.alpha:g}): restore {CONFIG_FILE}, or give another adapter"
        )
    listed = options.get("target_modules")
    if isinstance(listed, list):  # else a pattern
        unlisted = set(targets) - {str(target).rpartition(".")[2] for target in listed}
        if unlisted:
            raise UserError(
                f"{name}: {CONFIG_FILE} does not list {_list(unlisted)} in target_modules, but the "
                f"weights hold them: restore {CONFIG_FILE}, or give another adapter"
            )


def _has_embeddings(adapter: SavedAdapter) -> bool:
    return EMBEDDING in adapter.weights or HEAD in adapter.weights


def _get_alpha(adapter: SavedAdapter, rank: int, lora: LoraConfig) -> float:
    """Return the alpha with which the job has the adapter's scale.

    Rank-stabilised LoRA scales by alpha / √rank, LoRA by alpha / rank. Without adapter_config.json
    it is the job's alpha.
    """
    if "lora_alpha" not in adapter.options:
        return lora.alpha
    alpha = float(adapter.options["lora_alpha"])
    if bool(adapter.options.get("use_rslora")) != lora.use_rslora:
        alpha *= 1 / math.sqrt(rank) if lora.use_rslora else math.sqrt(rank)
    return lora.alpha if math.isclose(alpha, lora.alpha) else alpha


def _list(values: Iterable[Any]) -> str:
    return ", ".join(map(str, sorted(values)))
