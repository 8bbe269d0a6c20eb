"""The README.md of an exported model: how to prompt it, its scores, its data, and its licences."""

from collections.abc import Iterator
from typing import Any

from app.config import Config
from app.evaluation.drift import Drift
from app.jobs.job_dir import read_job_file
from app.jobs.trained_model import TrainedModel
from app.training.checkpoint import STATE_FILE
from data_pipeline.masking import mask_secrets

_GEMMA_TERMS = (
    "Gemma is provided under and subject to the Gemma Terms of Use found at "
    "ai.google.dev/gemma/terms."
)
_LOADING = {
    "adapter": """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # the one of this file
model = AutoModelForCausalLM.from_pretrained("{base}", attn_implementation="eager")
model = PeftModel.from_pretrained(model, folder)""",
    "merged": """\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # the one of this file
model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")""",
}
_PROMPT = """\
tokenizer = AutoTokenizer.from_pretrained(folder)
messages = [{"role": "user", "content": svg}]
prompt = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
stops = tokenizer.convert_tokens_to_ids(["<end_of_turn>", "<eos>"])
ids = model.generate(**prompt, max_new_tokens=128, do_sample=False, eos_token_id=stops)
caption = tokenizer.decode(ids[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True)"""
_LLAMA_CPP = """\
llama-cli -m GGUF-OF-THE-BASE-MODEL --lora adapter.gguf --jinja \\
    --chat-template-file chat_template.jinja -st -p "$(cat drawing.svg)\""""


def render_model_card(model: TrainedModel, kind: str, drift: Drift, split: str) -> str:
    """Return the model card of an export, in Markdown with the metadata that hubs read."""
    state = read_job_file(model.adapter, STATE_FILE) or {}
    data = state.get("job", {}).get("the digest of data.shards", "unknown")
    base = state.get("base", {}).get("sha256", "unknown")
    sections = [
        _render_metadata(model.config, kind),
        "# Captions of SVG drawings\n\n"
        f"Trained by SVGScribe on `{_get_base(model.config)}`: step {model.step} of the job "
        f"`{model.config.train.run_name}`.",
        _render_usage(model.config, kind),
        "## Scores\n\n" + "\n".join(_list_scores(model)),
        f"## Data and base model\n\n- digest of the shards: `{data}`\n"
        f"- sha256 of the base model's weights: `{base}`",
        f"## Drift of this export\n\n{describe_drift(drift, split)}",
        f"## Licence\n\n{_describe_licence(model.config)}",
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
        f"base_model: {_get_base(config)}",
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
    loading = _LOADING[kind].format(base=_get_base(config))
    return f"## Use\n\n{intro}\n\n```python\n{loading}\n{_PROMPT}\n```"


def _list_scores(model: TrainedModel) -> Iterator[str]:
    """Yield a table of the scores in the job's evaluation.json, if it is of this checkpoint."""
    path, mark, query = model.adapter.partition("?")
    job_dir, _, checkpoint = path.rpartition("/")
    report = read_job_file(job_dir + mark + query, "evaluation.json") or {}
    evaluated = str(report.get("adapter") or report.get("model") or "").partition("?")[0]
    if evaluated.rpartition("/")[2] != checkpoint:
        yield "This checkpoint was not evaluated (`python -m app evaluate`)."
        return

    metrics: dict[str, Any] = report.get("metrics") or {
        name: {"value": value} for name, value in report.items() if isinstance(value, float)
    }
    yield "| score | value | 95 % interval | n | target |"
    yield "| --- | --- | --- | --- | --- |"
    for name, score in metrics.items():
        low, high = score.get("low"), score.get("high")
        interval = "" if low is None or high is None else f"{low:.4g} to {high:.4g}"
        value, num, target = (score.get(key) for key in ("value", "n", "target"))
        shown = f"{value:.4g}" if isinstance(value, float) else value
        yield f"| {name} | {shown} | {interval} | {num or ''} | {target or ''} |"


def _describe_licence(config: Config) -> str:
    family = _get_family(config)
    if family == "gemma":
        return f"The weights derive from Gemma. {_GEMMA_TERMS}"
    if family == "tiny":
        return "The base model is the tiny Gemma 2 of SVGScribe (Apache 2.0), for trials only."
    return (
        f"The weights derive from `{_get_base(config)}`, whose licence holds for them too. If it "
        f"derives from Gemma: {_GEMMA_TERMS}"
    )


def _get_family(config: Config) -> str:
    """Return `gemma`, `tiny`, or `other` for a model whose licence its name does not give."""
    if config.model.name == "tiny":
        return "tiny"
    return "gemma" if config.model.name.startswith("google/gemma") else "other"


def _get_base(config: Config) -> str:
    return mask_secrets(config.model.name)
