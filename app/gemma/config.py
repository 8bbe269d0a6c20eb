"""Config sections `model`, `quantization`, `lora` and `memory`."""

import math
import os
from dataclasses import dataclass, fields
from typing import Annotated, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

TargetModule = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ALL_LINEAR: tuple[TargetModule, ...] = get_args(TargetModule)


class ModelConfig(BaseModel):
    """The Gemma 2 model.

    Softcaps, window, layer types and query scale come from the model's own config. The softcaps can
    be switched off.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(
        "tiny",
        description="`tiny` (shipped, 2 M parameters), a hub name, a local folder, or the URI of a "
        "folder (s3://…, gs://…), which each node copies once to its disk",
        json_schema_extra={"counterpart": "from_pretrained.pretrained_model_name_or_path"},
    )
    revision: str | None = Field(
        None,
        description="hub revision of model and tokenizer; null: the newest one",
        json_schema_extra={"counterpart": "from_pretrained.revision"},
    )
    attention: Literal["eager", "blockwise", "flash_attention_2", "flex_attention"] = Field(
        "blockwise",
        description="attention implementation: blockwise needs O(tokens) memory (on a GPU it is "
        "FlexAttention), eager is the reference and needs O(tokens²); each applies Gemma 2's "
        "softcap, windows and document borders",
        json_schema_extra={"counterpart": "from_pretrained.attn_implementation"},
    )
    attention_softcap: bool = Field(
        True,
        description="cap attention scores as in the training of Gemma 2; false: for experiments",
        json_schema_extra={"counterpart": "Gemma2Config.attn_logit_softcapping"},
    )
    logit_softcap: bool = Field(
        True,
        description="cap output logits as in the training of Gemma 2; false: for experiments",
        json_schema_extra={"counterpart": "Gemma2Config.final_logit_softcapping"},
    )

    @model_validator(mode="after")
    def _require_hub_for_revision(self) -> Self:
        if self.revision is not None and (self.name == "tiny" or os.path.isdir(self.name)):
            raise ValueError(
                f"model.revision={self.revision} is of a model on the hub, but model.name="
                f"{self.name} is on this machine: set model.revision=null"
            )
        return self


class QuantizationConfig(BaseModel):
    """Storage of the frozen base model (QLoRA, Dettmers et al. 2023, arXiv:2305.14314)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["nf4", "fp4", "none"] = Field(
        "nf4",
        description="4-bit type of the frozen weights; none: no quantisation",
        json_schema_extra={
            "counterpart": "BitsAndBytesConfig.bnb_4bit_quant_type, BitsAndBytesConfig.load_in_4bit"
        },
    )
    double_quant: bool = Field(
        True,
        description="quantise the quantisation constants too (saves 0.37 bits per weight)",
        json_schema_extra={"counterpart": "BitsAndBytesConfig.bnb_4bit_use_double_quant"},
    )


class LoraConfig(BaseModel):
    """The trained adapter (LoRA, Hu et al. 2021, arXiv:2106.09685)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: Annotated[int, Field(ge=1, le=1024)] = Field(
        16,
        description="rank r of the two factors",
        json_schema_extra={"counterpart": "LoraConfig.r"},
    )
    alpha: Annotated[float, Field(gt=0)] = Field(
        32.0,
        description="scale of the update, which is alpha / rank · B·A, or alpha / √rank · B·A with "
        "use_rslora",
        json_schema_extra={"counterpart": "LoraConfig.lora_alpha"},
    )
    use_rslora: bool = Field(
        False,
        description="divide alpha by √rank instead of rank (rank-stabilised LoRA, Kalajdzievski "
        "2023, arXiv:2312.03732), so that one learning rate suits more ranks",
        json_schema_extra={"counterpart": "LoraConfig.use_rslora"},
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="dropout on the adapter's input",
        json_schema_extra={"counterpart": "LoraConfig.lora_dropout"},
    )
    target_modules: tuple[TargetModule, ...] = Field(
        ALL_LINEAR,
        min_length=1,
        description="linear layers that get an adapter",
        json_schema_extra={"counterpart": "LoraConfig.target_modules"},
    )
    train_embeddings: bool = Field(
        False,
        description="also train the embedding and the output head, which stay one tied weight",
        json_schema_extra={"counterpart": "LoraConfig.modules_to_save"},
    )
    init_from: str | None = Field(
        None,
        description="adapter that a new job starts from: folder or URI of a job, of a checkpoint "
        "or of a PEFT adapter, or models:/NAME@ALIAS; null: a new adapter",
    )
    init_from_missing: Literal["error", "fresh"] = Field(
        "error",
        description="if init_from is not there: stop, or start from a new adapter",
    )

    @property
    def scale(self) -> float:
        """Factor of the update B·A."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)


