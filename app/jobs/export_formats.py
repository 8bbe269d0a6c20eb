"""Formats of an exported model: how each is written, and how its own programs load it."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
)

from app.config import Config
from app.errors import UserError
from app.gemma.adapter import CONFIG_FILE, SavedAdapter
from app.gemma.base_model import (
    TINY,
    get_stored_quantization,
    load_model_config,
    resolve_model_source,
)
from app.gemma.merge import merge_weights
from data_pipeline.masking import mask_secrets
from data_pipeline.stream.encode import PromptEncoder, build_chat_template

GGUF_FILE = "adapter.gguf"
TEMPLATE_FILE = "chat_template.jinja"
BASE_FOLDER = "base"
"""Folder of an exported adapter with a copy of the tiny base model, which no hub has."""


class Format(NamedTuple):
    """One format of an export."""

    write: Callable[[Config, SavedAdapter, Path], None]
    """Write the weights into an existing folder."""
    load: Callable[[Config, SavedAdapter, Path], nn.Module]
    """Load them with transformers and PEFT alone, as the users of the format do."""


def save_prompt(
    config: Config, kind: str, out: Path, encoder: PromptEncoder, svgs: Sequence[str]
) -> None:
    """Write the chat template, and except for llama.cpp the tokenizer with it.

    Raises UserError if the tokenizer of transformers gives other prompts of `svgs` than training.
    """
    template = build_chat_template(config.data.system_prompt)
    if kind == "gguf-lora":
        (out / TEMPLATE_FILE).write_text(template)
        return

    # write
    source, revision = resolve_model_source(config.model.name), config.model.revision
    tokenizer: Any = AutoTokenizer.from_pretrained(source, revision=revision)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(out)

    # compare
    tokenizer = AutoTokenizer.from_pretrained(out)
    for svg in svgs:
        message = {"role": "user", "content": svg}
        ids = tokenizer.apply_chat_template(
            [message], add_generation_prompt=True, return_dict=False
        )
        if ids != encoder.encode_prompt(svg):
            raise UserError(
                f"model.name={config.model.name}: transformers' tokenizer gives other tokens of a "
                "prompt than tokenizer.json, which the training used: give a base model whose "
                "tokenizer files agree"
            )

    if kind == "merged":  # stop after a caption, without further settings
        GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=list(encoder.stop_ids),
            pad_token_id=encoder.pad_id,
        ).save_pretrained(out)


def is_on_hub(config: Config) -> bool:
    """Return whether the base model's name is one of the hub, and no place of this machine."""
    name = config.model.name
    return name != "tiny" and "://" not in name and not os.path.isdir(os.path.expanduser(name))


def name_base_model(config: Config) -> str:
    """Return the base model's name without the folders of this machine."""
    name = mask_secrets(config.model.name)
    return name if is_on_hub(config) else name.partition("?")[0].rstrip("/").rpartition("/")[2]


def get_base_source(config: Config) -> str:
    """Return the name from which the users of an export load the base model.

    It is a name of the hub, or a folder beside the files of the export.
    """
    if config.model.name == "tiny":
        return f"./{BASE_FOLDER}"
    return name_base_model(config) if is_on_hub(config) else f"./{name_base_model(config)}"


def get_quantization_options(config: Config) -> dict[str, Any]:
    """Return the arguments of BitsAndBytesConfig with which the training quantised the base model.

    There are none for 16 bits, and for a folder that is quantised already.
    """
    quantization, model_config = config.quantization, load_model_config(config.model)
    if quantization.kind == "none" or get_stored_quantization(config.model, model_config):
        return {}
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": quantization.kind,
        "bnb_4bit_use_double_quant": quantization.double_quant,
    }


def _write_adapter(config: Config, adapter: SavedAdapter, out: Path) -> None:
    """Write a folder of PEFT, with a copy of the base model if it is the tiny one."""
    save_file(adapter.weights, out / "adapter_model.safetensors", metadata={"format": "pt"})
    options = {
        **adapter.options,
        "base_model_name_or_path": get_base_source(config),
        "revision": config.model.revision,
    }
    (out / CONFIG_FILE).write_text(json.dumps(options, indent=2, sort_keys=True))
    if config.model.name == "tiny":
        shutil.copytree(TINY, out / BASE_FOLDER)


def _load_adapter(config: Config, adapter: SavedAdapter, out: Path) -> nn.Module:
    model: nn.Module = PeftModel.from_pretrained(_load_base(config), str(out))
    return model


def _write_merged(config: Config, adapter: SavedAdapter, out: Path) -> None:
    """Write a whole model of transformers in the files and the dtype of the base model."""
    merge_weights(config.model, adapter.weights, config.lora, out)
    load_model_config(config.model).save_pretrained(out)


def _load_merged(config: Config, adapter: SavedAdapter, out: Path) -> nn.Module:
    model: nn.Module = _load(str(out))
    return model


def _write_gguf(config: Config, adapter: SavedAdapter, out: Path) -> None:
    from app.gemma.gguf_adapter import write_gguf_adapter  # an optional package

    write_gguf_adapter(
        out / GGUF_FILE,
        adapter.weights,
        alpha=config.lora.scale * config.lora.rank,  # llama.cpp has no rank-stabilised LoRA
        num_layers=load_model_config(config.model).num_hidden_layers,
        name=config.train.run_name,
    )


def _load_gguf(config: Config, adapter: SavedAdapter, out: Path) -> nn.Module:
    """Add the factors of the file to the base model that the adapter was trained on."""
    from app.gemma.gguf_adapter import read_gguf_adapter

    base_model = _load_base(config)
    num_layers = base_model.config.num_hidden_layers
    alpha, weights = read_gguf_adapter(out / GGUF_FILE, adapter.weights, num_layers)
    options = PeftLoraConfig(
        r=config.lora.rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        target_modules=list(config.lora.target_modules),
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base_model, options)
    set_peft_model_state_dict(model, weights)
    return model


FORMATS = {
    "adapter": Format(_write_adapter, _load_adapter),
    "merged": Format(_write_merged, _load_merged),
    "gguf-lora": Format(_write_gguf, _load_gguf),
}


def _load_base(config: Config) -> Any:
    """Load the base model by transformers alone, in 4 bits if the training did."""
    options = get_quantization_options(config)
    return _load(
        resolve_model_source(config.model.name),
        revision=config.model.revision or "main",
        quantization_config=(
            BitsAndBytesConfig(**options, bnb_4bit_compute_dtype=_get_dtype()) if options else None
        ),
    )


def _load(name: str, **options: Any) -> Any:
    """Load a model on the GPU in bf16 if there is one, else on the CPU in fp32."""
    return AutoModelForCausalLM.from_pretrained(
        name,
        dtype=_get_dtype(),
        device_map={"": "cuda" if torch.cuda.is_available() else "cpu"},
        attn_implementation="eager",
        **options,
    )


def _get_dtype() -> torch.dtype:
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32
