"""The README.md of an exported model: how to prompt it, its scores, its data, and its licences."""

from collections.abc import Iterator
from typing import Any

from app.config import Config
from app.evaluation.drift import Drift
from app.jobs.card_scores import CardScores
from app.jobs.export_formats import (
    BASE_FOLDER,
    get_base_source,
    get_quantization_options,
    is_on_hub,
    name_base_model,
)
from app.jobs.job_dir import read_job_file
from app.jobs.trained_model import TrainedModel
from app.training.checkpoint import STATE_FILE
from data_pipeline.masking import mask_secrets

DATA_DIGEST = "the digest of data.shards"
"""Key of state.json."""

_GEMMA_TERMS = (
    "Gemma is provided under and subject to the Gemma Terms of Use found at "
    "ai.google.dev/gemma/terms."
)
_DEVICE = """\
folder = "."  # the one of this file
device = "cuda" if torch.cuda.is_available() else "cpu"
dtype = torch.bfloat16 if device == "cuda" else torch.float32"""
_PROMPT = """\
tokenizer = AutoTokenizer.from_pretrained(folder)
with open("drawing.svg") as file:
    messages = [{{"role": "user", "content": file.read()}}]
prompt = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
).to(device)
stops = tokenizer.convert_tokens_to_ids(["<end_of_turn>", "<eos>"])
ids = model.generate(
    **prompt, max_new_tokens={max_new_tokens}, do_sample=False, eos_token_id=stops
)
caption = tokenizer.decode(ids[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True).strip()
print(caption)"""
_LLAMA_CPP = """\
llama-cli -m GGUF-OF-THE-BASE-MODEL --lora adapter.gguf --jinja \\
    --chat-template-file chat_template.jinja -st -p "$(cat drawing.svg)\""""


def render_model_card(
    model: TrainedModel, kind: str, drift: Drift, split: str, scores: CardScores | None
) -> str:
    """Return the model card of an export, in Markdown with the metadata that hubs read.

    It names no folder of this machine.
    """
    config, state = model.config, read_job_file(model.adapter, STATE_FILE) or {}
    data = state.get("job", {}).get(DATA_DIGEST, "unknown")
    base = state.get("base", {}).get("sha256", "unknown")
    sections = [
        _render_metadata(config, kind),
        "# Captions of SVG drawings\n\n"
        f"Trained by SVGScribe on `{name_base_model(config)}`: step {model.step} of the job "
        f"`{config.train.run_name}`.",
        _render_usage(config, kind),
        "## Scores\n\n" + "\n".join(_list_scores(scores)),
        f"## Data and base model\n\n- digest of the shards: `{data}`\n"
        f"- base model: {_describe_base(config, kind)}\n"
        f"- sha256 of the base model's weights: `{base}`; `sha256sum *.safetensors | sha256sum` in "
        "their folder prints it",
        f"## Drift of this export\n\n{describe_drift(drift, split)}",
        f"## Licence\n\n{_describe_licence(config)}",
    ]
    return mask_secrets("\n\n".join(sections) + "\n")


def describe_drift(drift: Drift, split: str) -> str:
    """Return the drift of an export in one sentence."""
    return (
        f"KL divergence from the trained model {drift.mean_kl:.2g} nats per caption token (largest "
        f"{drift.max_kl:.2g}; {drift.num_tokens} tokens), {drift.num_same_captions} of "
        f"{drift.num_drawings} greedy captions equal, on drawings of the {split} split"
    )


def _render_metadata(config: Config, kind: str) -> str:
    licence = {"gemma": "gemma", "tiny": "apache-2.0"}.get(_get_family(config), "other")
    lines = [
        *([f"base_model: {name_base_model(config)}"] if is_on_hub(config) else []),
        f"license: {licence}",
        "pipeline_tag: text-generation",
        f"library_name: {'transformers' if kind == 'merged' else 'peft'}",
        "tags: [svg, captioning, lora]",
    ]
    return "\n".join(["---", *lines, "---"])


