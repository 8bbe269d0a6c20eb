"""Load Gemma 2 from a hub name, a folder or the shipped tiny model, in NF4, with a LoRA adapter."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, Gemma2ForCausalLM
from transformers.utils.generic import is_flash_attention_requested

from app.errors import UserError
from app.gemma import attention
from app.gemma.base_model import (
    find_weight_files,
    get_stored_quantization,
    load_model_config,
    require_same_quantization,
    resolve_model_source,
)
from app.gemma.config import LoraConfig, ModelConfig, QuantizationConfig
from app.gemma.loss import softcapped_cross_entropy

transformers.utils.logging.disable_progress_bar()  # the bars of several workers would overlap
# peft 0.21 uses an attribute that transformers 5 deprecates.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def load_base_model(
    model: ModelConfig,
    quantization: QuantizationConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Gemma2ForCausalLM:
    """Load the frozen base model on one device.

    Linear layers are in 4 bits; everything else and all products are in dtype. 4-bit weights are
    read as they are if the model is stored in 4 bits (`python -m app quantize`). Otherwise the
    stored weights are quantised one by one. Both ways give the same bits, in any dtype, on one kind
    of device. Sliding window, layer types, query scale, and the softcaps that are not switched off,
    come from the model's config.

    Raises UserError for a model that is missing, is not a Gemma 2, or is stored in another kind of
    4 bits than configured.
    """
    # how the weights are stored
    config = load_model_config(model)
    find_weight_files(model)  # raises UserError without safetensors
    stored = get_stored_quantization(model, config)
    if stored is not None:
        require_same_quantization(model, quantization, stored)
    quantize_while_loading = None
    if quantization.kind != "none" and stored is None:
        quantize_while_loading = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization.kind,
            bnb_4bit_use_double_quant=quantization.double_quant,
            bnb_4bit_compute_dtype=dtype,
        )

    # load
    try:
        base_model = Gemma2ForCausalLM.from_pretrained(
            resolve_model_source(model.name),
            config=config,
            revision=model.revision or "main",
            dtype=dtype if quantization.kind == "none" else "auto",
            attn_implementation=model.attention,
            quantization_config=quantize_while_loading,
            device_map={"": device},
        )
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"model.attention={model.attention} cannot run here ({reason}): "
            "install its package on every node, or set model.attention=blockwise"
        ) from error
    _freeze_in_dtype(base_model, dtype)

    _print_choices(model)
    return base_model


def _print_choices(model: ModelConfig) -> None:
    """Print the attention, and the softcaps that are switched off."""
    print(f"attention: {attention.describe_attention(model.attention)}", file=sys.stderr)
    for is_on, capped in (
        (model.attention_softcap, "attention scores"),
        (model.logit_softcap, "output logits"),
    ):
        if not is_on:
            print(
                f"softcap of {capped}: OFF, for study; the model was trained with it",
                file=sys.stderr,
            )


def _freeze_in_dtype(base_model: Gemma2ForCausalLM, dtype: torch.dtype) -> None:
    """Freeze the base model, and set the dtype of its products and of all weights not in 4 bits.

    The dtype in which it is stored does not matter.
    """
    for module in base_model.modules():
        if isinstance(module, Linear4bit):
            module.compute_dtype = dtype
            assert isinstance(module.weight, Params4bit)
            module.weight.quant_state.dtype = dtype

    for parameter in base_model.parameters():
        parameter.requires_grad_(False)
        if not isinstance(parameter, Params4bit):
            parameter.data = parameter.data.to(dtype)

    if dtype == torch.float16:
        base_model.get_input_embeddings().register_forward_hook(
            lambda _module, _inputs, output: output.float()
        )


def _get_residual_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the residual stream: fp32 for fp16.

    Gemma 2's sums exceed the range of fp16, though its products fit.
    """
    return torch.float32 if dtype == torch.float16 else dtype