@dataclass(frozen=True)
class MemorySettings:
    """The settings that trade speed for memory, each with a value."""

    gradient_checkpointing: bool = True
    keep_layers: int = 0
    tile_tokens: int = 2048
    offload: bool = False
    embedding: Literal["device", "host"] = "device"


class MemoryConfig(BaseModel):
    """Memory limit of a GPU, and the settings that trade speed for memory."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: Literal["auto", "recompute"] = Field(
        "auto",
        description="how to choose the five settings below that are null. auto: `train`, `tune` "
        "and `plan` take the fastest ones with which a step fits, and print them. recompute: "
        "every layer is recomputed",
    )
    gradient_checkpointing: bool | None = Field(
        None,
        description="keep only the input of each layer and recompute the rest in the backward "
        "pass; null: by `policy`",
        json_schema_extra={"counterpart": "TrainingArguments.gradient_checkpointing"},
    )
    keep_layers: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="number of last layers that keep their activations although "
        "gradient_checkpointing is on (layers); null: by `policy`",
    )
    tile_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="tokens that MLP and norms of a recomputed layer process at a time (tokens); "
        "null: by `policy`",
    )
    offload: bool | None = Field(
        None,
        description="keep the inputs of recomputed layers in page-locked host memory; null: by "
        "`policy`",
    )
    embedding: Literal["device", "host"] | None = Field(
        None,
        description="place of the frozen embedding; the loss copies it from the host tile by "
        "tile; null: by `policy`",
    )
    max_gib_per_gpu: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="limit of the allocator per GPU (GiB), of which a worker has its share; null: "
        "the whole card; CPU runs ignore it",
    )
    empty_cache_steps: Annotated[int, Field(ge=0)] = Field(
        0,
        description="return cached GPU memory every N steps (steps); 0: never; CPU runs ignore it",
        json_schema_extra={"counterpart": "TrainingArguments.torch_empty_cache_steps"},
    )
    pin_memory: bool = Field(
        True,
        description="copy batches to page-locked host memory when training on a GPU",
        json_schema_extra={"counterpart": "TrainingArguments.dataloader_pin_memory"},
    )

    @property
    def settings(self) -> MemorySettings:
        """The settings of a step. Those that are null recompute every layer on the device."""
        names = [field.name for field in fields(MemorySettings)]
        values = {name: getattr(self, name) for name in names}
        return MemorySettings(
            **{name: value for name, value in values.items() if value is not None}
        )

    @model_validator(mode="after")
    def _require_recomputed_layers(self) -> Self:
        """Refuse settings of recomputed layers if no layer is recomputed."""
        if self.gradient_checkpointing is not False:
            return self
        for name in ("keep_layers", "tile_tokens", "offload"):
            value, default = getattr(self, name), getattr(MemorySettings(), name)
            if value not in (None, default):
                raise ValueError(
                    f"memory.{name}={str(value).lower()} does nothing without recomputed layers: "
                    f"set memory.gradient_checkpointing=true, or "
                    f"memory.{name}={str(default).lower()}"
                )
        return self