def _render_usage(config: Config, kind: str) -> str:
    system_prompt = config.data.system_prompt
    intro = (
        "The message of the user is the SVG alone, as `python -m app prepare` writes it: the chat "
        f"template adds the prompt of the training, `{system_prompt}`. Decode greedily."
    )
    if kind == "gguf-lora":
        return f"## Use\n\n{intro}\n\n```\n{_LLAMA_CPP}\n```"
    loading = "\n".join(_list_loading(config, kind))
    prompt = _PROMPT.format(max_new_tokens=config.evaluate.max_new_tokens)
    return f"## Use\n\n{intro}\n\n```python\n{loading}\n\n{prompt}\n```"


def _list_loading(config: Config, kind: str) -> Iterator[str]:
    """Yield the code that loads an export as its drift was measured."""
    quantization = get_quantization_options(config) if kind == "adapter" else {}
    names = [
        "AutoModelForCausalLM",
        "AutoTokenizer",
        *(["BitsAndBytesConfig"] * bool(quantization)),
    ]
    yield "import torch"
    if kind == "adapter":
        yield "from peft import PeftModel"
    yield f"from transformers import {', '.join(names)}"
    yield f"\n{_DEVICE}"

    source, options = "folder", []
    if kind == "adapter":
        source = "base"
        yield f'base = "{mask_secrets(get_base_source(config))}"  # see "Data and base model"'
        if config.model.revision is not None:
            options.append(f'revision="{config.model.revision}"')
    if quantization:
        options.append("quantization_config=quantization")
        yield "quantization = BitsAndBytesConfig("
        yield "    " + ", ".join(f"{name}={value!r}" for name, value in quantization.items()) + ","
        yield "    bnb_4bit_compute_dtype=dtype,\n)"

    options = [source, *options, "dtype=dtype", 'device_map={"": device}']
    yield "model = AutoModelForCausalLM.from_pretrained("
    yield f'    {", ".join(options)},\n    attn_implementation="eager",\n)'
    if kind == "adapter":
        yield "model = PeftModel.from_pretrained(model, folder)"


def _list_scores(scores: CardScores | None) -> Iterator[str]:
    """Yield a table of the scores."""
    if scores is None:
        yield (
            "No evaluation of this checkpoint was found in the folder of its job or in MLflow "
            "(`python -m app evaluate`)."
        )
        return

    signature = f"; BLEU by sacrebleu, `{scores.signature}`" if scores.signature else ""
    yield f"On the {scores.split} split, from {scores.source}{signature}.\n"
    yield "| score | value | 95 % interval | n | target |"
    yield "| --- | --- | --- | --- | --- |"
    for name, score in scores.metrics.items():
        low, high = score.get("low"), score.get("high")
        interval = "" if low is None or high is None else f"{low:.4g} to {high:.4g}"
        value, num, target = (score.get(key) for key in ("value", "n", "target"))
        if value is not None:
            yield f"| {name} | {value:.4g} | {interval} | {_show(num)} | {_show(target)} |"


def _show(value: Any) -> str:
    return "" if value is None else f"{value:g}"


def _describe_base(config: Config, kind: str) -> str:
    """Return the name of the base model, and where a stranger gets it."""
    name = f"`{name_base_model(config)}`"
    if is_on_hub(config):
        revision = config.model.revision
        return f"{name} of the Hugging Face hub{f', revision `{revision}`' if revision else ''}"
    if config.model.name == "tiny":
        place = f"a copy is in `{BASE_FOLDER}/`" if kind == "adapter" else "`app/gemma/tiny` has it"
        return f"{name}, the tiny Gemma 2 of SVGScribe, which is not on the hub: {place}"
    return (
        f"{name}, a folder of the person who exported this model. Get it from that person, and put "
        "it beside this file"
    )


def _describe_licence(config: Config) -> str:
    family = _get_family(config)
    if family == "gemma":
        return f"The weights derive from Gemma. {_GEMMA_TERMS}"
    if family == "tiny":
        return "The base model is the tiny Gemma 2 of SVGScribe (Apache 2.0), for trials only."
    return (
        f"The weights derive from `{name_base_model(config)}`, whose licence holds for them too. "
        f"If it derives from Gemma: {_GEMMA_TERMS}"
    )


def _get_family(config: Config) -> str:
    """Return `gemma`, `tiny`, or `other` for a model whose licence its name does not give."""
    if config.model.name == "tiny":
        return "tiny"
    return "gemma" if config.model.name.startswith("google/gemma") else "other"