def add_lora(base_model: Gemma2ForCausalLM, lora: LoraConfig, *, seed: int) -> PeftModel:
    """Add a new adapter, which does not change the model's output yet (B = 0).

    Trained weights are in fp32, so that small updates are not rounded away.
    """
    torch.manual_seed(seed)  # every worker draws the same A
    embeddings = ["embed_tokens", "lm_head"] if lora.train_embeddings else None
    adapted = get_peft_model(
        base_model,
        PeftLoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,  # type: ignore[arg-type]
            lora_dropout=lora.dropout,
            use_rslora=lora.use_rslora,
            target_modules=list(lora.target_modules),
            modules_to_save=embeddings,
            ensure_weight_tying=lora.train_embeddings,
            bias="none",
            task_type="CAUSAL_LM",
        ),
    )
    assert isinstance(adapted, PeftModel)
    return _train_in_fp32(adapted)


def load_adapter(base_model: Gemma2ForCausalLM, folder: str | Path) -> PeftModel:
    """Load a saved adapter onto a freshly loaded base model."""
    adapted = PeftModel.from_pretrained(base_model, str(folder), is_trainable=True)
    return _train_in_fp32(adapted)


def _train_in_fp32(model: PeftModel) -> PeftModel:
    """Convert the trained weights to fp32; the residual stream keeps its dtype."""
    inner = unwrap_gemma(model)
    dtype = _get_residual_dtype(inner.dtype)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()

    if inner.get_input_embeddings().weight.requires_grad:
        # A trained embedding outputs fp32: convert its output to the residual stream's dtype.
        inner.get_input_embeddings().register_forward_hook(
            lambda _module, _inputs, output: output.to(dtype)
        )
    return model


def unwrap_gemma(model: nn.Module) -> Gemma2ForCausalLM:
    """Return the Gemma 2 inside a PEFT wrapper, or the model itself."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(inner, Gemma2ForCausalLM)
    return inner


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Run a block in evaluation mode (no dropout, no gradients), then restore every module's mode.

    bitsandbytes' layers stay in training mode. In evaluation mode bitsandbytes repacks 4-bit
    weights in place on CPUs with AVX512-bf16, and later training would continue with other numbers.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    for module, _ in modes:
        if isinstance(module, Linear4bit):
            module.training = True

    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return a context that computes matrix products in dtype; a no-op for fp32.

    The trained weights are fp32.
    """
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return the number of trained and of all parameters.

    A packed 4-bit tensor counts as the weights that it stores.
    """
    trained = total = 0
    for parameter in model.parameters():
        size = parameter.numel()
        if isinstance(parameter, Params4bit) and parameter.quant_state is not None:
            size = parameter.quant_state.shape.numel()
        total += size
        trained += size if parameter.requires_grad else 0
    return trained, total


class CaptionLoss(nn.Module):
    """The objective of a micro-batch as one module, so that DDP wraps one forward."""

    def __init__(self, model: PeftModel, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the sum of the loss and the number of targets of packed sequences.

        All arguments are [B, S]. A document begins where position_ids restart: there is no
        attention mask.
        """
        with autocast(input_ids.device, self.dtype):
            hidden = self.compute_hidden(input_ids, position_ids)
            return self.compute_loss(hidden, targets.flatten())

    def compute_hidden(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """Return the last hidden states [B · S, H] of packed sequences [B, S]."""
        inner = unwrap_gemma(self.model)
        if is_flash_attention_requested(inner.config):
            # Flash attention reads document borders from position_ids in a batch of one only.
            input_ids, position_ids = input_ids.reshape(1, -1), position_ids.reshape(1, -1)

        hidden: Tensor = inner.model(
            input_ids=input_ids, position_ids=position_ids, use_cache=False
        ).last_hidden_state
        if self.dtype == torch.float16:
            hidden = hidden.half()  # from the fp32 residual stream
        return hidden.flatten(0, 1)

    def compute_loss(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of the loss and the number of targets [N] of hidden states [N, H]."""
        inner = unwrap_gemma(self.model)
        return softcapped_cross_entropy(
            hidden,
            inner.lm_head.weight,
            targets,
            softcap=inner.config.final_logit_softcapping,
        )
