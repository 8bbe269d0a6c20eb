"""Compare our batched captions with a plain loop over Hugging Face's `generate`.

    python -m benchmarks.generate --json outputs/bench/generate.json

Both caption the same real icons (Phosphor's) with the tiny Gemma 2 in NF4 and one LoRA adapter:
greedily, in batches of the same size, in fp32 on one thread. The loop is that of a user:
Gemma2ForCausalLM with PEFT, batches in the order of the icons, prompts padded on the left,
transformers' default attention. At least 9 of 10 captions must be the same.

`speedup_vs_hf_generate` is the ratio of captions per second. Every caption has the median length of
the icons' own captions, so the loop wastes no step on captions that have ended. `peak_bytes` is the
memory that our captions of all icons add at their peak. The budget of cached tokens bounds it, as
the same figures for twice the icons and for half the budget show.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn
from transformers import BitsAndBytesConfig, Gemma2ForCausalLM

from app.evaluation.generate import generate_captions
from app.gemma.activation_checkpoint import apply_memory_config
from app.gemma.base_model import TINY
from app.gemma.config import LoraConfig, MemoryConfig, ModelConfig, QuantizationConfig
from app.gemma.load import add_lora, evaluation_mode, load_adapter, load_base_model
from benchmarks.measure import medians, one_thread, peak_bytes, write
from data_pipeline.config import DataConfig
from data_pipeline.sources.phosphor import read_phosphor
from data_pipeline.stream.encode import PromptEncoder
from data_pipeline.svg import canonicalise

NUM_ICONS, BATCH_SIZE, MAX_CACHE_TOKENS = 40, 20, 8192
CAPTION_TOKENS = 32
"""Median length of the captions of Phosphor's icons, in tokens of the tiny model."""


def read_icons(num_icons: int) -> list[str]:
    """Return canonical icons at equal distances over all of Phosphor's, in their order."""
    records = list(read_phosphor())
    return [canonicalise(records[i * len(records) // num_icons].svg) for i in range(num_icons)]


def make_encoder() -> PromptEncoder:
    """Return the encoder of prompts, without stop ids: all captions have the same length."""
    encoder = PromptEncoder(str(TINY), DataConfig().system_prompt)
    encoder.stop_ids = ()  # type: ignore[assignment]
    return encoder


def save_adapter(folder: Path) -> None:
    """Write an adapter of the default rank with random weights."""
    base_model = load_base_model(
        ModelConfig(), QuantizationConfig(), device=torch.device("cpu"), dtype=torch.float32
    )
    model = add_lora(base_model, LoraConfig(), seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.002)
    model.save_pretrained(str(folder))


def ours(
    adapter: Path, num_icons: int, max_cache_tokens: int = MAX_CACHE_TOKENS
) -> Callable[[], list[str]]:
    """Return our captions of the icons."""
    base_model = load_base_model(
        ModelConfig(), QuantizationConfig(), device=torch.device("cpu"), dtype=torch.float32
    )
    model = load_adapter(base_model, adapter)
    apply_memory_config(base_model, MemoryConfig())
    encoder, svgs = make_encoder(), read_icons(num_icons)

    def run() -> list[str]:
        with evaluation_mode(model):
            return generate_captions(
                model,
                encoder,
                svgs,
                batch_size=BATCH_SIZE,
                max_new_tokens=CAPTION_TOKENS,
                max_cache_tokens=max_cache_tokens,
            )

    return run


def theirs(adapter: Path, num_icons: int) -> Callable[[], list[str]]:
    """Return the captions of a plain loop over `generate`."""
    base_model = Gemma2ForCausalLM.from_pretrained(
        str(TINY),
        dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        ),
    )
    model = PeftModel.from_pretrained(base_model, str(adapter)).eval()
    encoder = make_encoder()
    prompts = [encoder.encode_prompt(svg) for svg in read_icons(num_icons)]

    def run() -> list[str]:
        captions = []
        for start in range(0, len(prompts), BATCH_SIZE):
            batch = prompts[start : start + BATCH_SIZE]
            length = max(map(len, batch))
            padding = [[encoder.pad_id] * (length - len(prompt)) for prompt in batch]
            ids = torch.tensor([pad + prompt for pad, prompt in zip(padding, batch, strict=True)])
            mask = torch.tensor([[0] * len(pad) + [1] * (length - len(pad)) for pad in padding])
            made = model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=CAPTION_TOKENS,
                eos_token_id=None,
                pad_token_id=encoder.pad_id,
            )
            captions += [encoder.decode(row).strip() for row in made[:, length:].tolist()]
        return captions

    return run


def main() -> None:
    """Run the benchmark and write its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()

    one_thread()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        adapter = Path(name)
        save_adapter(adapter)

        # speed
        candidates = {"ours": ours(adapter, NUM_ICONS), "hf_generate": theirs(adapter, NUM_ICONS)}
        captions = {who: run() for who, run in candidates.items()}
        pairs = [*zip(captions["ours"], captions["hf_generate"], strict=True)]
        num_equal = sum(one == other for one, other in pairs)
        assert num_equal >= 0.9 * NUM_ICONS, pairs
        seconds = medians(candidates)
        figures["speedup_vs_hf_generate"] = seconds["hf_generate"] / seconds["ours"]
        details = {
            "captions_per_second": {who: NUM_ICONS / seconds[who] for who in seconds},
            "share_of_equal_captions": num_equal / NUM_ICONS,
            "num_distinct_captions": len(set(captions["ours"])),
        }

        # memory
        figures["peak_bytes"] = peak_bytes(ours, adapter, NUM_ICONS)
        figures["peak_bytes_twice_the_icons"] = peak_bytes(ours, adapter, 2 * NUM_ICONS)
        half = MAX_CACHE_TOKENS // 2
        figures["peak_bytes_half_the_budget"] = peak_bytes(ours, adapter, NUM_ICONS, half)
    write({"figures": figures, **details, "batch_size": BATCH_SIZE}, arguments.json)


if __name__ == "__main__":
    main()
